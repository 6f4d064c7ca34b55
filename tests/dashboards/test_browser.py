"""The page in a real browser, with every request refused."""

import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pandas as pd
import pytest

from dynbench.dashboards.report import write_report

pytestmark = pytest.mark.browser
Build = Callable[..., dict]
READY = "['ready', 'failed'].includes(document.documentElement.dataset.figures)"


def _missing(why: str) -> None:
    if os.environ.get("DYNBENCH_REQUIRE_BROWSER") == "1":
        pytest.fail(f"DYNBENCH_REQUIRE_BROWSER=1, but {why}")
    pytest.skip(why)


@pytest.fixture(scope="module")
def browser() -> Iterator:
    try:
        from playwright.sync_api import sync_playwright
    except ImportError:
        _missing("no browser test: playwright is not installed")
    names = ("chromium", "chromium-browser", "google-chrome")
    program = next((found for name in names if (found := shutil.which(name))), None)
    if program is None:
        _missing("no browser test: there is no chromium on PATH")
    with sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=program, args=["--no-sandbox"])
        yield started
        started.close()


@pytest.fixture
def show(browser, tmp_path: Path) -> Iterator[Callable]:
    """Writes a report and opens it; afterwards fails on any request or console error."""
    trouble: list[str] = []
    contexts: list = []

    def open_report(frame: pd.DataFrame, *, width: int = 1280, **options):
        path = write_report(frame, tmp_path / f"report{len(contexts)}.html")
        context = browser.new_context(
            viewport={"width": width, "height": 900}, offline=True, **options
        )
        contexts.append(context)
        page = context.new_page()
        page.on("pageerror", lambda error: trouble.append(f"page error: {error}"))
        page.on(
            "console",
            lambda message: (
                trouble.append(f"console: {message.text}")
                if message.type in ("error", "warning")
                else None
            ),
        )
        page.on(
            "request",
            lambda request: (
                trouble.append(f"request: {request.url}")
                if request.url.startswith(("http", "ws"))
                else None
            ),
        )
        page.goto(path.as_uri())
        page.wait_for_function(READY, timeout=60_000)
        assert page.evaluate("document.documentElement.dataset.figures") == "ready"
        return page

    yield open_report
    for context in contexts:
        context.close()
    assert trouble == []


def drawn(page) -> list[int]:
    """For each visible place of a figure: how many points, cells and bars stand in it."""
    return page.evaluate(
        """() => [...document.querySelectorAll('.facet:not([hidden]) .plot')].map((plot) =>
            plot.querySelectorAll(
                '.scatterlayer path.point, .heatmaplayer image, .barlayer path').length)"""
    )


def test_every_figure_draws(show, gpu_frame: pd.DataFrame) -> None:
    page = show(gpu_frame)
    counts = drawn(page)
    assert len(counts) == 20
    assert all(counts)
    titles = page.locator(".plot .xtitle, .plot .ytitle").all_text_contents()
    assert "latency (ms)" in titles
    assert "sequence length (tokens)" in titles


def test_a_small_and_an_empty_report_open(show, gpu_frame: pd.DataFrame) -> None:
    assert all(drawn(show(gpu_frame.head(1))))
    assert drawn(show(gpu_frame.head(0))) == []


@pytest.mark.parametrize("width", [360, 1600])
def test_nothing_is_wider_than_the_window(show, cpu_frame: pd.DataFrame, width: int) -> None:
    page = show(cpu_frame, width=width)
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    overlapping = page.evaluate(
        """() => [...document.querySelectorAll('.facet:not([hidden]) .plot')].filter((plot) => {
            const legend = plot.querySelector('.legend')?.getBoundingClientRect();
            const title = plot.querySelector('.xtitle')?.getBoundingClientRect();
            return legend && title && legend.top < title.bottom - 2;
        }).map((plot) => plot.id)"""
    )
    assert overlapping == []


def test_themes_follow_the_system_and_the_button(show, cpu_frame: pd.DataFrame) -> None:
    page = show(cpu_frame, color_scheme="dark")
    ink = "getComputedStyle(document.querySelector('.plot .xtitle')).fill"
    assert page.evaluate(ink) == "rgb(154, 166, 180)"
    page.keyboard.press("Tab")
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.id") == "theme"
    page.keyboard.press("Enter")
    page.wait_for_function(f"{READY} && document.querySelector('.plot').dataset.drawn === 'light'")
    assert page.evaluate(ink) == "rgb(91, 103, 118)"
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(246, 247, 249)"


