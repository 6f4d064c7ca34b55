"""What ``dynbench gate`` and its relatives do, once their options are parsed.

Two ways to an outcome: two sets of stored rows, and two versions measured in rounds (selfcheck.py
has one version against itself). Suites come in as cases and a ``prepare`` path, printing is the
caller's.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any

from dynbench.harness.case import Case
from dynbench.harness.gate import baselines
from dynbench.harness.gate.baselines import Baseline
from dynbench.harness.gate.conditions import Pairing, Reading, case_label, pair
from dynbench.harness.gate.errors import InvalidData, NothingToCompare, SettingsError
from dynbench.harness.gate.outcome import Outcome
from dynbench.harness.gate.rounds import (
    BASELINE,
    CANDIDATE,
    Clock,
    Rounds,
    is_gate_folder,
    read_side,
)
from dynbench.harness.gate.settings import Settings, names_case, nearest, some
from dynbench.harness.gate.statistics import detectable_change, rounds_needed
from dynbench.harness.gate.verdicts import CaseVerdict, Verdict, judge
from dynbench.harness.schema import Status
from dynbench.harness.store import Row, read_rows

Say = Callable[[str], None]


def gate_stored(
    baseline: Baseline,
    candidate: Path,
    settings: Settings,
    patterns: Sequence[str] = (),
    *,
    across: bool = False,
) -> Outcome:
    """Stored rows against a baseline. Raises InvalidData and NothingToCompare.

    There is nothing to measure again here, so a regression stands unconfirmed; the outcome's notes
    say how to confirm it.
    """
    ours = _chosen(_readings(_read(candidate, "candidate")), patterns)
    theirs = _chosen(_readings(baselines.read(baseline)), patterns)
    if patterns and not theirs:
        raise NothingToCompare(_no_match(patterns, baselines.read(baseline)))
    pairings = pair(theirs, ours, settings, across=across)
    verdicts = judge(pairings, settings, across=across)
    return _outcome(baseline, str(candidate), verdicts, settings, _stored_notes(pairings))


def gate_folder(folder: Path, settings: Settings, patterns: Sequence[str] = ()) -> Outcome:
    """The outcome of rounds that were measured before, all or a part.

    Raises InvalidData, and NothingToCompare for patterns that name no case.
    """
    chosen = _stored_rounds(folder, settings, patterns)
    if patterns and not chosen and (known := _stored_rounds(folder, settings, ())):
        raise NothingToCompare(_no_match(patterns, [pairing.any_row for pairing in known]))
    whole = [pairing for pairing in chosen if _has_both_sides(pairing)]
    verdicts = judge(whole, settings)
    again = _stored_rounds(folder, settings, patterns, "retest")
    verdicts = confirmed(verdicts, judge([p for p in again if _has_both_sides(p)], settings))
    notes = [f"rounds read from {folder}"]
    if len(whole) < len(chosen):
        notes.append(
            f"left out, since measuring ended before the turn of one side: "
            f"{len(chosen) - len(whole)} of {len(chosen)} cases (--resume goes on)"
        )
    return Outcome(str(folder), str(folder), verdicts, settings, notes)


def _stored_rounds(
    folder: Path, settings: Settings, patterns: Sequence[str], stage: str = ""
) -> list[Pairing]:
    baseline, candidate = (
        _chosen(_read_rounds(folder, name, stage), patterns) for name in (BASELINE, CANDIDATE)
    )
    return pair(baseline, candidate, settings)


def _has_both_sides(pairing: Pairing) -> bool:
    """Where not, measuring was interrupted before the other side's turn: the case is not missing,
    since a process writes a row whatever happens to its case."""
    return bool(pairing.baseline and pairing.candidate)


def gate_rounds(
    rounds: Rounds,
    cases: Sequence[Case],
    settings: Settings,
    *,
    accepted: Baseline | None = None,
    clock: Clock | None = None,
    say: Say = lambda line: None,
) -> Outcome:
    """Two versions measured against each other, flagged cases twice. Raises NothingToCompare.

    Rounds tell the noise of each case; from it follows how many rounds the case needs.
    """
    clock = clock or Clock()
    sides = rounds.sides
    _, verdicts = measure_rounds(rounds, cases, settings, clock, say)
    notes = [noise_note(verdicts, settings)]
    known = accepted.accepted if accepted else []
    flagged = [v for v in baselines.apply_accepted(verdicts, known, _today()) if v.blocks]
    if flagged and settings.retest:
        verdicts = retested(rounds, cases, verdicts, flagged, settings, say)
        ids = {verdict.case_id for verdict in flagged}
        recurred = sum(v.blocks and v.case_id in ids for v in verdicts)
        notes.append(f"retest: {recurred} of {len(flagged)} flagged cases recurred")
    verdicts = baselines.apply_accepted(verdicts, known, _today())
    return Outcome(
        sides[BASELINE].name, sides[CANDIDATE].name, verdicts, settings, [n for n in notes if n]
    )


def retested(
    rounds: Rounds,
    cases: Sequence[Case],
    verdicts: Sequence[CaseVerdict],
    flagged: Sequence[CaseVerdict],
    settings: Settings,
    say: Say,
) -> list[CaseVerdict]:
    """The verdicts, once the flagged cases are measured in fresh rounds."""
    say(f"{len(flagged)} flagged, measured again: {', '.join(v.label for v in flagged)}")
    ids = {verdict.case_id for verdict in flagged}
    again = replace(rounds, stage="retest")
    _, retest = measure_rounds(
        again, [c for c in cases if c.case_id in ids], settings, Clock(), say
    )
    return confirmed(verdicts, retest)


def confirmed(first: Iterable[CaseVerdict], retest: Iterable[CaseVerdict]) -> list[CaseVerdict]:
    """The verdicts, with those that the retest does not confirm no longer blocking."""
    second = {verdict.case_id: verdict for verdict in retest}
    found = []
    for verdict in first:
        other = second.get(verdict.case_id)
        if not verdict.blocks or other is None:
            found.append(verdict)
        elif other.blocks:
            again = f"and in the retest: {_told(other)}"
            found.append(replace(verdict, notes=(*verdict.notes, again)))
        else:
            reason = f"{_told(verdict)} at first, {_told(other)} in the retest"
            found.append(replace(verdict, verdict=Verdict.AMBIGUOUS, blocks=False, reason=reason))
    return found


def _told(verdict: CaseVerdict) -> str:
    change = "" if verdict.change is None else f" ({100 * verdict.change:+.1f} %)"
    return f"{verdict.verdict}{change}"


def accept(
    baseline: Baseline, outcome: Outcome, case: str, reason: str, until: date
) -> tuple[Outcome, dict[str, Any]]:
    """Record the case's slow-down in the baseline; the outcome with it accepted, and the entry.

    Raises SettingsError for a case that is not among the verdicts or did not slow down.
    """
    found = [v for v in outcome.verdicts if names_case(case, v.case_id, v.label)]
    if len(found) != 1:
        labels = {v.case_id: v.label for v in outcome.verdicts}
        if found:
            named = some([f"{v.case_id[:8]} ({v.label})" for v in found])
            raise SettingsError(f"--accept {case}: means {len(found)} cases, name one: {named}")
        raise SettingsError(
            f"--accept {case}: is no case here; {nearest(case, [*labels, *labels.values()])}"
        )
    if not found[0].blocks:
        raise SettingsError(f"--accept {case}: is {found[0].verdict}, there is nothing to accept")
    if not reason.strip():
        raise SettingsError("--accept needs a --reason: say why the slow-down is wanted")
    if until < _today():
        raise SettingsError(f"--until {until}: is past; name a day to come")
    entry = baselines.accept(baseline, found[0], reason, until)
    verdicts = baselines.apply_accepted(outcome.verdicts, [entry], _today())
    return replace(outcome, verdicts=verdicts), entry


def cases_of(rows: Iterable[Row], patterns: Sequence[str]) -> list[Case]:
    """The cases that a baseline measured, to be measured again. Raises NothingToCompare.

    Rows of a case that this version would not plan (its id has changed) are left out.
    """
    ok = [row for row in rows if row["status"] == Status.OK]
    chosen = [r.row for r in _chosen(_readings(ok), patterns)]
    cases = {row["case_id"]: case for row in chosen if (case := Case.from_row(row)) is not None}
    if ok and not chosen:
        raise NothingToCompare(_no_match(patterns, ok))
    if not cases:
        raise NothingToCompare("the baseline has no ok row whose case can be measured here")
    return list(cases.values())


def filter_cases(cases: Iterable[Case], patterns: Sequence[str]) -> list[Case]:
    """Those of the planned cases that a pattern names (all without patterns)."""
    from dynbench.harness.schema import complete_row

    rows = [complete_row(case.columns()) for case in cases]
    chosen = {r.row["case_id"] for r in _chosen(_readings(rows), patterns)}
    if rows and not chosen:
        raise NothingToCompare(_no_match(patterns, rows))
    return [case for case in cases if case.case_id in chosen]


def noise_note(verdicts: Sequence[CaseVerdict], settings: Settings) -> str:
    """How many rounds there were, how noisy they were, and what they can find."""
    told = [v for v in verdicts if v.noise is not None and v.observations >= 2]
    if not told:
        return ""
    alpha = (1 - settings.confidence) / len(told)
    found = [
        math.expm1(
            detectable_change(
                v.noise or 0.0, v.observations, math.log1p(v.threshold), alpha, settings.power
            )
        )
        for v in told
    ]
    counts = sorted(v.observations for v in told)
    noises = sorted(100 * (v.noise or 0.0) for v in told)
    return (
        f"rounds: {span(counts)} for each case; noise of a round {span(noises, '.2g')} %; "
        f"slow-downs found with {100 * settings.power:g} % chance: from "
        f"{span(sorted(100 * f for f in found), '.2g')} %"
    )


def span(values: Sequence[float], form: str = "d") -> str:
    """The first and the last of sorted numbers, in words."""
    low, high = format(values[0], form), format(values[-1], form)
    return low if low == high else f"{low} to {high}"


def measure_rounds(
    rounds: Rounds, cases: Sequence[Case], settings: Settings, clock: Clock, say: Say
) -> tuple[dict[str, list[Reading]], list[CaseVerdict]]:
    """All rounds, and the verdicts: the first ones of all cases, then of those that need more.

    Further rounds tell more of the noise, and may ask for further ones.
    """
    if not cases:
        raise NothingToCompare("no case to measure")
    readings: dict[str, list[Reading]] = {BASELINE: [], CANDIDATE: []}
    least = dict.fromkeys((case.case_id for case in cases), settings.min_rounds)
    further_rounds(rounds, cases, least, readings, clock, say)
    while True:
        verdicts = judge(pair(readings[BASELINE], readings[CANDIDATE], settings), settings)
        needed = rounds_for(verdicts, len(verdicts), settings)
        if not further_rounds(rounds, cases, needed, readings, clock, say):
            return readings, verdicts


def further_rounds(
    rounds: Rounds,
    cases: Sequence[Case],
    needed: Mapping[str, int],
    readings: dict[str, list[Reading]],
    clock: Clock,
    say: Say,
) -> bool:
    """Measure, until each case has as many rounds as it needs, what ``readings`` lack.

    Tells whether anything was measured.
    """
    measured = False
    known = {(reading.row["case_id"], reading.round) for reading in readings[BASELINE]}
    more = [n for i, n in needed.items() if known and (i, n - 1) not in known]
    if more:
        say(f"{len(more)} of {len(cases)} cases need more rounds: up to {max(more)}")
    for index in range(max(needed.values(), default=0)):
        todo = [
            case
            for case in cases
            if needed.get(case.case_id, 0) > index and (case.case_id, index) not in known
        ]
        if not todo:
            continue
        if index >= 2 and not clock.fits():
            say(f"the budget ends the measuring after {index} rounds")
            break
        with clock.round():
            for side, found in rounds.measure(todo, index).items():
                readings[side] += found
                measured = measured or bool(found)
    return measured


def rounds_for(
    verdicts: Iterable[CaseVerdict],
    compared: int,
    settings: Settings,
    targets: Mapping[str, float] | None = None,
) -> dict[str, int]:
    """Rounds for each case, from the noise of those so far, where ``compared`` cases are judged.

    They are to find a slow-down of the case's target, by default of threshold + margin. Only what
    is open so far needs more: a regression is measured again anyway, and a case that is surely
    within its threshold stays so. Rounds that do not count are measured in addition.
    """
    alpha = (1 - settings.confidence) / max(compared, 1)
    needed = {}
    for verdict in verdicts:
        needed[verdict.case_id] = settings.min_rounds
        if not _is_open(verdict):
            continue
        target = (targets or {}).get(verdict.case_id, verdict.threshold + settings.margin)
        count = _rounds_that_count(verdict, target, alpha, settings) + verdict.not_counting
        needed[verdict.case_id] = min(count, settings.max_rounds)
    return needed


def _is_open(verdict: CaseVerdict) -> bool:
    """Whether further rounds may tell more: ambiguous, or throttled in all rounds but one."""
    throttled = verdict.verdict == Verdict.INVALID and not verdict.blocks
    return verdict.verdict == Verdict.AMBIGUOUS or throttled


def _rounds_that_count(
    verdict: CaseVerdict, target: float, alpha: float, settings: Settings
) -> int:
    """Rounds that find a slow-down of ``target`` by the verdict's noise, the fewest at least."""
    if verdict.noise is None:
        return settings.min_rounds
    count = rounds_needed(
        verdict.noise,
        verdict.observations - 1,
        math.log1p(verdict.threshold),
        math.log1p(target),
        alpha,
        settings.power,
    )
    return settings.max_rounds if count is None else max(count, settings.min_rounds)


