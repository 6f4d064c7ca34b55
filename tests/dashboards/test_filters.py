"""Filters in a real browser: what they hide, and what they leave."""

import pandas as pd
import pytest

pytestmark = pytest.mark.browser
READY = "document.documentElement.dataset.figures === 'ready'"


def traces(page, view: str, place: int = 0) -> list[str]:
    """Names in the legend of a figure."""
    return page.evaluate(
        """([id]) => (document.getElementById(id).data ?? [])
            .filter((trace) => trace.meta?.lines && trace.showlegend !== false)
            .map((trace) => trace.name)""",
        [f"f0-{view}-{place}"],
    )


def settle(page) -> None:
    page.wait_for_timeout(50)
    page.wait_for_function(READY, timeout=30_000)


@pytest.fixture(scope="module")
def filtered(gpu_page):
    gpu_page.locator("#filters-button").click()
    return gpu_page


@pytest.fixture
def page(filtered):
    """One page for all tests; each finds every filter as it was at first."""
    yield filtered
    filtered.locator("button[type=reset]").click()
    settle(filtered)
    assert filtered.locator("#filters-count").inner_text() == ""


def test_a_provider_leaves_figures_tables_and_cases(page) -> None:
    assert "nsa" in traces(page, "latency")
    page.locator("#what input[value=nsa]").uncheck()
    settle(page)
    for view in ("latency", "speedup", "roofline", "memory", "error", "samples"):
        assert traces(page, view)
        assert not [name for name in traces(page, view) if name.startswith("nsa")]
    rows = page.evaluate("document.getElementById('f0-heatmap-0').data[0].y.length")
    names = page.evaluate("document.getElementById('f0-heatmap-0').layout.yaxis.ticktext")
    assert rows == len(names) == 5
    assert not [name for name in names if name.startswith("nsa")]
    bars = page.evaluate("document.getElementById('f0-stages-0').layout.annotations.length")
    assert bars == 5 * 2 + 15, "two lines of dynnsiha over five lengths, three asked sparsities"
    headers = page.locator("#f0-overview tbody:not([hidden]) th").all_text_contents()
    assert headers
    assert "nsa" not in headers
    opened = page.locator("button.open").all_text_contents()
    assert not [name for name in opened if name == "nsa"]
    assert page.locator("#filters-count").inner_text().strip() == "(1)"


def test_a_pass_leaves_figures_and_verdicts(page) -> None:
    assert page.locator(".card:visible").count() == 4
    page.locator("#what input[value=Backward]").uncheck()
    settle(page)
    assert page.locator(".card:visible").count() == 2
    assert page.locator("#f0-latency figure:visible").count() == 1
    page.locator("button[type=reset]").click()
    settle(page)
    assert page.locator("#f0-latency figure:visible").count() == 2
    assert page.locator("#filters-count").inner_text() == ""


def test_a_query_tile_leaves_exact_lists_alone(page) -> None:
    page.locator("#what input[value='4']").uncheck()
    settle(page)
    left = traces(page, "latency")
    assert not [name for name in left if "R=4" in name]
    assert [name for name in left if "exact" in name]


def test_filters_that_leave_nothing_say_so(page) -> None:
    for box in page.locator("#what input[data-what=provider]").all():
        box.uncheck()
    settle(page)
    place = page.locator("#f0-latency figure").first
    note = place.evaluate("(figure) => getComputedStyle(figure, '::after').content")
    assert "leave nothing" in note
    assert "No case is left" in page.locator(".say").inner_text()
    assert page.locator("#filters-say").inner_text().startswith("0 of ")


def test_machines_and_shapes_narrow_the_comparisons(show, mixed_frame: pd.DataFrame) -> None:
    page = show(mixed_frame)
    page.locator("#filters-button").click()
    page.locator("[data-which=machine]").select_option(label="Intel(R) Xeon(R) Platinum 8480C")
    settle(page)
    assert "Xeon" in page.locator(".part:not([hidden]) .eyebrow").inner_text()
    left = page.locator("#part-choice option:not([hidden])").all_text_contents()
    assert len(left) == 1
    assert page.locator("#everything tbody tr:visible").count() == 1
    page.locator("[data-which=shape]").select_option(label="32/32 heads of 128, batch 1")
    settle(page)
    assert page.locator("#filters-say").inner_text() == (
        "No comparison has all of these; the one before is still shown"
    )
    page.locator("button[type=reset]").click()
    assert page.locator("#everything tbody tr:visible").count() == 3
