"""axe-core over the page in its states: no serious violation."""

from pathlib import Path

import pandas as pd
import pytest

from dynbench.dashboards.site import write_site

pytestmark = pytest.mark.browser
axe_playwright = pytest.importorskip("axe_playwright_python.sync_playwright")


def serious(page) -> list[str]:
    """Serious and critical violations, each with the first elements concerned."""
    found = axe_playwright.Axe().run(page).response["violations"]
    return [
        f"{held['id']}: {[node['html'][:160] for node in held['nodes'][:3]]}"
        for held in found
        if held["impact"] in ("serious", "critical")
    ]


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_the_page(show, gpu_frame: pd.DataFrame, theme: str) -> None:
    page = show(gpu_frame, color_scheme=theme, report={"history": True})
    page.select_option("#part-choice", "f0")
    page.wait_for_function("document.querySelectorAll('#f0 .plot[data-drawn]').length === 23")
    page.locator("#filters-button").click()
    for summary in page.locator(".part:not([hidden]) summary").all()[:4]:
        summary.click()
    assert serious(page) == []


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_the_drawer(show, cpu_frame: pd.DataFrame, theme: str) -> None:
    page = show(cpu_frame, color_scheme=theme)
    page.locator("button.open").first.click()
    page.wait_for_function("document.querySelector('#drawer').dataset.shown !== undefined")
    assert serious(page) == []


def test_a_narrow_window(show, mixed_frame: pd.DataFrame) -> None:
    page = show(mixed_frame, width=390)
    page.locator("#filters-button").click()
    assert serious(page) == []
    assert page.evaluate("document.documentElement.scrollWidth") <= 390


def test_an_empty_report(show) -> None:
    assert serious(show(pd.DataFrame())) == []


def test_the_index_of_a_site(opened, mixed_frame: pd.DataFrame, tmp_path: Path) -> None:
    page = opened(write_site(mixed_frame, tmp_path / "site"))
    assert serious(page) == []