def _stored_notes(pairings: Sequence[Pairing]) -> list[str]:
    single = sum(len(p.baseline) == 1 and len(p.candidate) == 1 for p in pairings)
    if not single:
        return []
    return [
        f"{single} of {len(pairings)} cases have one process on each side, which tells nothing of "
        "the noise between processes: save several runs, or measure both with --rev"
    ]


def _outcome(
    baseline: Baseline,
    candidate: str,
    verdicts: Sequence[CaseVerdict],
    settings: Settings,
    notes: Sequence[str],
) -> Outcome:
    applied = baselines.apply_accepted(verdicts, baseline.accepted, _today())
    told = list(notes)
    commits = baseline.facts.get("commits", [])
    if any(v.verdict == Verdict.REGRESSED and v.blocks for v in applied) and commits:
        told.append(
            f"to confirm: dynbench gate --rev {commits[-1][:12]} --baseline {baseline.name}"
        )
    return Outcome(baseline.name, candidate, applied, settings, told)


def _read(path: Path, what: str) -> list[Row]:
    rows, problems = read_rows([path])
    if problems:
        raise InvalidData(f"{what} {problems[0]}")
    return rows


def _read_rounds(folder: Path, side: str, stage: str = "") -> list[Reading]:
    if not is_gate_folder(folder):
        raise InvalidData(f"{folder}: holds no rounds of a gate")
    readings, problems = read_side(folder, side, stage)
    if problems:
        raise InvalidData(problems[0])
    return readings


def _readings(rows: Iterable[Row]) -> list[Reading]:
    return [Reading(row) for row in sorted(rows, key=lambda row: row["started_at"] or "")]


def _chosen(readings: Sequence[Reading], patterns: Sequence[str]) -> list[Reading]:
    if not patterns:
        return list(readings)
    labels = {r.row["case_id"]: case_label(r.row) for r in readings}
    wanted = {i for i, label in labels.items() if any(names_case(p, i, label) for p in patterns)}
    return [r for r in readings if r.row["case_id"] in wanted]


def _no_match(patterns: Sequence[str], rows: Iterable[Mapping[str, Any]]) -> str:
    labels = {case_label(row) for row in rows}
    return f"--case {patterns[0]}: names no case; {nearest(patterns[0], labels)}"


def _today() -> date:
    return datetime.now(UTC).date()
