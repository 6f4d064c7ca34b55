"""The report as a folder: every page from disk, with one script for all of them."""

import re
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest

from dynbench.dashboards import site
from dynbench.dashboards.site import write_site
from dynbench.harness.profile.schema import PROFILE_COLUMNS

Build = Callable[..., dict]


def test_one_plotly_and_a_page_for_each_machine(mixed_frame: pd.DataFrame, tmp_path: Path) -> None:
    index = write_site(
        mixed_frame, tmp_path / "site", commands={"20261123-090000-cpu": "dynbench x"}
    )
    assert index == tmp_path / "site" / "index.html"
    pages = sorted(path.name for path in index.parent.glob("*.html"))
    assert len(pages) == 3
    text = index.read_text(encoding="utf-8")
    assert set(re.findall(r'href="([a-z0-9-]+\.html)', text)) == set(pages) - {"index.html"}
    assert "<code>dynbench x</code>" in text
    assert f"{len(mixed_frame)} rows of 2 runs on 2 machines" in text
    assert len(list(index.parent.rglob("plotly*.js"))) == 1
    large = [
        path for path in index.parent.rglob("*") if path.is_file() and path.stat().st_size > 1e6
    ]
    assert [path.name for path in large] == ["plotly.js"]


def test_data_files_hold_letters_of_base64_alone(row: Build, tmp_path: Path) -> None:
    bad = "</script>\"');alert(1)//"
    write_site(pd.DataFrame([row("gpu", bad, 8192, run_id=bad, gpu_name=bad)]), tmp_path)
    for file in (tmp_path / "data").rglob("*.js"):
        line = file.read_text()
        assert re.fullmatch(r'dynbenchPart\("[a-z0-9.]+","[A-Za-z0-9+/=]*"\);\n', line)


def test_machines_of_one_name_have_pages_of_their_own(row: Build, tmp_path: Path) -> None:
    rows = [row("gpu", "sdpa", 8192, machine_id=name) for name in ("a" * 16, "b" * 16)]
    write_site(pd.DataFrame(rows), tmp_path)
    assert len(list(tmp_path.glob("nvidia-h100*.html"))) == 2


def test_a_profile_stands_on_the_page_of_its_machine(row: Build, tmp_path: Path) -> None:
    names = ("a" * 16, "b" * 16)
    rows = [row("gpu", "sdpa", 8192, machine_id=name) for name in names]
    profile = dict.fromkeys(PROFILE_COLUMNS) | rows[0]
    profile |= {"profile_id": "one", "tool": "torch", "reason": "no CUPTI"}
    write_site(pd.DataFrame(rows), tmp_path, profiles=[profile])
    pages = [path.read_text(encoding="utf-8") for path in tmp_path.glob("nvidia-h100*.html")]
    assert [page.count('id="profiles"') for page in pages if names[0][:8] in page] == [1]
    assert sum(page.count('id="profiles"') for page in pages) == 1


def test_without_rows_the_index_says_so(tmp_path: Path) -> None:
    text = write_site(pd.DataFrame(), tmp_path).read_text(encoding="utf-8")
    assert "There is no row" in text
    assert [path.name for path in tmp_path.glob("*.html")] == ["index.html"]


def test_writing_again_leaves_other_files(cpu_frame: pd.DataFrame, tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("kept")
    write_site(cpu_frame, tmp_path)
    write_site(cpu_frame, tmp_path)
    assert (tmp_path / "mine.txt").read_text() == "kept"


@pytest.mark.browser
def test_pages_draw_choose_and_open_cases(
    opened, mixed_frame: pd.DataFrame, tmp_path: Path, monkeypatch
) -> None:
    monkeypatch.setattr(site, "ROWS_A_FILE", 10)
    older = mixed_frame.assign(git_commit="1" * 40, started_at="2026-10-01T00:00:00Z")
    frame = pd.concat([older, mixed_frame], ignore_index=True)
    page = opened(write_site(frame, tmp_path, history=True))
    page.locator("a", has_text="NVIDIA H100").first.click()
    ready = "document.documentElement.dataset.figures === 'ready'"
    page.wait_for_function(ready)
    assert "over 2 commits" in page.locator(".part:not([hidden]) h1").inner_text()
    page.locator(".scatterlayer .point").first.click(force=True)
    page.wait_for_function("document.querySelector('#drawer').open")
    page.keyboard.press("Escape")
    page.select_option("#part-choice", index=1)
    page.wait_for_function(ready)
    assert page.locator(".part:not([hidden]) .plot .main-svg").count() > 20
    for name in ("sdpa", "nsa"):
        page.locator("button.open", has_text=re.compile(f"^{name}$")).first.click()
        page.wait_for_function("document.querySelector('#drawer').open")
        page.locator(".case-plot .point").first.wait_for()
        assert "Table of 30 samples" in page.locator("#drawer-body").inner_text()
        page.keyboard.press("Escape")
    page.locator("a.brand").click()
    page.locator("h1", has_text="rows of").wait_for()
