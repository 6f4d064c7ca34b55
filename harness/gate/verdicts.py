"""From rows to verdicts.

The decision for one case, in this order:

1. no ok row in the baseline, or none under equal conditions: ``incomparable``, never a pass;
2. ok in the baseline and absent from the candidate: ``missing``, which blocks;
3. failed or incorrect in the candidate: ``invalid``, which blocks;
4. throttled on either side: ``invalid``, which says nothing about the code;
5. slower beyond the threshold with confidence, over all cases (Holm), in cycles too where clocks
   are known, and by more than the floor: ``regressed``, which blocks; the mirror image is
   ``improved``;
6. surely within the threshold both ways: ``unchanged``;
7. else ``ambiguous``.

Rounds in which other processes were at work are left out where enough others remain; where not,
nothing is called regressed or improved, and the case asks for further rounds.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import Any

import numpy as np

from dynbench.harness.gate.conditions import (
    Pairing,
    Reading,
    Row,
    difference,
    disturbed,
    throttled,
)
from dynbench.harness.gate.settings import Settings
from dynbench.harness.gate.statistics import Estimate, holm, paired_change, unpaired_change
from dynbench.harness.schema import Status


class Verdict(StrEnum):
    """What a gate says of one case."""

    REGRESSED = "regressed"  # slower beyond the threshold
    IMPROVED = "improved"  # faster beyond the threshold
    UNCHANGED = "unchanged"  # within the threshold
    CHANGED = "changed"  # compiled to other numbers, none of which blocks
    AMBIGUOUS = "ambiguous"  # too noisy to say
    MISSING = "missing"  # the candidate has no row for it
    INVALID = "invalid"  # failed, incorrect or throttled
    INCOMPARABLE = "incomparable"  # nothing in the baseline to compare it with


COMPARED = frozenset(
    (
        *(Verdict.REGRESSED, Verdict.IMPROVED, Verdict.UNCHANGED),
        *(Verdict.CHANGED, Verdict.AMBIGUOUS),
    )
)
"""Verdicts that rest on numbers of both sides."""


@dataclass(frozen=True)
class CaseVerdict:
    """The verdict on one case, and what it rests on.

    Attributes:
        reason: one line; why the verdict is what it is.
        blocks: whether this is a regression: slower, missing or failed, and not accepted.
        change, low, high: relative change of the latency (0.05 is 5 % slower) and the bounds that
            it lies above and below with the settings' confidence each; None without latencies.
        p_value: of the slow-down beyond the threshold, adjusted for all cases.
        noise: standard deviation of one round's (or process pair's) change.
        observations: rounds, or processes on the side that has fewer.
        not_counting: measured rounds that prove nothing: throttled, disturbed or incomplete.
        warns: whether ``strict`` makes it block (an ambiguous or changed case always does).
        accepted: the entry that accepts it, if one does.
        command: repeats the candidate's row.
    """

    case_id: str
    label: str
    verdict: Verdict
    reason: str = ""
    blocks: bool = False
    threshold: float = 0.0
    baseline_ms: float | None = None
    candidate_ms: float | None = None
    change: float | None = None
    low: float | None = None
    high: float | None = None
    p_value: float | None = None
    noise: float | None = None
    observations: int = 0
    not_counting: int = 0
    notes: tuple[str, ...] = ()
    warns: bool = False
    accepted: dict[str, Any] | None = None
    command: str | None = None

    @property
    def doubtful(self) -> bool:
        """Whether ``strict`` makes it block."""
        return self.warns or self.verdict in (Verdict.AMBIGUOUS, Verdict.CHANGED)


@dataclass
class ComparedCase:
    """A case with latencies on both sides, before all cases are looked at together."""

    base: CaseVerdict
    floor_us: float
    time: Estimate
    cycles: Estimate | None
    distrust: str = ""
    notes: list[str] = field(default_factory=list)

    @property
    def bound(self) -> float:
        return math.log1p(self.base.threshold)

    def p_slower(self) -> float:
        """Of a slow-down beyond the threshold: in time, and in cycles where they are known."""
        return max(e.p_above(self.bound) for e in self._estimates())

    def p_faster(self) -> float:
        return max(e.p_below(-self.bound) for e in self._estimates())

    def _estimates(self) -> list[Estimate]:
        return [self.time] if self.cycles is None else [self.time, self.cycles]


def judge(
    pairings: Sequence[Pairing], settings: Settings, *, across: bool = False
) -> list[CaseVerdict]:
    """One verdict for each case, in the order given.

    Readings that carry a round are compared round by round; others side by side. ``across`` leaves
    differing conditions uncompared, and notes them.
    """
    return decide([examine(pairing, settings, across=across) for pairing in pairings], settings)


def examine(
    pairing: Pairing, settings: Settings, *, across: bool = False
) -> CaseVerdict | ComparedCase:
    """What one case alone tells: its verdict, or what ``decide`` needs to know for it."""
    found = _without_latencies(pairing, settings, across) or _compare(pairing, settings)
    if isinstance(found, ComparedCase) and across:
        unequal = difference(pairing.baseline[-1].row, pairing.candidate[-1].row)
        found.notes += [unequal] if unequal else []
    return found


def decide(examined: Sequence[CaseVerdict | ComparedCase], settings: Settings) -> list[CaseVerdict]:
    """The verdicts on all cases together, in the order given."""
    compared = [case for case in examined if isinstance(case, ComparedCase)]
    slower = holm([case.p_slower() for case in compared])
    faster = holm([case.p_faster() for case in compared])
    decided = iter(
        _decide(case, p_slower, p_faster, settings)
        for case, p_slower, p_faster in zip(compared, slower, faster, strict=True)
    )
    return [next(decided) if isinstance(case, ComparedCase) else case for case in examined]


def _without_latencies(pairing: Pairing, settings: Settings, across: bool) -> CaseVerdict | None:
    """The verdict on a case that cannot or need not be compared in time; None where it can."""
    threshold, _ = settings.limits(pairing.case_id, pairing.label)
    base = CaseVerdict(
        pairing.case_id,
        pairing.label,
        Verdict.INCOMPARABLE,
        threshold=threshold,
        command=pairing.any_row["command"],
    )
    baseline, candidate = _measured(pairing.baseline), _measured(pairing.candidate)
    if not pairing.baseline:
        return replace(base, reason="not in the baseline")
    if not baseline:
        why = _failure(pairing.baseline[-1].row)
        return replace(base, reason=f"the baseline has no result: {why}")
    if not pairing.candidate:
        return replace(
            base,
            verdict=Verdict.MISSING,
            blocks=True,
            reason="ok in the baseline, not in the candidate",
        )
    if not across:
        unequal = difference(baseline[-1].row, pairing.candidate[-1].row)
        if unequal:
            return replace(base, reason=unequal)
    failed = [r.row for r in pairing.candidate if r.row["status"] not in (Status.OK, "skipped")]
    if failed:
        share = f" ({len(failed)} of {len(pairing.candidate)} rows)" * (len(failed) > 1)
        reason = f"ok in the baseline, now {_failure(failed[0])}{share}"
        return replace(base, verdict=Verdict.INVALID, blocks=True, reason=reason)
    if not candidate:
        reason = f"ok in the baseline, now {_failure(pairing.candidate[-1].row)}"
        return replace(base, verdict=Verdict.MISSING, blocks=True, reason=reason)
    return None


def _measured(readings: Iterable[Reading]) -> list[Reading]:
    return [r for r in readings if r.row["status"] == Status.OK and r.row["latency_ms"]]


def _failure(row: Row) -> str:
    return f"{row['status']}: {row['reason']}" if row["reason"] else str(row["status"])


def _compare(pairing: Pairing, settings: Settings) -> CaseVerdict | ComparedCase:
    threshold, floor_us = settings.limits(pairing.case_id, pairing.label)
    sides = _measured(pairing.baseline), _measured(pairing.candidate)
    base = CaseVerdict(
        pairing.case_id,
        pairing.label,
        Verdict.AMBIGUOUS,
        threshold=threshold,
        command=pairing.any_row["command"],
    )
    in_rounds = all(reading.round is not None for side in sides for reading in side)
    units = _rounds(*sides) if in_rounds else [*sides]
    trusted, complaint = _trusted(units, settings, in_rounds)
    calm, unrest = _undisturbed(trusted, settings, in_rounds)
    if in_rounds:
        base = replace(base, not_counting=_rounds_measured(pairing) - len(calm))
    base = _with_latencies(base, trusted if _enough(trusted, in_rounds) else units, in_rounds)
    if not _enough(trusted, in_rounds):
        if complaint:
            return replace(base, verdict=Verdict.INVALID, reason=complaint)
        reason = f"only {len(units)} complete round: one tells nothing of noise; give more rounds"
        return replace(base, reason=reason)
    least = settings.min_rounds if in_rounds else 1
    notes = [complaint] if complaint else []
    distrust = ""
    if unrest and _enough(calm, in_rounds) and (not in_rounds or len(calm) >= least):
        notes.append(f"left out: {unrest}")
        trusted = calm
        base = _with_latencies(base, trusted, in_rounds)
    elif unrest:
        distrust = unrest
    time, cycles = _estimates(trusted, settings, in_rounds)
    if not in_rounds and time.freedom == math.inf:
        notes.append(f"one process a side: noise assumed {100 * settings.assumed_noise:g} %")
    return ComparedCase(base, floor_us, time, cycles, distrust, notes)


# A unit is what counts as one observation: a round (readings of both sides), or, without rounds,
# a whole side. Both are lists of readings, so that the filters below serve either.


def _rounds(baseline: Sequence[Reading], candidate: Sequence[Reading]) -> list[list[Reading]]:
    """Readings of each round that has both sides: the baseline's first, then as many others."""
    by_round: dict[int, tuple[list[Reading], list[Reading]]] = defaultdict(lambda: ([], []))
    for index, side in enumerate((baseline, candidate)):
        for reading in side:
            by_round[reading.round or 0][index].append(reading)
    return [
        [*ours, *theirs]
        for _, (ours, theirs) in sorted(by_round.items())
        if ours and len(ours) == len(theirs)
    ]


