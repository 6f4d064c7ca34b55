"""Two sets of rows against each other, with the gate's verdicts and intervals."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import pandas as pd

from dynbench.dashboards.tables import Group, Table
from dynbench.dashboards.text import (
    cell_text,
    command_text,
    count_text,
    label_text,
    listing,
    number_text,
)

ORDER = ("regressed", "invalid", "missing", "ambiguous", "improved", "unchanged", "incomparable")


@dataclass(frozen=True)
class Changes:
    """What ``dynbench compare`` found of two runs: ``records`` are its verdicts' fields."""

    first: str
    second: str
    records: Sequence[Mapping[str, Any]]
    notes: Sequence[str] = ()
    places: Mapping[str, tuple[int, int]] = field(default_factory=dict)
    """By ``case_id``: the place of its newest row in the report, and the comparison it is in."""

    @property
    def ordered(self) -> list[Mapping[str, Any]]:
        """Verdicts that ask for attention first, the largest change first within each."""
        return sorted(
            self.records,
            key=lambda record: (
                ORDER.index(str(record["verdict"])) if str(record["verdict"]) in ORDER else 99,
                -abs(record["change"] or 0.0),
            ),
        )

    @property
    def with_change(self) -> list[Mapping[str, Any]]:
        """Those of ``ordered`` that have latencies of both runs."""
        return [record for record in self.ordered if record["change"] is not None]

    @property
    def headline(self) -> str:
        """The verdicts in one sentence."""
        counts = Counter(str(record["verdict"]) for record in self.records)
        found = [f"{counts[name]} {name}" for name in ORDER if counts[name]]
        cases = count_text(len(self.records), "case")
        return f"{label_text(self.second)} against {label_text(self.first)}: " + (
            f"{listing(found)} of {cases}" if found else "no case at all"
        )


def placed(changes: Changes, plain: pd.DataFrame) -> Changes:
    """With the places of its cases among the prepared rows of the report."""
    places = {
        str(case_id): (int(place), int(facet))
        for place, case_id, facet in plain[["case_id", "facet"]].itertuples()
    }
    return replace(changes, places=places)


def change_table(changes: Changes) -> Table | None:
    """A row per case: both medians, the change with its bounds, the verdict and why."""
    if not changes.records:
        return None
    return Table(
        f"Change of the median from {label_text(changes.first)} to {label_text(changes.second)}",
        ("case", "verdict", "A (ms)", "B (ms)", "change", "lies between", "why", "command"),
        tuple(Group(cell_text(str(r["label"])), (_row(r),)) for r in changes.ordered),
        text=("verdict",),
        prose=("why",),
        code=("command",),
    )


def _row(record: Mapping[str, Any]) -> tuple[str, ...]:
    low, high, change = record["low"], record["high"], record["change"]
    return (
        label_text(str(record["verdict"])),
        number_text(record["baseline_ms"], 4),
        number_text(record["candidate_ms"], 4),
        "" if change is None else f"{100 * change:+.1f} %",
        "" if low is None or high is None else f"{100 * low:+.1f} to {100 * high:+.1f} %",
        cell_text("; ".join(part for part in (record["reason"], *record["notes"]) if part)),
        command_text(record["command"] or ""),
    )
