"""A-B-B-A rounds of two revisions in worktrees of a real repository, by real processes."""

from __future__ import annotations

import json
import shutil
import subprocess
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from dynbench.harness.case import Case
from dynbench.harness.gate import gating, selfcheck
from dynbench.harness.gate.errors import InvalidData, NothingToCompare, SettingsError
from dynbench.harness.gate.outcome import Outcome
from dynbench.harness.gate.revision import versions
from dynbench.harness.gate.rounds import (
    BASELINE,
    CANDIDATE,
    Clock,
    Progress,
    Rounds,
    Side,
    gate_folder_for,
    read_side,
)
from dynbench.harness.gate.settings import Settings
from dynbench.harness.gate.verdicts import Verdict
from dynbench.harness.run import RunOptions
from dynbench.harness.store import read_rows

PACKAGE = "tinylib"
LIBRARY = """
import time

def steady(source):
    time.sleep(0.01)
    return source * 2

def slowed(source):
    time.sleep({seconds})
    return source * 2

def broken(source):
    return source * {factor}
"""
CASES = [
    Case("tiny", provider, "forward", "cpu", "float32", "wall", {"seq_len": 64})
    for provider in ("steady", "slowed", "broken")
]
# the machine that runs the tests may be busy: only a plain difference is asked for
SETTINGS = Settings(
    min_rounds=2, max_rounds=2, threshold=0.5, confidence=0.8, max_other_cpu_share=1.0
)


@dataclass
class Gate:
    """One finished gate: what it found, and what it left behind."""

    outcome: Outcome
    rounds: Rounds
    commits: tuple[str, str]
    digests: dict[str, str]
    progress: list[Progress]
    said: list[str]


def git(folder: Path, *arguments: str) -> str:
    who = ["-c", "user.name=test", "-c", "user.email=test@example.org"]
    command = ["git", "-C", str(folder), *who, *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


@pytest.fixture(scope="module")
def gate(tmp_path_factory) -> Gate:
    """Revision two sleeps ten times as long as revision one, and gets one function wrong."""
    repository = tmp_path_factory.mktemp("repository")
    git(repository, "init", "-q")
    (repository / PACKAGE).mkdir()
    for seconds, factor in ((0.02, 2), (0.2, 3)):
        source = LIBRARY.format(seconds=seconds, factor=factor)
        (repository / PACKAGE / "__init__.py").write_text(source)
        git(repository, "add", "-A")
        git(repository, "commit", "-q", "-m", f"sleep {seconds}")
    progress: list[Progress] = []
    said: list[str] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(Path(__file__).parent))
        patch.setenv("OMP_NUM_THREADS", "1")
        with versions(repository, "HEAD~1..HEAD", PACKAGE) as (old, new):
            digests = {BASELINE: old.digest, CANDIDATE: new.digest}
            rounds = Rounds(
                folder=gate_folder_for(tmp_path_factory.mktemp("gates"), digests),
                sides={
                    BASELINE: Side(old.name, old.environment, old.columns),
                    CANDIDATE: Side(new.name, new.environment, new.columns),
                },
                prepare="tinysuite:prepare",
                options=RunOptions(quick=True, timeout_s=60),
                on_progress=progress.append,
            )
            rounds._ceilings["cpu"] = {"float32": [10.0, 0.1]}  # spares a second in each process
            outcome = gating.gate_rounds(rounds, CASES, SETTINGS, say=said.append)
            commits = (str(old.commit), str(new.commit))
    return Gate(outcome, rounds, commits, digests, progress, said)


def found(outcome: Outcome) -> dict[str, Verdict]:
    return {v.label.split()[0].removeprefix("tiny/"): v.verdict for v in outcome.verdicts}


def test_the_slow_down_and_the_wrong_result_are_found_and_the_rest_is_not(gate):
    verdicts = found(gate.outcome)
    assert verdicts["slowed"] == Verdict.REGRESSED
    assert verdicts["broken"] == Verdict.INVALID
    assert verdicts["steady"] in (Verdict.UNCHANGED, Verdict.AMBIGUOUS)
    assert gate.outcome.exit_code == 1
    assert [v.label.split()[0] for v in gate.outcome.blocking] == ["tiny/slowed", "tiny/broken"]


def test_flagged_cases_and_no_others_were_measured_again(gate):
    retested, _ = read_side(gate.rounds.folder, CANDIDATE, "retest")
    assert {r.row["provider"] for r in retested} == {"slowed", "broken"}
    assert gate.said[0].startswith("2 flagged, measured again: ")
    assert gate.outcome.notes[-1] == "retest: 2 of 2 flagged cases recurred"
    slowed, broken = gate.outcome.blocking
    assert slowed.notes[-1].startswith("and in the retest: regressed (+")
    assert broken.notes[-1] == "and in the retest: invalid"
    assert "(4 of 4 rows)" in broken.reason


