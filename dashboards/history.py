"""Latency over commits: what got slower, and where.

The one place where rows of different commits stand beside one another. Everything else that keeps
rows apart (machine, shape, data type, ...) still does; where torch, Triton or the driver changed
between two commits the curve has a gap.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import pandas as pd

from dynbench.dashboards import frame as frames
from dynbench.dashboards.labels import commit_text, facet_titles, line_labels, order_key
from dynbench.dashboards.model import pass_rank, pass_text
from dynbench.dashboards.text import count_text, length_text, listing, times_text
from dynbench.dashboards.theme import Style, style_of

THRESHOLD = 0.03
"""A smaller change between two commits is not called one, whatever the quartiles say."""

SOFTWARE = ("torch_version", "triton_version", "driver_version")
_APART = ("git_commit", "git_dirty", *SOFTWARE)
_GROUP = tuple(name for name in frames.FACET_COLUMNS if name not in _APART)
_TRACK = tuple(name for name in frames.LINE_COLUMNS if name != "provider_version")


@dataclass(frozen=True)
class Step:
    """One commit of one case: its latency, and what became of it since the commit before."""

    commit: str
    latency_ms: float
    q1_ms: float
    q3_ms: float
    samples: int
    rows: int
    case: int  # the place of its newest row among all rows of the report
    facet: int  # and the comparison that it is part of
    software: tuple[str, ...]
    ratio: float | None = None  # over the commit before, None for the first one
    change: int = 0  # 1 slower, -1 faster; 0: quartiles overlap, below threshold, other software


@dataclass(frozen=True)
class Track:
    """One case over commits: everything but the commit is the same in its rows."""

    number: int
    label: str
    seq_len: int
    style: Style
    steps: tuple[Step, ...]


@dataclass(frozen=True)
class HistoryPanel:
    """The tracks of one pass; ``commits`` in the order of their first row."""

    title: str
    commits: tuple[str, ...]
    tracks: tuple[Track, ...]


@dataclass(frozen=True)
class HistoryGroup:
    """What may share a figure: one machine, suite, shape, data type."""

    title: str
    panels: tuple[HistoryPanel, ...]
    facets: tuple[int, ...]


def build_history(plain: pd.DataFrame) -> list[HistoryGroup]:
    """All cases that were measured at two commits or more, by what may share a figure."""
    rows = frames.measured(plain)
    if rows.empty:
        return []
    rows = rows.assign(
        commit=[
            commit_text(commit, dirty)
            for commit, dirty in zip(rows["git_commit"], rows["git_dirty"], strict=True)
        ],
        group=rows.groupby(list(_GROUP), dropna=False, sort=False).ngroup(),
    )
    keys = ["group", "pass", "length", *("key_top_n" if n == "top_n" else n for n in _TRACK)]
    rows["track"] = rows.groupby(keys, dropna=False, sort=False).ngroup()
    counts = rows.groupby("track")["commit"].nunique()
    rows = rows[rows["track"].map(counts) > 1]
    firsts = [
        {str(name): value for name, value in held.iloc[0].items()}
        for _, held in rows.groupby("group", sort=True)
    ]
    shared = [{**first, **dict.fromkeys(_APART, "")} for first in firsts]
    return [
        HistoryGroup(title, tuple(_panels(held)), tuple(sorted(set(held["facet"]))))
        for title, (_, held) in zip(
            facet_titles(shared), rows.groupby("group", sort=True), strict=True
        )
    ]


def homes_of(groups: Sequence[HistoryGroup]) -> dict[int, int]:
    """The comparison of each row that a point opens."""
    return {
        step.case: step.facet
        for group in groups
        for panel in group.panels
        for track in panel.tracks
        for step in track.steps
    }


def changes(panels: Sequence[HistoryPanel]) -> list[tuple[HistoryPanel, Track, Step]]:
    """Every step that is slower or faster, the largest slow-down first."""
    found = [
        (panel, track, step)
        for panel in panels
        for track in panel.tracks
        for step in track.steps
        if step.change
    ]
    return sorted(found, key=lambda held: -(held[2].ratio or 1.0))


def headline(groups: Sequence[HistoryGroup]) -> str:
    """What the history says, in one sentence."""
    panels = [panel for group in groups for panel in group.panels]
    tracks = [track for panel in panels for track in panel.tracks]
    if not tracks:
        return "No case was measured at two commits, so there is no history"
    found = changes(panels)
    slower = [held for held in found if held[2].change > 0]
    faster = [held for held in found if held[2].change < 0]
    commits = len({step.commit for track in tracks for step in track.steps})
    over = f"{count_text(len(tracks), 'case')} over {commits} commits"
    if not found:
        return f"Nothing changed in {over}"
    parts = [count_text(len(slower), "slow-down")] * bool(slower)
    parts += [count_text(len(faster), "speed-up")] * bool(faster)
    text = f"{over}: {listing(parts)} from one commit to the next"
    if slower:
        _, track, step = slower[0]
        text += (
            f"; the worst is {track.label} at {length_text(track.seq_len)}, "
            f"{times_text(step.ratio)} its time at {step.commit}"
        )
    return text


def _panels(rows: pd.DataFrame) -> list[HistoryPanel]:
    found = []
    for pass_ in sorted(rows["pass"].unique(), key=pass_rank):
        held = rows[rows["pass"] == pass_]
        order = held.groupby("commit")["started_at"].min().sort_values(kind="stable")
        commits = tuple(str(commit) for commit in order.index)
        records: list[dict[str, Any]] = [
            {str(name): value for name, value in first.items()} | {"line": first["track"]}
            for first in held.drop_duplicates("track").to_dict("records")
        ]
        for record in records:
            record["provider_version"] = ""
        lines = {_settings(record): record for record in reversed(records)}
        labels = line_labels(list(lines.values()))
        records.sort(key=lambda record: (order_key(record, ""), record["length"]))
        styles: dict[str, dict[str, int]] = {}
        tracks = []
        for record in records:
            label = labels[int(lines[_settings(record)]["line"])]
            variants = styles.setdefault(record["provider"], {})
            variant = f"{label} at {record['length']}"
            style = style_of(record["provider"], variants.setdefault(variant, len(variants)))
            steps = _steps(held[held["track"] == record["track"]], commits)
            tracks.append(
                Track(int(record["track"]), label, int(record["length"]), style, tuple(steps))
            )
        found.append(HistoryPanel(pass_text(pass_), commits, tuple(tracks)))
    return found


def _settings(record: dict[str, Any]) -> str:
    return str([record["key_top_n" if name == "top_n" else name] for name in _TRACK])


def _steps(rows: pd.DataFrame, commits: Sequence[str]) -> list[Step]:
    """Commit after commit under one software, then under the next that was used.

    So a commit that was measured under two stands there twice, and neither joins the other.
    """
    steps: list[Step] = []
    place = {commit: number for number, commit in enumerate(commits)}
    began = rows.groupby(list(SOFTWARE))["started_at"].transform("min")
    order = rows.assign(began=began, place=rows["commit"].map(place))
    for _, held in order.groupby(["began", *SOFTWARE, "place"], sort=True):
        middle = held["latency_ms"]
        low = held["latency_q1_ms"].where(held["latency_q1_ms"] > 0, middle)
        high = held["latency_q3_ms"].where(held["latency_q3_ms"] > 0, middle)
        step = Step(
            commit=str(held["commit"].iloc[0]),
            latency_ms=float(middle.median()),
            q1_ms=float(low.min()),
            q3_ms=float(high.max()),
            samples=int(held["sample_count"].sum()),
            rows=len(held),
            case=int(held.index.max()),
            facet=int(held["facet"].iloc[-1]),
            software=tuple(str(held[name].iloc[-1]) for name in SOFTWARE),
        )
        steps.append(_compared(step, steps[-1]) if steps else step)
    return steps


def _compared(step: Step, before: Step) -> Step:
    ratio = step.latency_ms / before.latency_ms
    apart = step.q1_ms > before.q3_ms or step.q3_ms < before.q1_ms
    same = step.software == before.software  # else the code is not all that changed
    clear = same and apart and abs(math.log(ratio)) > math.log(1 + THRESHOLD)
    change = (1 if ratio > 1 else -1) if clear else 0
    return replace(step, ratio=ratio, change=change)
