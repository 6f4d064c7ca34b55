"""Lanes: the places where a run's cases are measured side by side, and the queue they take from.

A run has one lane, or one for each GPU, or several for each where time is not what counts. As a
rule all cases of a workload go to one lane, because they are compared with each other, and two
cards of one model differ by a percent.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from dynbench.harness.case import Case


@dataclass(frozen=True)
class Lane:
    """One worker at a time, and what is its own.

    ``name`` is for people, ``environment`` for its workers, ``columns`` for its rows, ``words`` for
    the command that repeats one of them. ``card`` is the hash of its GPU's UUID, if it has one.
    """

    name: str = ""
    environment: Mapping[str, str] = field(default_factory=dict)
    columns: Mapping[str, Any] = field(default_factory=dict)
    card: str | None = None
    words: tuple[str, ...] = ()


def side_by_side(lane: Lane, jobs: int, threads: int) -> list[Lane]:
    """``jobs`` lanes in the place of one: they share its device, and ``threads`` of the CPU.

    Times of such lanes are those of a device that others use, too.
    """
    if jobs == 1:
        return [lane]
    each = {"OMP_NUM_THREADS": str(max(1, threads // jobs))}
    return [
        replace(
            lane,
            name=f"{lane.name} job {number}".strip(),
            environment={**lane.environment, **each},
        )
        for number in range(1, jobs + 1)
    ]


class WorkQueue:
    """Cases that wait, in groups that stay together; lanes take one group after another.

    One lane gets all cases as one group, in their order. Several get the cases of one workload at a
    time: the longest first, so that no lane ends long after the others, or with
    ``longest_first=False`` in the order given; single cases if they need not stay ``together``,
    since their times are not compared. ``seconds`` predicts a case. ``homes`` has the card
    that measured cases of a workload before, by ``workload_id``: that card's lane goes on with it.
    It is not thread-safe.
    """

    def __init__(
        self,
        cases: Sequence[Case],
        lanes: Sequence[Lane],
        seconds: Callable[[Case], float],
        *,
        longest_first: bool = True,
        together: bool = True,
        homes: Mapping[str, str] | None = None,
    ) -> None:
        self._cards = {lane.card for lane in lanes} - {None}
        self._homes = homes or {}
        if len(lanes) == 1:
            self._groups = [list(cases)] if cases else []
            return
        groups: dict[str, list[Case]] = {}
        for case in cases:
            groups.setdefault(case.workload_id if together else case.case_id, []).append(case)
        self._groups = list(groups.values())
        if longest_first:
            self._groups.sort(key=lambda group: -sum(map(seconds, group)))

    def take(self, lane: Lane) -> list[Case]:
        """The next group for the lane: at home there, else at home nowhere; empty if none is left.

        What is at home in another lane waits for it.
        """
        for belongs in (self._is_at_home, self._is_homeless):
            for group in self._groups:
                if belongs(group, lane):
                    self._groups.remove(group)
                    return group
        return []

    def give_back(self, cases: Sequence[Case], lane: Lane) -> None:
        """The lane ends without having measured these; the others take what would be its own."""
        self._cards -= {lane.card}
        if cases:
            self._groups.insert(0, list(cases))

    def waiting(self) -> list[list[Case]]:
        """The groups that no lane has taken."""
        return list(self._groups)

    def _is_at_home(self, group: Sequence[Case], lane: Lane) -> bool:
        return lane.card is not None and self._homes.get(group[0].workload_id) == lane.card

    def _is_homeless(self, group: Sequence[Case], lane: Lane) -> bool:
        return self._homes.get(group[0].workload_id) not in self._cards


def homes_of(rows: Iterable[Mapping[str, Any]]) -> dict[str, str]:
    """The card that measured each workload, by ``workload_id``; of several the last."""
    return {
        row["workload_id"]: row["gpu_uuid_hash"]
        for row in rows
        if row.get("workload_id") and row.get("gpu_uuid_hash")
    }


def duration_s(groups_s: Iterable[float], lanes: int) -> float:
    """How long groups of so many seconds take on so many lanes, the longest taken first."""
    ends_s = [0.0] * max(lanes, 1)
    for group_s in sorted(groups_s, reverse=True):
        heapq.heapreplace(ends_s, ends_s[0] + group_s)
    return max(ends_s)


def predicted_duration_s(
    cases: Sequence[Case], seconds: Callable[[Case], float], lanes: int, *, together: bool = True
) -> float:
    """How long the cases will take on so many lanes, if each takes the ``seconds`` predicted."""
    groups = WorkQueue(cases, [Lane()] * lanes, seconds, together=together).waiting()
    return duration_s((sum(map(seconds, group)) for group in groups), lanes)
