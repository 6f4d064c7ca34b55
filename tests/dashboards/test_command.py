"""What ``dynbench report`` writes, by options and paths."""

import json
from pathlib import Path

import pandas as pd
import pytest

from dynbench.dashboards.command import ReportOptions, check, live_rows, target, write
from dynbench.dashboards.errors import ReportError
from dynbench.harness.store import OutputError, RunWriter


def test_targets_lie_beside_the_first_run(tmp_path: Path) -> None:
    file = tmp_path / "rows.parquet"
    file.touch()
    for first in (tmp_path, file):
        assert target([first], ReportOptions()) == tmp_path / "report.html"
        assert target([first], ReportOptions(site=True)) == tmp_path / "site"
    assert target([tmp_path], ReportOptions(Path("x.html"))) == Path("x.html")


def test_places_that_cannot_be_written_are_refused(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ReportError, match="is a folder"):
        check([tmp_path], ReportOptions(tmp_path))
    with pytest.raises(OutputError, match="is not a folder"):
        check([tmp_path], ReportOptions(tmp_path / "file", site=True))
    check([tmp_path], ReportOptions(tmp_path / "new", site=True))


def test_a_site_knows_the_runs_commands(cpu_frame: pd.DataFrame, tmp_path: Path) -> None:
    run = tmp_path / "20261123-090000-cpu"
    run.mkdir()
    facts = {"run_id": run.name, "command": "dynbench run --seq 8k..128k"}
    (run / "run.json").write_text(json.dumps(facts))
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "run.json").write_text("{")
    (index,) = write(cpu_frame, [tmp_path], ReportOptions(site=True))
    assert "<code>dynbench run --seq 8k..128k</code>" in index.read_text()


def test_a_page_with_everything(cpu_frame: pd.DataFrame, tmp_path: Path) -> None:
    options = ReportOptions(tmp_path / "page.html", baseline="nsa", history=True)
    (page,) = write(cpu_frame, [tmp_path], options, problems=["lost.parquet: torn"])
    text = page.read_text(encoding="utf-8")
    assert "over nsa" in text
    assert "No case was measured at two commits" in text
    assert "lost.parquet: torn" in text


def test_live_rows_are_those_of_the_newest_run(row, tmp_path: Path) -> None:
    assert live_rows(tmp_path / "nowhere").name == ""
    for name in ("20260101-a", "20260102-b"):
        with RunWriter.create(tmp_path, "dynbench run", run_id=name) as writer:
            writer.append(row("cpu", "sdpa", 8192, run_id=name))
    rows = live_rows(tmp_path)
    assert rows.name == "20260102-b"
    assert len(rows.frame) == 1
    assert not rows.finished