def test_the_selector_changes_the_comparison(show, mixed_frame: pd.DataFrame) -> None:
    page = show(mixed_frame)
    assert "H100" in page.locator(".facet:not([hidden]) .eyebrow").inner_text()
    page.select_option("#facet-choice", index=1)
    page.wait_for_function(
        "document.querySelectorAll('.facet:not([hidden]) .plot[data-drawn]').length === 10"
    )
    assert "Xeon" in page.locator(".facet:not([hidden]) .eyebrow").inner_text()
    assert all(drawn(page))
    page.locator("#everything a").nth(2).click()
    page.wait_for_function("document.querySelector('#f2').hidden === false")


def test_details_scroll_areas_and_links_take_the_focus(show, cpu_frame: pd.DataFrame) -> None:
    page = show(cpu_frame)
    page.locator(".facet summary").first.focus()
    page.keyboard.press("Enter")
    table = page.locator(".facet details[open] table").first
    assert table.is_visible()
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.className") == "scroll"


def test_the_charts_buttons_are_no_stops_of_the_tab_key(show, cpu_frame: pd.DataFrame) -> None:
    page = show(cpu_frame)
    stops = page.evaluate(
        """() => [...document.querySelectorAll('.facet:not([hidden]) .plot *')]
            .filter((element) => element.tabIndex >= 0).length"""
    )
    assert page.locator(".modebar-btn").count() > 0
    assert stops == 0


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_the_heat_maps_numbers_have_one_ink(show, cpu_frame: pd.DataFrame, theme: str) -> None:
    page = show(cpu_frame, color_scheme=theme)
    inks = page.evaluate(
        """() => [...document.querySelectorAll('.heatmap-label text')]
            .map((text) => getComputedStyle(text).fill)"""
    )
    expected = {"light": "rgb(23, 32, 43)", "dark": "rgb(232, 236, 241)"}
    assert set(inks) == {expected[theme]}


def test_the_legend_shows_the_dashes(show, cpu_frame: pd.DataFrame) -> None:
    page = show(cpu_frame)
    widths = page.evaluate(
        """() => [...document.querySelectorAll('.legendlines path')]
            .map((path) => path.getBoundingClientRect().width)"""
    )
    assert min(widths) >= 44


def test_hostile_strings_are_shown_and_do_nothing(show, row: Build) -> None:
    bad = (
        "<img src=http://evil/x onerror='window.hacked=1'></script><script>window.hacked=1</script>"
    )
    rows = [
        row("gpu", provider, seq_len, command=bad, suite=bad, gpu_name=bad, provider_version=bad)
        for provider in ("sdpa", bad)
        for seq_len in (8192, 16384)
    ]
    rows.append(row("gpu", bad, 32768, status="error", reason=bad, details=bad, suite=bad))
    page = show(pd.DataFrame(rows))
    assert page.evaluate("window.hacked") is None
    legend = page.locator(".plot .legendtext").all_text_contents()
    assert any(text.startswith("<img src=http://evil/x") for text in legend)
    point = page.locator(".plot .scatterlayer .point").first
    point.scroll_into_view_if_needed()
    box = point.bounding_box()
    page.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
    page.locator(".plot .hovertext").first.wait_for()
    assert page.evaluate("window.hacked") is None


def test_packed_parts_unpack(show, cpu_frame: pd.DataFrame, row: Build, monkeypatch) -> None:
    monkeypatch.setattr("dynbench.dashboards.page.PLAIN_BYTES", 0)
    failed = pd.DataFrame([row("cpu", "flex", 8192, status="timeout", reason="600 s")])
    frame = pd.concat([cpu_frame, failed, cpu_frame.assign(machine_id="another")])
    page = show(frame)
    assert page.locator("#f0-failures table").is_visible()
    page.locator("#f0-cases summary").click()
    page.locator("#f0-cases table").wait_for()
    assert page.locator("#f0-cases tbody tr").count() == len(cpu_frame)
    page.select_option("#facet-choice", "1")
    page.wait_for_function("document.querySelectorAll('#f1 .plot[data-drawn]').length === 10")
    assert all(drawn(page))


def test_print_is_light_and_fits_the_paper(show, cpu_frame: pd.DataFrame) -> None:
    page = show(cpu_frame, color_scheme="dark")
    page.emulate_media(media="print")
    page.evaluate("window.dispatchEvent(new Event('beforeprint'))")
    page.wait_for_function("document.querySelector('.plot .main-svg').clientWidth <= 700")
    assert page.evaluate("getComputedStyle(document.body).color") == "rgb(0, 0, 0)"
    assert not page.locator("#theme").is_visible()
    assert len(page.pdf(format="A4")) > 20_000