def _rounds_measured(pairing: Pairing) -> int:
    """Rounds that any row of the case is from, whatever became of it."""
    return len({reading.round for reading in (*pairing.baseline, *pairing.candidate)})


def _enough(units: Sequence[Sequence[Reading]], in_rounds: bool) -> bool:
    return len(units) >= 2 if in_rounds else all(units)


def _filter(
    units: Sequence[Sequence[Reading]], in_rounds: bool, is_bad: Any
) -> tuple[list[list[Reading]], int, int, str]:
    """Units without the bad readings (a round with one goes whole), how many of how many observed
    units went, and the first complaint."""
    complaints = [[is_bad(reading.row) for reading in unit] for unit in units]
    first = next((text for unit in complaints for text in unit if text), "")
    if in_rounds:
        kept = [list(u) for u, c in zip(units, complaints, strict=True) if not any(c)]
        return kept, len(units) - len(kept), len(units), first
    kept = [
        [reading for reading, text in zip(u, c, strict=True) if not text]
        for u, c in zip(units, complaints, strict=True)
    ]
    total = sum(map(len, units))
    return kept, total - sum(map(len, kept)), total, first


def _trusted(
    units: Sequence[Sequence[Reading]], settings: Settings, in_rounds: bool
) -> tuple[list[list[Reading]], str]:
    kept, bad, total, first = _filter(units, in_rounds, lambda row: throttled(row, settings))
    what = "rounds" if in_rounds else "rows"
    return kept, f"{bad} of {total} {what} throttled: {first}" if bad else ""


