"""Gates on stored rows, retests, accepting, and how many rounds follow from the noise."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from dynbench.harness.case import Case
from dynbench.harness.gate import baselines, gating
from dynbench.harness.gate.conditions import Reading
from dynbench.harness.gate.errors import InvalidData, NothingToCompare, SettingsError
from dynbench.harness.gate.rounds import BASELINE, CANDIDATE, Side
from dynbench.harness.gate.settings import Settings
from dynbench.harness.gate.verdicts import CaseVerdict, Verdict, judge
from dynbench.harness.rowfiles import write_parquet

TOMORROW = datetime.now(UTC).date() + timedelta(days=1)


@pytest.fixture
def stored(tmp_path, simulate):
    """Writes rows as a parquet file, and returns its path; and saves a baseline of three cases."""
    source = simulate(11, 0.005)
    rows = [row for case in range(3) for row in source.processes(case, 5)]
    rows = [{**row, "git_commit": "c0ffee" * 6 + "abcd"} for row in rows]
    baselines.save(tmp_path / "baselines", "main", rows, [])

    def write(name: str, *changes: float, count: int = 5, **columns) -> Path:
        rows = [
            {**row, **columns}
            for case, change in enumerate(changes)
            for row in source.processes(case, count, change)
        ]
        write_parquet(rows, tmp_path / name)
        return tmp_path / name

    write.main = baselines.find(tmp_path / "baselines", "main")
    return write


def gate(stored, path: Path, *patterns: str, **settings):
    return gating.gate_stored(stored.main, path, Settings(**settings), patterns)


def test_fresh_rows_of_the_same_code_pass(stored):
    outcome = gate(stored, stored("same.parquet", 0.0, 0.0, 0.0))
    assert (outcome.exit_code, outcome.counts) == (0, {"unchanged": 3})


def test_a_slow_down_is_a_regression_and_says_how_to_confirm_it(stored):
    outcome = gate(stored, stored("slow.parquet", 0.0, 0.1, 0.0))
    assert outcome.exit_code == 1
    (verdict,) = outcome.blocking
    assert 0.08 < verdict.change < 0.12
    assert outcome.notes == ["to confirm: dynbench gate --rev c0ffeec0ffee --baseline main"]


def test_rows_of_another_machine_are_nothing_to_compare(stored):
    outcome = gate(stored, stored("other.parquet", 0.0, 0.0, 0.0, cpu_name="another"))
    assert (outcome.exit_code, outcome.counts) == (3, {"incomparable": 3})
    assert "cpu_name is 'another', the baseline has 'a CPU'" in outcome.verdicts[0].reason


def test_a_missing_case_is_a_regression_unless_all_are_missing(stored):
    assert gate(stored, stored("two.parquet", 0.0, 0.0)).exit_code == 1
    path = stored("other.parquet", 0.0, 0.0, 0.0, case_id="0" * 16)
    outcome = gate(stored, path)
    assert outcome.exit_code == 3
    assert outcome.counts == {"missing": 3, "incomparable": 1}


def test_patterns_leave_other_cases_out(stored):
    path = stored("slow.parquet", 0.0, 0.1, 0.0)
    assert gate(stored, path, "*T=1k*").exit_code == 0
    assert gate(stored, path, "*T=2k*", "*T=1k*").exit_code == 1
    with pytest.raises(NothingToCompare, match="names no case"):
        gate(stored, path, "*T=9k*")


def test_single_runs_get_a_note(stored):
    saved = baselines.read(stored.main)[::5]
    baselines.save(stored.main.path.parent, "main", saved, [])
    outcome = gate(stored, stored("same.parquet", 0.0, 0.0, 0.0, count=1))
    assert outcome.counts == {"ambiguous": 3}
    assert "3 of 3 cases have one process on each side" in outcome.notes[0]
    assert outcome.exit_code == 0


def test_unreadable_rows_are_invalid_data(stored, tmp_path):
    path = stored("same.parquet", 0.0, 0.0, 0.0)
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(InvalidData, match=r"candidate .*same.parquet.*truncated"):
        gate(stored, path)
    with pytest.raises(InvalidData, match="does not exist"):
        gate(stored, tmp_path / "nothing")


# Retest


def verdict(kind: Verdict, change: float = 0.0) -> CaseVerdict:
    blocks = kind == Verdict.REGRESSED
    return CaseVerdict("ab" * 8, "a case", kind, "why", blocks, change=change)


@pytest.mark.parametrize("second", [Verdict.UNCHANGED, Verdict.AMBIGUOUS, Verdict.IMPROVED])
def test_what_does_not_recur_is_ambiguous(second):
    first = verdict(Verdict.REGRESSED, 0.05)
    (found,) = gating.confirmed([first], [verdict(second, 0.01)])
    assert (found.verdict, found.blocks) == (Verdict.AMBIGUOUS, False)
    assert found.reason == f"regressed (+5.0 %) at first, {second} (+1.0 %) in the retest"


def test_what_recurs_blocks_and_what_was_not_flagged_stays():
    first = verdict(Verdict.REGRESSED, 0.05)
    (found,) = gating.confirmed([first], [verdict(Verdict.REGRESSED, 0.06)])
    assert (found.blocks, found.notes) == (True, ("and in the retest: regressed (+6.0 %)",))
    quiet = verdict(Verdict.UNCHANGED)
    assert gating.confirmed([quiet], []) == [quiet]
    assert gating.confirmed([first], []) == [first]


# Accepting


def test_an_accepted_slow_down_lets_the_gate_pass(stored):
    path = stored("slow.parquet", 0.0, 0.1, 0.0)
    outcome = gate(stored, path)
    accepted, entry = gating.accept(stored.main, outcome, "*T=2k*", "exact softmax", TOMORROW)
    assert accepted.exit_code == 0
    assert entry["reason"] == "exact softmax"
    stored.main = baselines.find(stored.main.path.parent, "main")
    again = gate(stored, stored("slow-again.parquet", 0.0, 0.1, 0.0))
    assert (again.exit_code, again.counts["regressed"]) == (0, 1)
    assert "1 of them accepted" in again.headline
    assert gate(stored, stored("slower.parquet", 0.0, 0.2, 0.0)).exit_code == 1


@pytest.mark.parametrize(
    ("case", "reason", "days", "complaint"),
    [
        ("*T=9k*", "why", 1, "is no case here"),
        ("*", "why", 1, "means 3 cases"),
        ("*T=1k*", "why", 1, "there is nothing to accept"),
        ("*T=2k*", " ", 1, "needs a --reason"),
        ("*T=2k*", "why", -2, "is past"),
    ],
)
def test_accepting_needs_one_slow_case_a_reason_and_a_day(stored, case, reason, days, complaint):
    outcome = gate(stored, stored("slow.parquet", 0.0, 0.1, 0.0))
    with pytest.raises(SettingsError, match=complaint):
        gating.accept(stored.main, outcome, case, reason, TOMORROW + timedelta(days=days - 1))
    assert baselines.find(stored.main.path.parent, "main").accepted == []


# Cases and rounds


def test_cases_of_a_baseline_are_those_that_were_measured(stored, make_row):
    rows = baselines.read(stored.main)
    cases = gating.cases_of(rows, [])
    assert {case.case_id for case in cases} == {row["case_id"] for row in rows}
    measured = make_row(0, backend="blockwise")  # a fact that the case did not name
    assert [c.case_id for c in gating.cases_of([measured], [])] == [measured["case_id"]]
    foreign = make_row(0, case_id="0" * 16)
    with pytest.raises(NothingToCompare, match="can be measured here"):
        gating.cases_of([foreign], [])
    with pytest.raises(NothingToCompare, match="names no case"):
        gating.cases_of(rows, ["*sdpa*"])


def test_planned_cases_are_filtered():
    cases = [
        Case("attention", "nsa", pass_, "cpu", "float32", "wall", {"seq_len": 1024})
        for pass_ in ("forward", "backward")
    ]
    assert gating.filter_cases(cases, []) == cases
    assert gating.filter_cases(cases, ["* backward *"]) == cases[1:]
    with pytest.raises(NothingToCompare, match="did you mean"):
        gating.filter_cases(cases, ["attention/nsa forwrd T=1k float32"])


def planned(pairing, settings: Settings) -> int:
    return gating.rounds_for(judge([pairing], settings), 1, settings)[pairing.case_id]


def test_rounds_follow_from_the_noise(simulate):
    settings = Settings(min_rounds=4, max_rounds=500)
    assert planned(simulate(3, 0.001).rounds(0, 4), settings) == 4
    noisy = [planned(simulate(3, noise).rounds(0, 4), settings) for noise in (0.02, 0.04, 0.08)]
    assert 4 < noisy[0] < noisy[1] < noisy[2]
    assert planned(simulate(3, 0.5).rounds(0, 4), settings) == 500
    assert planned(simulate(3, 0.001).rounds(0, 4, change=0.5), settings) == 4


@dataclass
class FakeRounds:
    """Rounds of one case, 10 ms before and 12 ms now, 0.4 % of noise, drawn and not measured.

    Rows of the rounds named by ``marked`` have these ``columns``, too.
    """

    source: Any
    marked: frozenset[int]
    columns: dict[str, Any]
    stage: str = ""
    measured: list[tuple[str, int]] = field(default_factory=list)
    sides = {BASELINE: Side("old"), CANDIDATE: Side("new")}  # noqa: RUF012

    def measure(self, cases: list[Case], index: int) -> dict[str, list[Reading]]:
        self.measured.append((self.stage, index))
        columns = self.columns if index in self.marked and not self.stage else {}
        drawn = self.source.rounds(0, 1, 0.2, samples_ms=None)
        return {
            side: [
                Reading({**r.row, "latency_ms": 10 * r.latency_ms, **columns}, index)
                for r in readings
            ]
            for side, readings in ((BASELINE, drawn.baseline), (CANDIDATE, drawn.candidate))
        }


DISTURBED = {"other_cpu_share": 0.5}
THROTTLED = {"throttled_samples": 3, "throttle_reasons": ["hw_slowdown"]}


@pytest.fixture
def in_rounds(simulate, make_row):
    """A gate whose rounds of these numbers are marked by these columns: its verdict, the rounds."""

    def run(marked, columns, **settings):
        rounds = FakeRounds(simulate(5, 0.004), frozenset(marked), columns)
        case = Case.from_row(make_row(0))
        outcome = gating.gate_rounds(rounds, [case], Settings(**settings))
        first = [index for stage, index in rounds.measured if not stage]
        assert first == list(range(len(first)))
        return outcome.verdicts[0], len(first)

    return run


@pytest.mark.parametrize(
    ("marked", "columns"),
    [({0}, DISTURBED), ({1, 3}, DISTURBED), ({0, 1, 2}, THROTTLED), (range(4), THROTTLED)],
)
def test_rounds_that_do_not_count_are_measured_in_addition(in_rounds, marked, columns):
    verdict, count = in_rounds(marked, columns)
    assert (verdict.verdict, verdict.blocks) == (Verdict.REGRESSED, True)
    assert verdict.not_counting == len(marked)
    assert verdict.observations == count - len(marked) >= 4


def test_no_round_is_added_where_all_count(in_rounds):
    verdict, count = in_rounds((), {})
    assert (verdict.verdict, verdict.not_counting, count) == (Verdict.REGRESSED, 0, 4)


@pytest.mark.parametrize(
    ("columns", "kind", "reason"),
    [
        (DISTURBED, Verdict.AMBIGUOUS, "slower by more than 3 %, but 16 of 16 rounds disturbed"),
        (THROTTLED, Verdict.INVALID, "16 of 16 rounds throttled"),
    ],
)
def test_where_no_round_counts_the_most_are_measured(in_rounds, columns, kind, reason):
    verdict, count = in_rounds(range(100), columns)
    assert (verdict.verdict, verdict.blocks, count) == (kind, False, 16)
    assert verdict.reason.startswith(reason)
    assert in_rounds(range(100), columns, max_rounds=4)[1] == 4


def test_the_note_says_what_the_rounds_can_find(simulate):
    settings = Settings()
    verdicts = judge([simulate(3, 0.01).rounds(i, 8) for i in range(3)], settings)
    note = gating.noise_note(verdicts, settings)
    assert note.startswith("rounds: 8 for each case; noise of a round ")
    assert "with 95 % chance: from " in note
    assert gating.noise_note([], settings) == ""
    low = judge([simulate(3, 0.001).rounds(0, 8)], settings)
    assert "from 3." in gating.noise_note(low, replace(settings, power=0.9))
