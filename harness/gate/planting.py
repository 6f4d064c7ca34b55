"""Slow-downs planted into a self-check: does the gate find what it should find?

Both sides of a self-check run the same code in processes of their own. With the times of the
candidate's processes multiplied, they are a slower candidate, which shares no sample with the
baseline. One case is planted at a time, among all the others as they were measured. As in a gate
that is to find slow-downs of this size, a case that the first rounds leave ambiguous gets as many
more as its noise asks for.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from dynbench.harness.case import Case
from dynbench.harness.gate.conditions import Pairing, Reading, pair
from dynbench.harness.gate.errors import SettingsError
from dynbench.harness.gate.gating import Say, further_rounds, rounds_for, span
from dynbench.harness.gate.rounds import BASELINE, CANDIDATE, Clock, Rounds
from dynbench.harness.gate.settings import Override, Settings
from dynbench.harness.gate.verdicts import CaseVerdict, ComparedCase, Verdict, decide, examine

TRIALS = 100
"""At most, for each plant: cases spread evenly over all."""

_SCALED = ("latency_ms", "latency_q1_ms", "latency_q3_ms")


@dataclass(frozen=True)
class Plant:
    """How much slower: by a share of the latency, or by so many standard deviations.

    The deviations are those of a round's change, on top of the case's threshold, which is then at
    least its noise floor.
    """

    share: float | None = None
    deviations: float | None = None

    @classmethod
    def parse(cls, text: str) -> Plant:
        """``0.05`` or ``3sd``. Raises SettingsError."""
        number, is_share = text.strip().removesuffix("sd"), not text.strip().endswith("sd")
        try:
            value = float(number)
        except ValueError:
            value = math.nan
        if not 0 < value < math.inf:
            raise SettingsError(
                f"--plant {text}: write a share such as 0.05, or deviations such as 3sd"
            )
        return cls(share=value) if is_share else cls(deviations=value)

    def __str__(self) -> str:
        if self.share is not None:
            return f"{100 * self.share:g} %"
        return f"threshold + {self.deviations:g} standard deviations"

    def settings(
        self, verdicts: Sequence[CaseVerdict], floors: Mapping[str, float], settings: Settings
    ) -> Settings:
        """Settings of the trials: for deviations, no threshold below its case's noise floor."""
        if self.deviations is None:
            return settings
        raised = tuple(
            Override(v.case_id, threshold=max(v.threshold, floors[v.case_id]))
            for v in verdicts
            if v.case_id in floors
        )
        return replace(settings, override=(*settings.override, *raised))

    def slow_down(self, verdict: CaseVerdict, settings: Settings) -> float:
        """By how much a case is slowed down, as a share; ``verdict`` knows its noise."""
        if self.share is not None:
            return self.share
        threshold, _ = settings.limits(verdict.case_id, verdict.label)
        deviation = (self.deviations or 0.0) * (verdict.noise or 0.0)
        return math.expm1(math.log1p(threshold) + deviation)


@dataclass(frozen=True)
class Trials:
    """What became of one plant: a verdict for each planted case, when all its rounds were there."""

    plant: Plant
    slow_downs: Sequence[float]
    verdicts: Sequence[CaseVerdict]

    @property
    def missed(self) -> list[CaseVerdict]:
        """Those that did not come out as regressed."""
        return [verdict for verdict in self.verdicts if verdict.verdict != Verdict.REGRESSED]

    @property
    def note(self) -> str:
        """The outcome in one line."""
        count = len(self.verdicts)
        if not count:
            return f"planted {self.plant}: no case to plant it in"
        rounds = span(sorted(verdict.observations for verdict in self.verdicts))
        slowed = span(sorted(100 * share for share in self.slow_downs), ".2g")
        told = [f"{v.label} ({v.verdict}: {v.reason})" for v in self.missed]
        return (
            f"planted {self.plant}: found in {count - len(told)} of {count} trials "
            f"(slow-downs of {slowed} %, {rounds} rounds each)"
            + (f"; not found: {'; '.join(told)}" if told else "")
        )


def planted_trials(
    rounds: Rounds,
    cases: Sequence[Case],
    readings: dict[str, list[Reading]],
    verdicts: Sequence[CaseVerdict],
    floors: Mapping[str, float],
    settings: Settings,
    plant: Plant,
    say: Say = lambda line: None,
) -> Trials:
    """One trial for each of at most TRIALS cases.

    ``readings``, ``verdicts`` and ``floors`` (by id) are those of the self-check; further rounds
    add to the readings, and to what is known of the noise: a deviation is that of all rounds.
    """
    settings = plant.settings(verdicts, floors, settings)
    measured = [v for v in verdicts if v.noise is not None and v.observations >= 2]
    count = min(TRIALS, len(measured))
    chosen = {measured[i * len(measured) // count].case_id for i in range(count)}
    say(f"planting {plant} into {count} cases, one at a time")
    while True:
        pairings = pair(readings[BASELINE], readings[CANDIDATE], settings)
        examined = [examine(pairing, settings) for pairing in pairings]
        known = [v for v in decide(examined, settings) if v.case_id in chosen]
        slow_downs = {v.case_id: plant.slow_down(v, settings) for v in known}
        trials = _planted_one_at_a_time(pairings, examined, slow_downs, settings)
        needed = rounds_for(trials, len(measured), settings, slow_downs)
        if not further_rounds(rounds, cases, needed, readings, Clock(), say):
            return Trials(plant, list(slow_downs.values()), trials)


def _planted_one_at_a_time(
    pairings: Sequence[Pairing],
    examined: Sequence[CaseVerdict | ComparedCase],
    slow_downs: Mapping[str, float],
    settings: Settings,
) -> list[CaseVerdict]:
    """The verdict on each case that is to be slower, judged with all the others as they are."""
    found = {}
    for place, pairing in enumerate(pairings):
        share = slow_downs.get(pairing.case_id)
        if share is not None:
            planted = [slower(reading, share) for reading in pairing.candidate]
            case = examine(replace(pairing, candidate=planted), settings)
            together = [*examined[:place], case, *examined[place + 1 :]]
            found[pairing.case_id] = decide(together, settings)[place]
    return [found[case_id] for case_id in slow_downs]


def slower(reading: Reading, share: float) -> Reading:
    """The reading as of code that is slower by ``share``: all its times are multiplied."""
    row = dict(reading.row)
    for name in _SCALED:
        row[name] = None if row[name] is None else row[name] * (1 + share)
    samples = row["samples_ms"]
    row["samples_ms"] = None if samples is None else [ms * (1 + share) for ms in samples]
    return replace(reading, row=row)
