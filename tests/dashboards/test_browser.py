"""The page in a real browser, with every request refused."""

from collections.abc import Callable

import pandas as pd
import pytest

pytestmark = pytest.mark.browser
Build = Callable[..., dict]
READY = "['ready', 'failed'].includes(document.documentElement.dataset.figures)"


def drawn(page) -> list[int]:
    """For each visible place of a figure: how many points, cells and bars stand in it."""
    return page.evaluate(
        """() => [...document.querySelectorAll('.part:not([hidden]) .plot')].map((plot) =>
            plot.querySelectorAll(
                '.scatterlayer path.point, .heatmaplayer image, .barlayer path').length)"""
    )


def test_every_figure_draws(show, gpu_frame: pd.DataFrame) -> None:
    page = show(gpu_frame)
    counts = drawn(page)
    assert len(counts) == 23
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
        """() => [...document.querySelectorAll('.part:not([hidden]) .plot')].filter((plot) => {
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
    for stop in ("", "filters-button", "theme"):
        page.keyboard.press("Tab")
        assert page.evaluate("document.activeElement.id") == stop
    page.keyboard.press("Enter")
    page.wait_for_function(f"{READY} && document.querySelector('.plot').dataset.drawn === 'light'")
    assert page.evaluate(ink) == "rgb(91, 103, 118)"
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(246, 247, 249)"


def test_the_selector_changes_the_comparison(show, mixed_frame: pd.DataFrame) -> None:
    page = show(mixed_frame)
    assert "H100" in page.locator(".part:not([hidden]) .eyebrow").inner_text()
    page.select_option("#part-choice", index=1)
    page.wait_for_function(
        "document.querySelectorAll('.part:not([hidden]) .plot[data-drawn]').length === 12"
    )
    assert "Xeon" in page.locator(".part:not([hidden]) .eyebrow").inner_text()
    assert all(drawn(page))
    page.locator("#everything a").nth(2).click()
    page.wait_for_function("document.querySelector('#f2').hidden === false")


def test_details_scroll_areas_and_links_take_the_focus(show, cpu_frame: pd.DataFrame) -> None:
    page = show(cpu_frame)
    page.locator(".part summary").first.focus()
    page.keyboard.press("Enter")
    table = page.locator(".part details[open] table").first
    assert table.is_visible()
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.className") == "scroll"


def test_the_charts_buttons_are_no_stops_of_the_tab_key(cpu_page) -> None:
    stops = cpu_page.evaluate(
        """() => [...document.querySelectorAll('.part:not([hidden]) .plot *')]
            .filter((element) => element.tabIndex >= 0).length"""
    )
    assert cpu_page.locator(".modebar-btn").count() > 0
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


def test_the_legend_shows_the_dashes(cpu_page) -> None:
    widths = cpu_page.evaluate(
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
    page.locator("#f0-latency summary").click()
    page.locator("#f0-latency table").wait_for()
    page.select_option("#part-choice", "f1")
    page.wait_for_function("document.querySelectorAll('#f1 .plot[data-drawn]').length === 12")
    assert all(drawn(page))


def test_print_is_light_and_fits_the_paper(show, cpu_frame: pd.DataFrame) -> None:
    page = show(cpu_frame, color_scheme="dark")
    page.emulate_media(media="print")
    page.evaluate("window.dispatchEvent(new Event('beforeprint'))")
    page.wait_for_function("document.querySelector('.plot .main-svg').clientWidth <= 700")
    assert page.evaluate("getComputedStyle(document.body).color") == "rgb(0, 0, 0)"
    assert not page.locator("#theme").is_visible()
    assert len(page.pdf(format="A4")) > 20_000
