"""Latency over commits: steps, gaps and words, recomputed by pandas."""

from collections.abc import Callable

import pandas as pd
import pytest

from dynbench.dashboards import frame as frames
from dynbench.dashboards.figures.history import MAX_TRACKS, history_figure, history_table
from dynbench.dashboards.history import HistoryGroup, build_history, headline

Build = Callable[..., dict]


def commit_rows(row: Build, *times: float, **more) -> list[dict]:
    """One row of dynnsiha at 8k for each commit, a day apart, quartiles 1 % around the median."""
    return [
        row(
            "gpu",
            "dynnsiha",
            8192,
            latency_ms=ms,
            latency_q1_ms=0.99 * ms,
            latency_q3_ms=1.01 * ms,
            git_commit=f"{number + 10:x}" * 40,
            started_at=f"2026-11-{10 + number}T10:00:00Z",
            run_id=f"run{number}",
            **more,
        )
        for number, ms in enumerate(times)
    ]


def history_of(rows: list[dict]) -> list[HistoryGroup]:
    return build_history(frames.prepare(pd.DataFrame(rows)))


def test_steps_are_those_of_pandas(row: Build) -> None:
    rows = commit_rows(row, 10.0, 10.1, 12.0, 8.0)
    (group,) = history_of(rows[::-1])
    (track,) = group.panels[0].tracks
    latency = pd.DataFrame(rows).sort_values("started_at")["latency_ms"].reset_index(drop=True)
    assert [step.latency_ms for step in track.steps] == latency.tolist()
    ratios = (latency / latency.shift()).tolist()[1:]
    assert [step.ratio for step in track.steps][1:] == pytest.approx(ratios)
    assert [step.change for step in track.steps] == [0, 0, 1, -1]
    figure = history_figure(group.panels[0]).plotly()
    assert list(figure.data[0].y) == pytest.approx((latency / latency[0]).tolist(), rel=1e-4)
    assert list(figure.data[1].y) == pytest.approx([1.2, 0.8], rel=1e-4), "rings"
    cells = [r for g in history_table(group.panels[0]).groups for r in g.rows]
    assert [r[-1] for r in cells] == ["first", "no clear change", "slower", "faster"]
    assert headline([group]).startswith(
        "1 case over 4 commits: 1 slow-down and 1 speed-up from one commit to the next; the worst "
        "is dynnsiha"
    )
    assert "1.19× its time" in headline([group])


def test_overlapping_quartiles_are_no_change(row: Build) -> None:
    rows = commit_rows(row, 10.0, 11.0)
    for one in rows:
        one |= {"latency_q1_ms": 9.0, "latency_q3_ms": 12.0}
    (group,) = history_of(rows)
    assert [step.change for step in group.panels[0].tracks[0].steps] == [0, 0]
    assert headline([group]) == "Nothing changed in 1 case over 2 commits"


def test_other_software_leaves_a_gap(row: Build) -> None:
    old, new = commit_rows(row, 10.0, 12.0)
    (group,) = history_of([old, {**new, "torch_version": "2.14.0"}])
    (line, *_) = history_figure(group.panels[0]).plotly().data
    assert list(line.y) == [1.0, None, 1.2]
    rows = history_table(group.panels[0]).groups[0].rows
    assert [r[-1] for r in rows] == ["first", "other software"]
    assert headline([group]).startswith("Nothing changed")


def test_machines_and_settings_are_not_joined(row: Build) -> None:
    a, b = commit_rows(row, 10.0, 12.0)
    assert history_of([a, {**b, "machine_id": "another"}]) == []
    assert history_of([a, {**b, "query_tile": 4, "lists": "hybrid"}]) == []
    assert history_of([a, {**b, "seq_len": 16384}]) == []
    assert history_of([]) == []
    assert "no history" in headline([])


def test_the_figure_keeps_what_changed_most(row: Build) -> None:
    rows = []
    for number in range(MAX_TRACKS + 10):
        rows += commit_rows(row, 10.0, 10.0 + number, window=64 + number)
    (group,) = history_of(rows)
    figure = history_figure(group.panels[0]).plotly()
    lines = [trace for trace in figure.data if trace.mode == "lines+markers"]
    assert len(lines) == MAX_TRACKS
    assert max(line.y[-1] for line in lines) == pytest.approx(1 + (MAX_TRACKS + 9) / 10)
    assert len(history_table(group.panels[0]).groups) == MAX_TRACKS + 10


def test_a_commit_measured_under_two_versions_joins_neither(row: Build) -> None:
    rows = [
        *commit_rows(row, 10.0, 13.0, torch_version="2.12.0"),
        *(r | {"run_id": "other"} for r in commit_rows(row, 20.0, 26.0, torch_version="2.13.0")),
    ]
    for other in rows[2:]:  # the newer version was tried later, with both commits
        other["started_at"] = other["started_at"].replace("T10", "T11")
    (group,) = history_of(rows)
    steps = group.panels[0].tracks[0].steps
    assert [step.latency_ms for step in steps] == [10.0, 13.0, 20.0, 26.0]
    assert [step.change for step in steps] == [0, 1, 0, 1]
    assert [step.software[0] for step in steps] == ["2.12.0"] * 2 + ["2.13.0"] * 2
    assert headline([group]).startswith("1 case over 2 commits: 2 slow-downs")
    (line, *_) = history_figure(group.panels[0]).plotly().data
    assert list(line.y) == [1.0, 1.3, None, 2.0, 2.6]
