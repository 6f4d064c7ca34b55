"""Planted slow-downs are found where the noise allows it, and missed ones are told."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import pytest

from dynbench.harness.case import Case
from dynbench.harness.gate import planting
from dynbench.harness.gate.conditions import Reading, pair
from dynbench.harness.gate.errors import SettingsError
from dynbench.harness.gate.gating import measure_rounds, rounds_for
from dynbench.harness.gate.planting import Plant, planted_trials, slower
from dynbench.harness.gate.rounds import BASELINE, CANDIDATE, Clock, Side
from dynbench.harness.gate.selfcheck import refuse_low_thresholds, self_check
from dynbench.harness.gate.settings import Settings
from dynbench.harness.gate.verdicts import judge

GPU_NOISE = 0.008


@dataclass
class SimulatedRounds:
    """Rounds whose processes are drawn, not started; ``measured`` counts those of each case."""

    source: Any
    cases: list[Case]
    measured: dict[str, int] = field(default_factory=dict)
    stage: str = ""
    sides = {BASELINE: Side("old"), CANDIDATE: Side("new")}  # noqa: RUF012

    def measure(self, cases: list[Case], index: int) -> dict[str, list[Reading]]:
        found: dict[str, list[Reading]] = {BASELINE: [], CANDIDATE: []}
        for case in cases:
            pairing = self.source.rounds(self.cases.index(case), 1)
            for side, readings in ((BASELINE, pairing.baseline), (CANDIDATE, pairing.candidate)):
                found[side] += [Reading(reading.row, index) for reading in readings]
            self.measured[case.case_id] = self.measured.get(case.case_id, 0) + 1
        return found


@pytest.fixture
def simulated(simulate, make_row):
    """A self-check of so many cases at this noise, with plants."""

    def run(noise: float, plants: list[str], count: int = 8, **settings):
        cases = [Case.from_row(make_row(i)) for i in range(count)]
        rounds = SimulatedRounds(simulate(7, noise), cases)
        found = self_check(
            rounds,
            cases,
            Settings(max_rounds=20, retest=False, **settings),
            plants=[Plant.parse(text) for text in plants],
        )
        return found, rounds

    return run


def test_what_should_be_found_is_found_and_what_cannot_be_is_told(simulated):
    found, rounds = simulated(GPU_NOISE, ["0.1", "0.05", "0.001"])
    ten, five, tiny = found.outcome.notes[-3:]
    assert ten.startswith("planted 10 %: found in 8 of 8 trials (slow-downs of 10 %, ")
    assert five.startswith("planted 5 %: found in 8 of 8 trials (slow-downs of 5 %, ")
    assert tiny.startswith("planted 0.1 %: found in 0 of 8 trials")
    assert tiny.count("attention/nsa forward T=") == 8
    assert found.outcome.counts.get("regressed") is None  # nothing is planted in the check itself
    assert max(rounds.measured.values()) > 4


def test_deviations_count_from_the_noise_floor(simulated):
    found, _ = simulated(0.03, ["3sd"])
    (note,) = found.outcome.notes[-1:]
    assert note.startswith("planted threshold + 3 standard deviations: found in 8 of 8 trials")
    least = min(found.floors.values()) * 100
    smallest = float(note.partition("slow-downs of ")[2].partition(" to")[0])
    assert smallest > max(3, least)


def test_cases_of_one_label_have_floors_of_their_own(simulate, make_row):
    """Two timers of one case: its label does not name the timer."""
    quiet = Case.from_row(make_row(0))
    noisy = replace(quiet, timer="event")
    sources = {"wall": simulate(7, 0.001), "event": simulate(7, 0.1)}

    class Timed(SimulatedRounds):
        def measure(self, cases: list[Case], index: int) -> dict[str, list[Reading]]:
            found: dict[str, list[Reading]] = {BASELINE: [], CANDIDATE: []}
            for case in cases:
                drawn = sources[case.timer].rounds(0, 1, case_id=case.case_id, timer=case.timer)
                for side, readings in ((BASELINE, drawn.baseline), (CANDIDATE, drawn.candidate)):
                    found[side] += [Reading(reading.row, index) for reading in readings]
            return found

    settings = Settings(max_rounds=4, retest=False)
    deviations = Plant(deviations=3)
    found = self_check(Timed(None, []), [noisy, quiet], settings, plants=[deviations])
    assert found.floors[quiet.case_id] < 0.01 < 0.05 < found.floors[noisy.case_id]
    assert len(set(found.labels.values())) == 1
    assert list(found.too_low) == [noisy.case_id]
    with pytest.raises(SettingsError, match="the threshold of 1 of 2 cases is below"):
        refuse_low_thresholds(found)
    raised = deviations.settings(found.outcome.verdicts, found.floors, settings)
    assert [raised.limits(case.case_id, "")[0] for case in (noisy, quiet)] == [
        found.floors[noisy.case_id],
        settings.threshold,
    ]


def test_rounds_are_added_only_where_they_are_wanting(simulate, make_row):
    """The planted case is ambiguous after two rounds; it alone is measured further."""
    cases = [Case.from_row(make_row(i)) for i in range(3)]
    rounds = SimulatedRounds(simulate(1, 0.003), cases)
    settings = Settings(min_rounds=2, max_rounds=30, retest=False)
    found = self_check(rounds, cases, settings)
    before = dict(rounds.measured)
    readings = {BASELINE: [], CANDIDATE: []}
    for index in range(2):
        for side, some in rounds.measure(cases, index).items():
            readings[side] += some
    trials = planted_trials(
        rounds,
        cases,
        readings,
        found.outcome.verdicts[:1],
        found.floors,
        settings,
        Plant(share=0.04),
    )
    assert len(trials.verdicts) == 1
    assert trials.missed == []
    after = {i: n - before[i] for i, n in rounds.measured.items()}
    first, *others = (case.case_id for case in cases)
    assert after[first] == trials.verdicts[0].observations > 2
    assert [after[i] for i in others] == [2, 2]
    assert len({(r.row["case_id"], r.round) for r in readings[BASELINE]}) * 2 == len(
        readings[BASELINE]
    )


def test_rounds_are_asked_for_until_none_is_wanting(simulate, make_row):
    """Further rounds may show more noise than the first ones did, and ask for more."""
    cases = [Case.from_row(make_row(i)) for i in range(6)]
    settings = Settings(min_rounds=4, max_rounds=400)
    said: list[str] = []

    class Restless(SimulatedRounds):
        def measure(self, cases: list[Case], index: int) -> dict[str, list[Reading]]:
            self.source = simulate(3 + index, 0.015 if index < 4 else 0.2)
            return super().measure(cases, index)

    rounds = Restless(None, cases)
    readings, verdicts = measure_rounds(rounds, cases, settings, Clock(), said.append)
    assert verdicts == judge(pair(readings[BASELINE], readings[CANDIDATE], settings), settings)
    needed = rounds_for(verdicts, len(verdicts), settings)
    assert all(verdict.observations >= needed[verdict.case_id] for verdict in verdicts)
    asked = [line for line in said if "need more rounds" in line]
    assert len(asked) > 1, said


def test_at_most_so_many_trials_spread_over_all_cases(simulated, monkeypatch):
    monkeypatch.setattr(planting, "TRIALS", 3)
    found, _ = simulated(GPU_NOISE, ["0.2"], count=8)
    assert "found in 3 of 3 trials" in found.outcome.notes[-1]


def test_a_slower_reading_is_slower_in_every_time(make_row):
    reading = Reading(make_row(0, 2.0, latency_q1_ms=1.0, latency_q3_ms=None), 3)
    found = slower(reading, 0.5)
    assert (found.round, found.latency_ms) == (3, 3.0)
    assert (found.row["latency_q1_ms"], found.row["latency_q3_ms"]) == (1.5, None)
    assert found.row["samples_ms"] == [3.0, 3.0, 3.0]
    assert reading.latency_ms == 2.0


@pytest.mark.parametrize("text", ["", "sd", "0", "-0.1", "5%", "nan", "inf", "3 s"])
def test_other_sizes_are_refused_in_one_line(text):
    with pytest.raises(
        SettingsError, match=r"write a share such as 0\.05, or deviations"
    ) as caught:
        Plant.parse(text)
    assert "\n" not in str(caught.value)


def test_plants_are_of_the_self_check(dynbench):
    code, _, err = dynbench("gate", "--plant", "0.05", "--baseline", "x")
    assert code == 2
    assert "--plant is of the self-check" in err
    code, _, err = dynbench("gate", "--self-check", "--plant", "much")
    assert code == 2
    assert "--plant much: write a share" in err