def _undisturbed(
    units: Sequence[Sequence[Reading]], settings: Settings, in_rounds: bool
) -> tuple[list[list[Reading]], str]:
    kept, bad, total, first = _filter(units, in_rounds, lambda row: disturbed(row, settings))
    what = "rounds" if in_rounds else "rows"
    return kept, f"{bad} of {total} {what} disturbed: {first}" if bad else ""


def _halves(unit: Sequence[Reading]) -> tuple[Sequence[Reading], Sequence[Reading]]:
    return unit[: len(unit) // 2], unit[len(unit) // 2 :]


def _with_latencies(
    base: CaseVerdict, units: Sequence[Sequence[Reading]], in_rounds: bool
) -> CaseVerdict:
    if in_rounds:
        baseline = [r.latency_ms for unit in units for r in _halves(unit)[0]]
        candidate = [r.latency_ms for unit in units for r in _halves(unit)[1]]
    else:
        baseline, candidate = ([r.latency_ms for r in unit] for unit in units)
    if not baseline or not candidate:
        return base
    ours, theirs = (math.exp(float(np.mean(np.log(side)))) for side in (candidate, baseline))
    return replace(
        base,
        baseline_ms=theirs,
        candidate_ms=ours,
        change=ours / theirs - 1,
        observations=len(units) if in_rounds else min(map(len, units)),
    )


def _estimates(
    units: Sequence[Sequence[Reading]], settings: Settings, in_rounds: bool
) -> tuple[Estimate, Estimate | None]:
    """The change in time, and in cycles where every row knows its GPU's clock."""
    time = [[reading.latency_ms for reading in unit] for unit in units]
    cycles = [[_cycles(reading.row) for reading in unit] for unit in units]
    known = [[count for count in unit if count is not None] for unit in cycles]
    in_cycles = [len(unit) for unit in known] == [len(unit) for unit in time]
    return (
        _estimate(time, settings, in_rounds),
        _estimate(known, settings, in_rounds) if in_cycles else None,
    )


def _estimate(units: Sequence[Sequence[float]], settings: Settings, in_rounds: bool) -> Estimate:
    logs = [np.log(unit) for unit in units]
    if not in_rounds:
        return unpaired_change(list(logs[0]), list(logs[1]), settings.assumed_noise)
    halves = (np.split(log, 2) for log in logs)
    return paired_change([float(ours.mean() - theirs.mean()) for theirs, ours in halves])


def _cycles(row: Row) -> float | None:
    """Median length of a sample in units of a GPU's clock; None where that is unknown.

    A CPU's clock is read before and after sampling only, over all cores: it does not count here.
    """
    if row["device"] != "cuda":
        return None
    clocks, samples = row["samples_sm_clock_mhz"], row["samples_ms"]
    if clocks and samples and len(clocks) == len(samples) and all(clocks):
        return float(np.median(np.asarray(clocks) * np.asarray(samples)))
    clock = row["sm_clock_mhz"]
    return float(clock) * float(row["latency_ms"]) if clock else None


def _decide(
    case: ComparedCase, p_slower: float, p_faster: float, settings: Settings
) -> CaseVerdict:
    """The verdict from p-values that are adjusted for all cases."""
    alpha, bound, time = 1 - settings.confidence, case.bound, case.time
    low, high = time.lower(settings.confidence), time.upper(settings.confidence)
    base = replace(
        case.base,
        change=math.expm1(time.change),
        low=math.expm1(low),
        high=math.expm1(high),
        p_value=p_slower,
        noise=time.spread,
        notes=tuple(case.notes),
    )
    delta_us = 1e3 * abs((base.candidate_ms or 0.0) - (base.baseline_ms or 0.0))
    percent = f"{100 * base.threshold:g} %"
    for p, verdict, word in (
        (p_slower, Verdict.REGRESSED, "slower"),
        (p_faster, Verdict.IMPROVED, "faster"),
    ):
        if p > alpha:
            continue
        if delta_us < case.floor_us:
            reason = f"{word} by {delta_us:.3g} µs, below the floor of {case.floor_us:g} µs"
            return replace(base, verdict=Verdict.UNCHANGED, reason=reason)
        if case.distrust:
            return replace(base, reason=f"{word} by more than {percent}, but {case.distrust}")
        return replace(
            base,
            verdict=verdict,
            blocks=verdict == Verdict.REGRESSED,
            reason=f"{word} by more than {percent} (p = {p:.2g})",
        )
    if -bound < low and high < bound:
        return replace(base, verdict=Verdict.UNCHANGED, reason=f"within {percent}")
    return replace(base, reason=_doubt(case, low, high, settings))


def _doubt(case: ComparedCase, low: float, high: float, settings: Settings) -> str:
    """Why the verdict is open."""
    span = f"{100 * math.expm1(low):+.1f} % to {100 * math.expm1(high):+.1f} %"
    alpha, bound = 1 - settings.confidence, case.bound
    in_time = min(case.time.p_above(bound), case.time.p_below(-bound)) <= alpha
    if in_time and case.cycles is not None and min(case.p_slower(), case.p_faster()) > alpha:
        return f"{span} in time, but not in cycles: the clocks differed"
    if in_time:
        return f"{span}, but not beyond doubt among so many cases: take more rounds"
    return f"{span} about the threshold of {100 * case.base.threshold:g} %: too noisy"
