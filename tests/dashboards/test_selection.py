"""What of many lines is drawn, and which rows keep their samples."""

from collections.abc import Callable

import pandas as pd

from dynbench.dashboards.compare import best_by_lists
from dynbench.dashboards.model import build_facets
from dynbench.dashboards.selection import drawn, rows_that_matter

Build = Callable[..., dict]


def test_few_lines_are_all_drawn(gpu_frame: pd.DataFrame) -> None:
    panel = build_facets(gpu_frame, "sdpa")[0].panels[0]
    assert drawn(panel) is panel


def test_of_many_lines_the_baseline_and_the_best_are_drawn(row: Build) -> None:
    rows = [row("gpu", "sdpa", seq_len) for seq_len in (8192, 16384)]
    rows += [row("gpu", "nsa", 8192, window=64 + i, latency_ms=50 - i / 10) for i in range(200)]
    rows += [row("gpu", "dynnsiha", 8192, window=64 + i, latency_ms=9 + i) for i in range(200)]
    rows.append(row("gpu", "flash", 8192, status="unavailable", reason="not installed"))
    panel = build_facets(pd.DataFrame(rows), "sdpa")[0].panels[0]
    small = drawn(panel, 20)
    assert len(small.lines) == 20
    numbers = {line.number for line in small.lines}
    assert {comparison.line.number for comparison in best_by_lists(panel)} <= numbers
    assert {"sdpa", "nsa", "dynnsiha", "flash"} == {line.provider for line in small.lines}
    assert best_by_lists(small)[0].line == best_by_lists(panel)[0].line
    fastest = max(panel.lines, key=lambda line: (line.provider == "nsa", line.settings["window"]))
    assert fastest.number in numbers


def test_the_newest_row_of_each_point_matters_most(row: Build) -> None:
    rows = [
        row("gpu", provider, 8192, run_id=f"run{turn}", started_at=f"2026-11-2{turn}T00:00:00Z")
        for turn in range(4)
        for provider in ("nsa", "sdpa", "dynnsiha")
    ]
    facets = build_facets(pd.DataFrame(rows), "sdpa")
    assert rows_that_matter(facets, 2) == {10, 11}, "the newest of sdpa and of dynnsiha"
    assert rows_that_matter(facets, 3) == {9, 10, 11}
    assert rows_that_matter(facets, 4) == {9, 10, 11, 7}, "then older repetitions"
    assert rows_that_matter(facets, 100) == set(range(12))


def test_rows_without_samples_do_not_matter(row: Build) -> None:
    rows = [row("gpu", "sdpa", 8192), row("gpu", "nsa", 8192, status="error")]
    assert rows_that_matter(build_facets(pd.DataFrame(rows), "sdpa")) == {0}
