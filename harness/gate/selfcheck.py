"""One version measured against itself: the noise of the machine, and false alarms of the gate."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from dynbench.harness.case import Case
from dynbench.harness.gate.errors import SettingsError
from dynbench.harness.gate.gating import Say, measure_rounds, noise_note, retested
from dynbench.harness.gate.outcome import Outcome
from dynbench.harness.gate.planting import Plant, planted_trials
from dynbench.harness.gate.rounds import CANDIDATE, Clock, Rounds
from dynbench.harness.gate.settings import Settings
from dynbench.harness.gate.verdicts import COMPARED, CaseVerdict, Verdict


@dataclass(frozen=True)
class SelfCheck:
    """One version against itself. ``floors`` are the smallest thresholds at which each case comes
    out as unchanged, by case_id; ``too_low`` are thresholds that were set below them."""

    outcome: Outcome
    floors: dict[str, float]
    too_low: dict[str, float]

    @property
    def floor(self) -> float | None:
        """The largest of all; None where no case was measured."""
        return max(self.floors.values(), default=None)

    @property
    def labels(self) -> dict[str, str]:
        """Labels by case_id; two cases may share one."""
        return {verdict.case_id: verdict.label for verdict in self.outcome.verdicts}


def self_check(
    rounds: Rounds,
    cases: Sequence[Case],
    settings: Settings,
    *,
    plants: Sequence[Plant] = (),
    clock: Clock | None = None,
    say: Say = lambda line: None,
) -> SelfCheck:
    """The noise floor of each case, and how many the gate would flag. Raises NothingToCompare.

    What is flagged is a false alarm, since nothing changed. It is measured again, as a gate would.
    Then the ``plants`` follow: slow-downs that it should find.
    """
    readings, verdicts = measure_rounds(rounds, cases, settings, clock or Clock(), say)
    flagged = [verdict for verdict in verdicts if verdict.blocks]
    after = verdicts
    if flagged and settings.retest:
        after = retested(rounds, cases, verdicts, flagged, settings, say)
    found = _self_check(rounds.sides[CANDIDATE].name, verdicts, after, settings)
    trials = [
        planted_trials(rounds, cases, readings, verdicts, found.floors, settings, plant, say)
        for plant in plants
    ]
    notes = [*found.outcome.notes, *(trial.note for trial in trials)]
    return replace(found, outcome=replace(found.outcome, notes=notes))


def false_alarms_note(before: Sequence[CaseVerdict], after: Sequence[CaseVerdict]) -> str:
    """How many cases came out as regressed, before and after the retest."""
    compared = sum(verdict.verdict in COMPARED for verdict in before)
    counts = [
        sum(v.verdict == Verdict.REGRESSED and v.blocks for v in found) for found in (before, after)
    ]
    return (
        f"comparisons of identical code: {compared}; regressed: {counts[0]} before the retest, "
        f"{counts[1]} after it"
    )


def _self_check(
    name: str,
    verdicts: Sequence[CaseVerdict],
    after: Sequence[CaseVerdict],
    settings: Settings,
) -> SelfCheck:
    floors: dict[str, float] = {}
    too_low: dict[str, float] = {}
    for verdict in verdicts:
        if verdict.low is None or verdict.high is None:
            continue
        bound = max(abs(math.log1p(verdict.low)), abs(math.log1p(verdict.high)))
        floors[verdict.case_id] = math.expm1(bound)
        if verdict.threshold < floors[verdict.case_id]:
            too_low[verdict.case_id] = verdict.threshold
    notes = [noise_note(verdicts, settings), false_alarms_note(verdicts, after)]
    outcome = Outcome(name, name, after, settings, [note for note in notes if note])
    return SelfCheck(outcome, floors, too_low)


def refuse_low_thresholds(found: SelfCheck) -> None:
    """Raise SettingsError where a threshold lies below its case's noise floor."""
    if not found.too_low:
        return
    worst = max(found.too_low, key=lambda case_id: found.floors[case_id])
    needed = math.ceil(1000 * found.floors[worst]) / 1000
    raise SettingsError(
        f"the threshold of {len(found.too_low)} of {len(found.floors)} cases is below the noise "
        f"floor, the worst is {found.labels[worst]}: set threshold = {needed:g}, or take more "
        "rounds"
    )
