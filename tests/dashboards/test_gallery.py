"""The docs' pictures: made by one command, small, and all of them shown."""

import re
from pathlib import Path

import pytest

from dynbench.dashboards.errors import ReportError
from dynbench.dashboards.gallery import make_gallery

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "docs" / "images" / "report"


def test_the_docs_show_every_picture_and_only_small_ones() -> None:
    pages = [ROOT / "README.md", ROOT / "docs" / "report.md"]
    shown = {
        (page.parent / name).resolve()
        for page in pages
        for name in re.findall(r'(?:\]\(|src=")([^)"]*images/[^)"]*)', page.read_text())
    }
    files = set(FOLDER.iterdir())
    assert shown - files == set()
    assert {file.name for file in files - shown} <= {"answer.svg"}
    assert max(file.stat().st_size for file in files) < 300_000


def test_without_rows_it_says_so(tmp_path: Path) -> None:
    with pytest.raises(ReportError, match="no rows of speed in"):
        make_gallery([tmp_path], tmp_path / "out")


@pytest.mark.browser
def test_pictures_are_made_of_any_runs(browser, tmp_path: Path) -> None:
    pytest.importorskip("kaleido")
    files = make_gallery([ROOT / "results" / "cpu", ROOT / "results" / "cpu-quality"], tmp_path)
    names = {file.name for file in files}
    assert {"first-screen.png", "dark.png", "case.png", "narrow.png", "latency.svg"} <= names
    assert "quality.png" in names
    for file in files:
        assert 5_000 < file.stat().st_size < 300_000
    assert (tmp_path / "dark.png").read_bytes() != (tmp_path / "first-screen.png").read_bytes()