def test_rows_say_which_code_they_measured(gate):
    for side, commit in zip((BASELINE, CANDIDATE), gate.commits, strict=True):
        readings, problems = read_side(gate.rounds.folder, side)
        assert problems == []
        assert {r.row["git_commit"] for r in readings} == {commit}
        assert not any(r.row["git_dirty"] for r in readings)


def test_cases_go_through_four_fresh_processes_in_mirrored_order(gate):
    readings = {side: read_side(gate.rounds.folder, side)[0] for side in (BASELINE, CANDIDATE)}
    taken = sorted(
        (r.row["started_at"], r.round, r.row["provider"], side, r.row["run_id"])
        for side, found in readings.items()
        for r in found
    )
    orders = {
        (index, provider): "".join(
            "AB"[side == CANDIDATE] for _, i, p, side, _ in taken if (i, p) == (index, provider)
        )
        for _, index, provider, _, _ in taken
    }
    assert set(orders.values()) == {"ABBA", "BAAB"}
    assert {order for (index, _), order in orders.items() if index == 0} == {"ABBA"}
    assert [provider for _, index, provider, *_ in taken if index == 0] == [
        case.provider for case in CASES for _ in range(4)
    ]
    assert len({run_id for *_, run_id in taken}) == 8
    last = [p for p in gate.progress if p.stage == "" and p.round == 1][-1]
    assert (last.done, last.total) == (12, 12)


def test_a_finished_gate_is_judged_again_without_measuring(gate):
    before = sorted(path.stat().st_mtime_ns for path in gate.rounds.folder.rglob("*.parquet"))
    nothing = replace(gate.rounds, prepare="there_is:none")
    again = gating.gate_rounds(nothing, CASES, SETTINGS)
    assert again.verdicts == gate.outcome.verdicts
    stored = gating.gate_folder(gate.rounds.folder, SETTINGS)
    assert stored.verdicts == gate.outcome.verdicts
    after = sorted(path.stat().st_mtime_ns for path in gate.rounds.folder.rglob("*.parquet"))
    assert after == before


def test_patterns_pick_cases_of_a_finished_gate(gate):
    folder = gate.rounds.folder
    (steady,) = gating.gate_folder(folder, SETTINGS, ["tiny/steady*"]).verdicts
    assert steady == gate.outcome.verdicts[0]
    (broken,) = gating.gate_folder(folder, SETTINGS, [CASES[2].case_id[:8]]).verdicts
    assert broken == gate.outcome.verdicts[2]
    with pytest.raises(NothingToCompare, match="--case tiny/stedy: names no case; known: tiny"):
        gating.gate_folder(folder, SETTINGS, ["tiny/stedy"])


def test_one_round_more_is_all_that_is_measured(gate, tmp_path, monkeypatch):
    """Resuming a gate that was cut off: rows that are there are kept, whatever they say."""
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    folder = tmp_path / gate.rounds.folder.name
    shutil.copytree(gate.rounds.folder, folder)
    for path in (folder / CANDIDATE).glob("*-001-*"):
        shutil.rmtree(path)
    broken = replace(gate.rounds, folder=folder, prepare="there_is:none")
    again = gating.gate_rounds(broken, CASES[:1], replace(SETTINGS, retest=False))
    (verdict,) = again.verdicts
    assert (verdict.verdict, verdict.blocks) == (Verdict.INVALID, True)
    assert "(2 of 4 rows)" in verdict.reason
    assert "there_is" in verdict.reason


def test_only_a_gate_of_the_same_code_is_resumed(gate, tmp_path):
    root = gate.rounds.folder.parent
    assert gate_folder_for(root, gate.digests, resume=True) == gate.rounds.folder
    assert gate_folder_for(gate.rounds.folder, gate.digests, resume=True) == gate.rounds.folder
    with pytest.raises(SettingsError, match="measured other code"):
        gate_folder_for(root, {**gate.digests, CANDIDATE: "changed"}, resume=True)
    with pytest.raises(SettingsError, match="no gate in"):
        gate_folder_for(tmp_path, gate.digests, resume=True)


def test_a_self_check_derives_noise_floors_and_refuses_lower_thresholds(gate):
    """The steady case, as if both sides were one version: all its rows are there already."""
    found = selfcheck.self_check(gate.rounds, CASES[:1], SETTINGS)
    (floor,) = found.floors.values()
    (verdict,) = found.outcome.verdicts
    assert floor == pytest.approx(max(verdict.high, 1 / (1 + verdict.low) - 1))
    above = selfcheck.self_check(gate.rounds, CASES[:1], replace(SETTINGS, threshold=floor + 0.001))
    selfcheck.refuse_low_thresholds(above)
    below = selfcheck.self_check(gate.rounds, CASES[:1], replace(SETTINGS, threshold=floor / 2))
    with pytest.raises(SettingsError, match=r"noise floor, .*tiny/steady.*set threshold = "):
        selfcheck.refuse_low_thresholds(below)


