"""What a configuration's quality costs in time: latencies measured elsewhere in the same report.

A configuration takes the latency of rows of another suite that have its provider, lists and
settings; where too few have one, the time of its own training over its steps.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

from dynbench.dashboards import frame as frames
from dynbench.dashboards.labels import facet_titles
from dynbench.dashboards.model import pass_rank, pass_text
from dynbench.dashboards.quality.measures import Measure
from dynbench.dashboards.quality.model import Config, QualityGroup, ablation
from dynbench.dashboards.text import label_text, length_text

MAX_COSTS = 3
"""Workloads that quality is drawn against; those with the most configurations come first."""

FEWEST = 2
"""Configurations that need a latency: one point is no choice."""

_SUITES = ("attention", "layer", "training", "generation")
_SPARSE = (
    *("branches", "query_tile", "private_blocks", "top_n", "window", "block_size"),
    *("compress_block", "compress_stride", "init_blocks", "local_blocks"),
)
"""Settings that a row must share with a sparse configuration; dense attention has none."""


@dataclass(frozen=True)
class Timing:
    """Median and quartiles in milliseconds, over how many rows."""

    ms: float
    q1_ms: float | None
    q3_ms: float | None
    rows: int


@dataclass(frozen=True)
class Cost:
    """One workload: what each configuration takes for it, by the number of its line."""

    title: str
    note: str
    axis: str
    timings: Mapping[int, Timing]


def costs_of(group: QualityGroup, plain: pd.DataFrame, limit: int = MAX_COSTS) -> list[Cost]:
    """The workloads that most configurations of the group have a latency for.

    Of each facet and pass the longest length, the group's own machine first. Without any it is the
    time of the trainings over their steps, where that was recorded.
    """
    found = _measured_costs(group, plain)
    return found[:limit] or _step_costs(group)


def front(points: Sequence[tuple[int, float, float]], measure: Measure) -> set[int]:
    """Numbers of the points (number, time, quality) that no other one beats in both."""
    sign = 1.0 if measure.lower_is_better else -1.0
    kept: set[int] = set()
    best = float("inf")
    ordered = sorted((ms, sign * value, place) for place, ms, value in points)
    for at, (ms, badness, place) in enumerate(ordered):
        equal = at > 0 and ordered[at - 1][:2] == (ms, badness) and ordered[at - 1][2] in kept
        if badness < best or equal:
            kept.add(place)
            best = min(best, badness)
    return kept


def _measured_costs(group: QualityGroup, plain: pd.DataFrame) -> list[Cost]:
    rows = frames.measured(plain)
    wanted: dict[str, list[int]] = {}
    for config in group.configs:
        wanted.setdefault(_settings_of(config), []).append(config.number)
    rows = rows[rows["provider"].isin({config.line.provider for config in group.configs})]
    if rows.empty:
        return []
    rows = rows.assign(settings=_settings(rows))
    rows = rows[rows["settings"].isin(list(wanted))]
    first = group.facet.rows.iloc[0]
    ranked: list[tuple[Any, pd.DataFrame, int]] = []
    for (facet, pass_), held in rows.groupby(["facet", "pass"], sort=True):
        kinds = held.groupby("length")["settings"].nunique()
        enough = kinds[kinds >= FEWEST]
        if enough.empty:
            continue
        seq_len = int(max(enough[enough == enough.max()].index))
        own = held[held["length"] == seq_len]
        suite = str(own["suite"].iloc[0])
        rank = (
            -int(enough.max()),
            bool(own["machine_id"].iloc[0] != first["machine_id"]),
            _SUITES.index(suite) if suite in _SUITES else len(_SUITES),
            pass_rank(str(pass_)),
            int(str(facet)),
        )
        ranked.append((rank, own, seq_len))
    ranked.sort(key=lambda held: held[0])
    firsts = [{str(n): v for n, v in own.iloc[0].items()} for _, own, _ in ranked]
    titles = facet_titles(firsts)
    return [
        Cost(
            title=f"{pass_text(_first(own, 'pass'))} at {length_text(seq_len)} tokens: {title}",
            note=f"Latency as measured in suite {label_text(_first(own, 'suite'))} with the same "
            "settings, the bar from first to third quartile.",
            axis=f"latency at {length_text(seq_len)} tokens (ms)",
            timings=_timings(own, wanted),
        )
        for (_, own, seq_len), title in zip(ranked, titles, strict=True)
    ]


def _first(rows: pd.DataFrame, column: str) -> str:
    return str(rows[column].iloc[0])


def _timings(rows: pd.DataFrame, wanted: Mapping[str, list[int]]) -> dict[int, Timing]:
    found: dict[int, Timing] = {}
    for settings, own in rows.groupby("settings", sort=False):
        low, high = own["latency_q1_ms"].min(), own["latency_q3_ms"].max()
        timing = Timing(
            float(own["latency_ms"].median()), frames.number(low), frames.number(high), len(own)
        )
        found |= dict.fromkeys(wanted[str(settings)], timing)
    return found


def _step_costs(group: QualityGroup) -> list[Cost]:
    """The training's time over its steps: the mean over seeds, the least and the largest of them.

    A row's latency is that of the whole training.
    """
    steps = frames.number(group.facet.rows["train_steps"].iloc[0])
    if not steps:
        return []
    timings: dict[int, Timing] = {}
    for config in group.configs:
        held = config.estimates.get("latency_ms")
        if held is not None and held.mean > 0:
            several = held.seeds > 1
            timings[config.number] = Timing(
                held.mean / steps,
                min(held.values) / steps if several else None,
                max(held.values) / steps if several else None,
                held.seeds,
            )
    if len(timings) < FEWEST:
        return []
    note = (
        "No other rows of this report have the settings of two configurations, so this is the time "
        "of these very trainings over their steps, the bar from the fastest seed to the slowest."
    )
    title = "Time of these trainings over their steps"
    return [Cost(title, note, "training time a step (ms)", timings)]


def _settings_of(config: Config) -> str:
    return _key({"lists": config.line.lists, **config.line.settings})


def _settings(rows: pd.DataFrame) -> pd.Series:
    columns = ["provider", "lists", "variant", *_SPARSE]
    unique = rows[columns].drop_duplicates()
    keys = [_key({str(n): v for n, v in row.items()}) for row in unique.to_dict("records")]
    numbers = rows.groupby(columns, dropna=False, sort=False).ngroup()
    return numbers.map(dict(zip(numbers[unique.index], keys, strict=True)))


def _key(settings: Mapping[str, Any]) -> str:
    # How a model was trained changes no latency.
    shared = (settings["provider"], settings["lists"], ablation(settings["variant"]))
    if settings["lists"] == "dense":
        return str(shared)
    return str((*shared, *(str(settings[name]) for name in _SPARSE)))
