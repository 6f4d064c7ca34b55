"""A case, opened in a real browser: what it says is what the row says."""

from collections.abc import Callable, Iterator

import pandas as pd
import pytest

pytestmark = pytest.mark.browser
Build = Callable[..., dict]


@pytest.fixture
def page(cpu_page) -> Iterator:
    """The page of the CPU's rows; each test finds its drawer closed."""
    yield cpu_page
    if cpu_page.evaluate("document.querySelector('#drawer').open"):
        cpu_page.keyboard.press("Escape")
    cpu_page.wait_for_function("!document.querySelector('#drawer').open")
    cpu_page.wait_for_function("document.querySelector('#drawer').dataset.shown === undefined")
    cpu_page.evaluate("window.scrollTo(0, 0)")


def open_first(page, text: str) -> None:
    page.locator("button.open", has_text=text).first.click()
    page.wait_for_function("document.querySelector('#drawer').open")
    page.wait_for_function("document.querySelector('#drawer').dataset.shown !== undefined")


def facts(page) -> dict[str, str]:
    return page.evaluate(
        """() => Object.fromEntries([...document.querySelectorAll('#drawer dl div')]
            .map((pair) => [pair.children[0].textContent, pair.children[1].textContent]))"""
    )


def test_a_point_opens_its_case(page, cpu_frame: pd.DataFrame) -> None:
    plot = page.locator("#f0-latency-0")
    plot.scroll_into_view_if_needed()
    point = plot.locator(".scatterlayer .trace .point").last
    box = point.bounding_box()
    page.mouse.click(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
    page.wait_for_function("document.querySelector('#drawer').open")
    seen = facts(page)
    rows = cpu_frame[
        (cpu_frame["provider"] == seen["provider"])
        & (cpu_frame["seq_len"].astype(str) + " tokens" == seen["seq_len"])
    ]
    commands = page.locator("#drawer .command pre").all_text_contents()
    assert commands[0] in set(rows["command"])
    assert seen["case_id"] in set(rows["case_id"])


def test_a_case_shows_every_column_and_sample_of_its_row(page, cpu_frame: pd.DataFrame) -> None:
    open_first(page, "nsa")
    seen = facts(page)
    row = cpu_frame[cpu_frame["case_id"] == seen["case_id"]].iloc[0]
    lists = ("samples_ms", "samples_at_s", "samples_sm_clock_mhz", "samples_power_w")
    apart = (*lists, "command", "details")
    known = {name for name in row.index if name not in apart and row[name] is not None}
    known = {
        name for name in known if not (pd.api.types.is_scalar(row[name]) and pd.isna(row[name]))
    }
    assert set(seen) == known
    assert seen["latency_ms"] == f"{float(f'{row.latency_ms:.6g}'):g} ms"
    assert seen["lists"] == "exact"
    page.locator("#drawer summary").click()
    column = page.locator("#drawer details tbody tr td:nth-child(3)").all_text_contents()
    assert [float(text) for text in column] == pytest.approx(row["samples_ms"], rel=1e-5)
    drawn = page.evaluate("document.querySelector('.case-plot').data[0].y")
    assert drawn == pytest.approx(row["samples_ms"], rel=1e-5)


def test_the_command_is_copied(show, cpu_frame: pd.DataFrame) -> None:
    page = show(cpu_frame, permissions=["clipboard-read", "clipboard-write"])
    open_first(page, "dynsiha")
    page.locator("#copy").click()
    page.locator("#drawer [role=status]", has_text="copied").wait_for()
    command = page.locator("#drawer .command pre").inner_text()
    assert page.evaluate("navigator.clipboard.readText()") == command
    assert command in set(cpu_frame["command"])


def test_the_command_is_copied_without_the_clipboards_permission(
    show, cpu_frame: pd.DataFrame
) -> None:
    page = show(cpu_frame)
    page.evaluate(
        """() => {
            navigator.clipboard.writeText = () => Promise.reject(new Error('no'));
            document.execCommand = (name) => { window.asked = name; return true; };
        }"""
    )
    open_first(page, "dynsiha")
    page.locator("#copy").click()
    page.locator("#drawer [role=status]", has_text="copied").wait_for()
    assert page.evaluate("window.asked") == "copy"


def test_the_keyboard_opens_and_closes_a_case(page) -> None:
    page.locator("button.open").first.focus()
    page.keyboard.press("Enter")
    page.wait_for_function("document.querySelector('#drawer').open")
    assert page.evaluate("document.activeElement.closest('#drawer') !== null")
    page.keyboard.press("Escape")
    page.wait_for_function("!document.querySelector('#drawer').open")
    assert page.evaluate("document.activeElement.className") == "open"


def test_a_failed_case_gives_its_reason_and_details(show, gpu_frame: pd.DataFrame) -> None:
    page = show(gpu_frame)
    page.locator("[data-cases] select").select_option("error")
    assert page.locator("button.open").count() == 1
    open_first(page, "my_kernel")
    words = page.locator("#drawer").inner_text()
    assert "worker died: SIGSEGV" in words
    assert "boom" in words
    assert "No sample was taken." in words


def test_cases_are_sorted_found_and_paged(show, gpu_frame: pd.DataFrame) -> None:
    page = show(gpu_frame)
    assert page.locator(".say").inner_text() == f"1 to 50 of {len(gpu_frame)} cases"
    page.locator(".sort", has_text="median").click()
    page.locator(".sort", has_text="median").click()
    heads = page.locator("[data-cases] th[aria-sort]")
    assert heads.get_attribute("aria-sort") == "descending"
    first = page.locator("[data-cases] tbody tr").first.locator("td").nth(3).inner_text()
    assert float(first) == pytest.approx(gpu_frame["latency_ms"].max(), rel=1e-3)
    for _ in range(len(gpu_frame) // 50):
        page.locator(".case-tools button", has_text="Next").click()
    left = len(gpu_frame) % 50
    assert page.locator("[data-cases] tbody tr").count() == left
    page.locator("[data-cases] input").fill("sigsegv")
    assert page.locator("[data-cases] tbody tr").count() == 1


def test_a_row_without_its_samples_says_where_they_are(
    show, cpu_frame: pd.DataFrame, monkeypatch
) -> None:
    monkeypatch.setattr("dynbench.dashboards.page.SAMPLED_ROWS", 3)
    monkeypatch.setattr("dynbench.dashboards.page.WHOLE_ROWS", 3)
    page = show(cpu_frame)
    open_first(page, "nsa")
    words = page.locator("#drawer").inner_text()
    assert "dynbench report --site has all of them" in words
    assert "main columns of this row" in words
    assert "quartiles" in words


def test_hostile_strings_in_a_case_are_text(show, row: Build) -> None:
    bad = "</script><img src=x onerror='window.hacked=1'>"
    names = ("command", "provider_version", "packages", "checked", "backend", "run_id", "inputs")
    rows = [row("gpu", "sdpa", 8192, **dict.fromkeys(names, bad))]
    page = show(pd.DataFrame(rows))
    open_first(page, "sdpa")
    assert facts(page)["run_id"] == bad
    assert page.locator("#drawer .command pre").inner_text() == bad
    assert page.evaluate("window.hacked") is None


def test_a_link_opens_its_case(page) -> None:
    open_first(page, "nsa")
    case = facts(page)["case_id"]
    link = page.evaluate("location.hash")
    page.keyboard.press("Escape")
    page.wait_for_function("location.hash === '#f0'")
    page.evaluate("(link) => { location.hash = link; }", link)
    page.wait_for_function("document.querySelector('#drawer').dataset.shown !== undefined")
    assert facts(page)["case_id"] == case