def test_a_self_check_counts_false_alarms_before_and_after_the_retest(gate):
    """The slowed case stands for a false alarm that recurs: its rows are all there already."""
    found = selfcheck.self_check(gate.rounds, CASES, SETTINGS)
    assert "comparisons of identical code: 2; regressed: 1 before the retest, 1 after it" in (
        found.outcome.notes
    )
    once = replace(SETTINGS, retest=False)
    assert selfcheck.self_check(gate.rounds, CASES[:1], once).outcome.notes[-1] == (
        "comparisons of identical code: 1; regressed: 0 before the retest, 0 after it"
    )


def test_an_alarm_that_does_not_recur_is_none_after_the_retest(gate):
    before = [v for v in gate.outcome.verdicts if v.verdict == Verdict.REGRESSED]
    calm = [replace(v, verdict=Verdict.UNCHANGED, blocks=False) for v in before]
    after = gating.confirmed(before, calm)
    assert selfcheck.false_alarms_note(before, after) == (
        "comparisons of identical code: 1; regressed: 1 before the retest, 0 after it"
    )


def test_a_torn_round_is_invalid_data(gate, tmp_path):
    folder = tmp_path / gate.rounds.folder.name
    shutil.copytree(gate.rounds.folder, folder)
    parquet = sorted(folder.rglob("*.parquet"))[0]
    parquet.write_bytes(parquet.read_bytes()[:300])
    with pytest.raises(InvalidData, match="truncated"):
        gating.gate_folder(folder, SETTINGS)
    (parquet.parent / "run.json").unlink()
    with pytest.raises(InvalidData, match="no round of a gate"):
        gating.gate_folder(folder, SETTINGS)
    with pytest.raises(InvalidData, match="holds no rounds"):
        gating.gate_folder(tmp_path, SETTINGS)


def cut_off(run: Path, lines: int) -> None:
    """Leave so many rows of a run in its journal, the next torn, as kill -9 may."""
    parquet = run / "rows.parquet"
    rows, _ = read_rows([run])
    parquet.unlink()
    whole = [json.dumps({k: v for k, v in row.items() if v is not None}) for row in rows]
    text = "".join(f"{line}\n" for line in whole[:lines])
    if lines < len(whole):
        text += whole[lines][:100]
    (run / "rows.jsonl").write_text(text)


@pytest.fixture
def interrupted(gate, tmp_path) -> Path:
    """A copy of the gate's folder, without the retest."""
    folder = tmp_path / gate.rounds.folder.name
    shutil.copytree(gate.rounds.folder, folder)
    for path in folder.glob("*/*-retest-*"):
        shutil.rmtree(path)
    return folder


def test_an_interrupted_gate_is_judged_by_what_it_has(interrupted):
    """Killed in its second round, and in a third one while workers started."""
    for path in interrupted.glob("*/*-001-*"):
        cut_off(path, lines=1)
    begun = interrupted / BASELINE / f"{interrupted.name}-002-0"
    begun.mkdir()
    facts = json.loads((begun.parent / f"{interrupted.name}-001-1" / "run.json").read_text())
    (begun / "run.json").write_text(json.dumps({**facts, "round": 2}))
    stored = gating.gate_folder(interrupted, SETTINGS)
    steady, slowed, broken = stored.verdicts
    assert (steady.observations, slowed.observations) == (2, 1)
    assert slowed.reason.startswith("only 1 complete round")
    assert broken.verdict == Verdict.INVALID
    assert stored.notes == [f"rounds read from {interrupted}"]
    with (begun.parent / f"{interrupted.name}-001-1" / "rows.jsonl").open("a") as journal:
        journal.write("\nno row\n")
    with pytest.raises(InvalidData, match="is no row"):
        gating.gate_folder(interrupted, SETTINGS)


def test_a_gate_killed_before_its_first_row_is_nothing_to_compare(interrupted):
    for path in interrupted.rglob("*.parquet"):
        path.unlink()
    next(interrupted.rglob("run.json")).write_text("{}")  # cut off before it was told the round
    assert gating.gate_folder(interrupted, SETTINGS).exit_code == 3


def test_a_case_that_one_side_never_came_to_is_not_missing(interrupted):
    """Killed in its first round, after the first process of the second case."""
    for path in interrupted.glob("*/*-001-*"):
        shutil.rmtree(path)
    for path in interrupted.glob("*/*-000-*"):
        cut_off(path, lines=2 if path.name.endswith("-0") else 1)
    stored = gating.gate_folder(interrupted, SETTINGS)
    assert [v.label.split()[0] for v in stored.verdicts] == ["tiny/steady"]
    assert stored.exit_code == 0
    assert stored.notes[-1].endswith("turn of one side: 1 of 2 cases (--resume goes on)")


def test_no_case_is_nothing_to_compare(gate):
    with pytest.raises(NothingToCompare, match="no case"):
        gating.gate_rounds(gate.rounds, [], SETTINGS)


def test_a_clock_lets_rounds_begin_that_fit():
    assert Clock(None).fits()
    clock = Clock(10.0)
    assert clock.fits()
    clock.longest_s = 11.0
    assert not clock.fits()
