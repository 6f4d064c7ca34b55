"""Whole sweeps: every case a row, budgets, resuming, Ctrl-C and kill -9."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from dynbench.harness import run as run_module
from dynbench.harness.lanes import Lane
from dynbench.harness.predict import Predictor
from dynbench.harness.run import (
    CaseStarted,
    LaneEnded,
    RowFinished,
    RunOptions,
    RunStarted,
    StageStarted,
    run_cases,
)
from dynbench.harness.store import OutputError, RunWriter, read_runs

PREPARE = "planted:prepare"
CEILINGS = {"cpu": {"float32": [10.0, 0.1]}}
HERE = Path(__file__).parent


@pytest.fixture(autouse=True)
def _given_ceilings(monkeypatch):
    """Ceilings known beforehand, so that no worker spends its first second on them."""

    class Supervisor(run_module.Supervisor):
        def __init__(self, *arguments, **more) -> None:
            super().__init__(*arguments, **more)
            self.ceilings.update(CEILINGS)

    monkeypatch.setattr(run_module, "Supervisor", Supervisor)


def sweep(root, cases, *, writer=None, predictor=None, lanes=None, **options):
    events = []
    summary = run_cases(
        cases,
        writer or RunWriter.create(root, "sweep"),
        prepare=PREPARE,
        options=RunOptions(quick=True, **options),
        predictor=predictor or Predictor(lambda case: 1),
        lanes=lanes or [Lane()],
        on_event=events.append,
    )
    frame, problems = read_runs([root])
    assert problems == []
    return frame, summary, events


def test_a_sweep_goes_on_whatever_a_case_does(planted, tmp_path):
    providers = ["plain", "exits", "segfaults", "hangs", "raises", "prints"]
    cases = [planted(provider) for provider in providers]
    writer = RunWriter.create(tmp_path, "sweep")
    frame, summary, events = sweep(
        tmp_path,
        [*cases, planted("plain")],  # the same case twice is one case
        writer=writer,
        timeout_s=3.0,
        command_for=lambda case: case.provider,
    )
    assert list(frame["provider"]) == providers
    assert list(frame["status"]) == ["ok", "error", "error", "timeout", "error", "ok"]
    assert summary.counts == {"ok": 2, "error": 3, "timeout": 1}
    assert list(frame["command"]) == providers
    assert list(frame["case_id"]) == [case.case_id for case in cases]
    for column in ("run_id", "machine_id", "started_at", "load_average", "python_version"):
        assert frame[column].notna().all(), column
    assert list(frame["started_at"]) == sorted(frame["started_at"])

    facts = json.loads((writer.path / "run.json").read_text())
    assert facts["planned_cases"] == 6
    assert facts["ceilings"] == CEILINGS
    assert isinstance(events[0], RunStarted)
    assert [e.index for e in events if isinstance(e, CaseStarted)] == list(range(6))
    finished = [e for e in events if isinstance(e, RowFinished)]
    assert [(e.done, e.total) for e in finished] == [(i, 6) for i in range(1, 7)]
    assert finished[-1].seconds_left == 0
    assert all(e.seconds_left > 0 for e in finished[:-1])
    assert any(isinstance(e, StageStarted) and e.stage == "sampling" for e in events)


def test_cases_over_the_budget_are_skipped_rows(planted, tmp_path):
    predictor = Predictor(lambda case: int(case.workload["seq_len"]) * 10**9)
    predictor.observe(planted("plain", 1), {"latency_ms": 1.0})
    predictor.observe(planted("prints", 1), {"latency_ms": 1e6})
    cases = [planted("prints", 2), planted("plain", 2)]
    frame, summary, events = sweep(tmp_path, cases, budget_s=60.0, predictor=predictor)
    assert list(frame["status"]) == ["skipped", "ok"]
    assert "of the budget of 60 s are left" in frame["reason"][0]
    assert frame["machine_id"].notna().all()
    assert summary.counts == {"skipped": 1, "ok": 1}
    assert [e.case.provider for e in events if isinstance(e, CaseStarted)] == ["plain"]


class Optimist(Predictor):
    """Expects a case to take no time, so that none is skipped before it starts.

    Starting a worker counts against the budget, and on a slow host nothing may be left after it.
    """

    def case_seconds(self, case):
        return 0.0


def test_a_case_that_outruns_the_budget_is_stopped(planted, tmp_path):
    predictor = Optimist(lambda case: 1)
    began = time.monotonic()
    frame, _, _ = sweep(tmp_path, [planted("hangs")], budget_s=4.0, predictor=predictor)
    assert list(frame["status"]) == ["skipped"]
    assert list(frame["reason"]) == ["the budget of 4 s ended while it ran"]
    assert time.monotonic() - began < 20


@pytest.mark.parametrize(
    ("budget_s", "elapsed_s", "reason"),
    [
        (4.0, 3.3, "predicted 1.2 s, but 0.7 s of the budget of 4 s are left"),
        (4.0, 5.0, "predicted 1.2 s, but 0.0 s of the budget of 4 s are left"),
        (4.0, 2.7, ""),
        (60.0, 20.2, "predicted 1200 s, but 40 s of the budget of 60 s are left"),
        (None, 1e9, ""),
    ],
)
def test_a_reason_tells_the_prediction_from_what_is_left(budget_s, elapsed_s, reason):
    predicted_s = 1200.0 if budget_s == 60.0 else 1.2
    assert run_module.over_budget(predicted_s, budget_s, elapsed_s) == reason


def test_a_case_at_its_own_limit_is_a_timeout_whatever_the_budget(planted, tmp_path):
    predictor = Predictor(lambda case: 1, sample_s=0.0)
    cases = [planted("hangs")]
    frame, _, _ = sweep(tmp_path, cases, budget_s=60.0, timeout_s=1.0, predictor=predictor)
    assert list(frame["status"]) == ["timeout"]


def test_a_row_of_another_version_is_measured_again(planted, tmp_path):
    log, root = tmp_path / "log", tmp_path / "runs"
    cases = [planted("plain"), planted("hangs"), planted("prints")]
    with RunWriter.create(root, "sweep") as writer:
        path = writer.path
    for versions in (
        {"plain": "planted", "hangs": "one"},  # planted.py says "planted 1"
        {"plain": "planted", "hangs": "one"},
        {"plain": "edited", "hangs": "one"},
        {"plain": "planted", "hangs": "two"},
    ):
        with RunWriter.resume(path) as writer:
            sweep(
                root,
                cases,
                writer=writer,
                provider_files=(str(log),),
                timeout_s=1.5,
                version_of=lambda case, versions=versions: versions.get(case.provider),
            )
    assert measured_by(tmp_path / "log", suffix="") == [
        *("plain", "hangs", "prints"),
        "plain",
        "hangs",
    ]


def test_a_resumed_run_measures_what_is_missing_and_what_was_skipped(planted, tmp_path):
    log = tmp_path / "log"
    root = tmp_path / "runs"
    cases = [planted(p) for p in ("plain", "raises", "prints")]
    writer = RunWriter.create(root, "sweep")
    path = writer.path
    sweep(root, cases[:2], writer=writer, provider_files=(str(log),))
    with RunWriter.resume(path) as again:
        skipped = {**cases[2].columns(), "status": "skipped"}
        again.append(skipped)
        frame, summary, _ = sweep(root, cases, writer=again, provider_files=(str(log),))
    assert list(frame["provider"]) == ["plain", "raises", "prints"]
    assert list(frame["status"]) == ["ok", "error", "ok"]
    assert (summary.already_done, summary.counts) == (2, {"ok": 1})
    assert [line.split("/")[0] for line in log.read_text().splitlines()] == [
        "plain",
        "raises",
        "prints",
    ]


def test_a_resumed_run_measures_cases_that_no_worker_took(planted, tmp_path, monkeypatch):
    """A full disk or a driver that was being updated: starting a worker failed for a while."""
    root, broken = tmp_path / "runs", tmp_path / "broken"
    cases = [planted(p) for p in ("plain", "raises")]
    broken.mkdir()
    (broken / "torch.py").write_text("raise ImportError('torch is broken here')\n")
    writer = RunWriter.create(root, "sweep")
    with monkeypatch.context() as patch:
        patch.setenv("PYTHONPATH", str(broken))
        frame, *_ = sweep(root, cases, writer=writer)
    assert set(frame["reason"]) == {"no worker can be started: ImportError: torch is broken here"}
    with RunWriter.resume(writer.path) as again:
        frame, summary, _ = sweep(root, cases, writer=again)
    assert list(frame["status"]) == ["ok", "error"]
    assert frame["reason"][1].startswith("ValueError: planted")
    assert summary.already_done == 0
    with RunWriter.resume(writer.path) as third:
        assert len(third.finished_rows()) == 2


def test_facts_of_a_suite_do_not_move_a_row(planted):
    columns = {"case_id": "other", "provider": "other", "backend": "blockwise"}
    assert run_module.without_identity(columns) == {"backend": "blockwise"}


def test_a_disk_that_refuses_ends_the_run_and_keeps_its_rows(planted, tmp_path, monkeypatch):
    writer = RunWriter.create(tmp_path, "sweep")
    append, calls = writer.append, []

    def refuse_the_second(row):
        calls.append(1)
        if len(calls) == 2:
            raise OutputError("disk full")
        return append(row)

    monkeypatch.setattr(writer, "append", refuse_the_second)
    with pytest.raises(OutputError):
        sweep(tmp_path, [planted("plain"), planted("prints")], writer=writer)
    frame, _ = read_runs([tmp_path])
    assert list(frame["provider"]) == ["plain"]
    RunWriter.resume(writer.path).close()


def start(root: Path, resume: bool, *providers: str, lanes: int = 1) -> subprocess.Popen:
    environment = {**os.environ, "PYTHONPATH": str(HERE), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(HERE / "sweep_planted.py"), str(root)]
    command += [str(int(resume)), str(lanes)]
    return subprocess.Popen(
        [*command, *providers], env=environment, stdout=subprocess.PIPE, text=True
    )


def measured_by(root: Path, suffix: str = ".log") -> list[str]:
    lines = Path(f"{root}{suffix}").read_text().splitlines()
    return [line.partition("/")[0] for line in lines]


def wait_for_death(pid: int) -> None:
    for _ in range(100):
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return
        if "\nState:\tZ" in Path(f"/proc/{pid}/status").read_text():
            return
        time.sleep(0.05)
    raise AssertionError(f"process {pid} lives on")


def worker_pids(root: Path) -> set[int]:
    return {int(line.split()[1]) for line in Path(f"{root}.log").read_text().splitlines()}


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT])
def test_stopped_in_mid_sweep_and_resumed(tmp_path, how):
    root = tmp_path / "runs"
    process = start(root, False, "plain", "raises", "hangs", "prints")
    assert process.stdout.readline() == "plain ok\n"
    assert process.stdout.readline() == "raises error\n"
    while "hangs" not in measured_by(root):
        time.sleep(0.05)
    process.send_signal(how)
    process.wait(timeout=30)
    assert process.returncode != 0
    for pid in worker_pids(root):  # a killed parent takes its worker along
        wait_for_death(pid)

    frame, problems = read_runs([root])
    assert problems == []
    assert list(frame["provider"]) == ["plain", "raises"]
    (folder,) = root.iterdir()
    assert (folder / "rows.parquet").exists() is (how == signal.SIGINT)

    # the same sweep with the hanging case repaired: its place in the list makes it the same case
    again = start(root, True, "plain", "raises", "slow", "prints")
    out, _ = again.communicate(timeout=60)
    assert again.returncode == 0
    assert out == "slow ok\nprints ok\n"
    assert measured_by(root) == ["plain", "raises", "hangs", "slow", "prints"]
    frame, problems = read_runs([root])
    assert problems == []
    assert list(frame["provider"]) == ["plain", "raises", "slow", "prints"]
    assert sorted(p.name for p in folder.iterdir()) == ["rows.parquet", "run.json"]


def two_lanes(**environment: str) -> list[Lane]:
    """Two planted devices; ``environment`` is that of the second one's workers."""
    return [
        Lane(
            f"GPU {index}",
            {"PLANTED_BACKEND": f"device {index}", **(environment if index else {})},
            {"gpu_index": index, "gpu_uuid_hash": f"card {index}"},
            f"card {index}",
            ("--gpus", str(index)),
        )
        for index in range(2)
    ]


def test_two_devices_share_a_sweep(planted, tmp_path):
    """Each has a worker of its own at the same time; each workload is measured by one of them."""
    log = tmp_path / "log"
    cases = [planted(p, size) for size in (1000, 1001, 1002, 1003) for p in ("slow", "raises")]
    frame, summary, events = sweep(
        tmp_path / "runs",
        cases,
        lanes=two_lanes(),
        provider_files=(str(log),),
        command_for=lambda case: "repeat it",
    )
    assert list(frame["case_id"]) == [case.case_id for case in cases]  # in the order of the plan
    assert summary.counts == {"ok": 4, "error": 4}
    assert set(frame["gpu_index"]) == {0, 1}
    assert (frame["gpu_uuid_hash"] == "card " + frame["gpu_index"].astype(str)).all()
    ok = frame[frame["status"] == "ok"]
    assert (ok["backend"] == "device " + ok["gpu_index"].astype(str)).all()
    assert (frame["command"] == "repeat it --gpus " + frame["gpu_index"].astype(str)).all()
    assert (frame.groupby("workload_id")["gpu_index"].nunique() == 1).all()
    pids = {line.split()[1] for line in log.read_text().splitlines()}
    assert len(pids) == 2
    assert len(log.read_text().splitlines()) == len(cases)
    assert sorted(e.index for e in events if isinstance(e, CaseStarted)) == list(range(8))
    finished = [e for e in events if isinstance(e, RowFinished)]
    assert [(e.done, e.total) for e in finished] == [(i, 8) for i in range(1, 9)]
    assert {e.lane for e in finished} == {"GPU 0", "GPU 1"}
    assert all(e.lane == f"GPU {e.row['gpu_index']}" for e in finished)
    assert finished[-1].seconds_left == 0


def test_a_device_without_a_worker_leaves_its_cases_to_the_other(planted, tmp_path):
    (tmp_path / "torch.py").write_text("raise ImportError('torch is broken here')\n")
    broken = {"PYTHONPATH": os.pathsep.join([str(tmp_path), os.environ["PYTHONPATH"]])}
    cases = [planted("slow", size) for size in range(1000, 1004)]
    frame, summary, events = sweep(tmp_path / "runs", cases, lanes=two_lanes(**broken))
    assert summary.counts == {"ok": 4}
    assert set(frame["gpu_index"]) == {0}
    (ended,) = [e for e in events if isinstance(e, LaneEnded)]
    assert ended.lane == "GPU 1"
    assert "torch is broken here" in ended.reason


def test_a_failure_in_one_lane_ends_all_and_keeps_the_rows(planted, tmp_path, monkeypatch):
    writer = RunWriter.create(tmp_path, "sweep")
    append, rows = writer.append, []

    def refuse_the_second(row):
        rows.append(row)
        if len(rows) == 2:
            raise OutputError("disk full")
        return append(row)

    monkeypatch.setattr(writer, "append", refuse_the_second)
    cases = [planted("hangs", 1000), planted("plain", 1001), planted("plain", 1002)]
    with pytest.raises(OutputError, match="disk full"):
        sweep(tmp_path, cases, writer=writer, lanes=two_lanes())
    frame, _ = read_runs([tmp_path])
    assert list(frame["provider"]) == ["plain"]


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT])
def test_two_lanes_stopped_in_mid_sweep_and_resumed(tmp_path, how):
    root = tmp_path / "runs"
    process = start(root, False, "plain", "hangs", "hangs", lanes=2)
    assert process.stdout.readline() == "plain ok\n"
    while measured_by(root).count("hangs") < 2:
        time.sleep(0.05)
    process.send_signal(how)
    process.wait(timeout=30)
    assert process.returncode != 0
    assert len(worker_pids(root)) == 2
    for pid in worker_pids(root):
        wait_for_death(pid)
    frame, problems = read_runs([root])
    assert problems == []
    assert list(frame["provider"]) == ["plain"]

    again = start(root, True, "plain", "slow", "prints", lanes=2)
    out, _ = again.communicate(timeout=60)
    assert again.returncode == 0
    assert sorted(out.splitlines()) == ["prints ok", "slow ok"]
    frame, problems = read_runs([root])
    assert problems == []
    assert list(frame["provider"]) == ["plain", "slow", "prints"]


def test_a_budget_counts_for_all_lanes_together(planted, tmp_path):
    predictor = Predictor(lambda case: int(case.workload["seq_len"]) * 10**9)
    predictor.observe(planted("plain", 1), {"latency_ms": 1.0})
    predictor.observe(planted("prints", 1), {"latency_ms": 1e6})
    cases = [planted("prints", 2), planted("plain", 3), planted("plain", 4)]
    frame, summary, _ = sweep(
        tmp_path, cases, budget_s=60.0, predictor=predictor, lanes=two_lanes()
    )
    assert list(frame["status"]) == ["skipped", "ok", "ok"]
    assert frame["gpu_index"].notna().all()
    assert summary.counts == {"skipped": 1, "ok": 2}


@pytest.mark.parametrize("stages", [False, True])
def test_stages_are_asked_of_the_worker(planted, tmp_path, stages):
    frame, _, events = sweep(tmp_path, [planted("plain")], stages=stages)
    assert frame["status"].tolist() == ["ok"]
    assert frame["stages_ms"].tolist() == ['{"doubling": 0.25}' if stages else None]
    assert stages == any(isinstance(e, StageStarted) and e.stage == "stages" for e in events)


def test_what_a_case_keeps_lies_beside_its_row(tmp_path, planted):
    """Only of a row that is ok; and where it cannot be written, there is no such row."""
    names = ("keeps", "wrong", "keeps_nothing", "plain")
    frame, _, events = sweep(tmp_path, [planted(name) for name in names])
    (folder,) = tmp_path.iterdir()
    assert (folder / "keeps.txt").read_text() == f"{folder.name} 1000"
    assert not (folder / "wrong.txt").exists()
    status = dict(zip(frame["provider"], frame["status"], strict=True))
    assert status == dict(zip(names, ("ok", "incorrect", "error", "ok"), strict=True))
    reasons = dict(zip(frame["provider"], frame["reason"], strict=True))
    assert "planted: the disk is full" in reasons["keeps_nothing"]
    assert {e.stage for e in events if isinstance(e, StageStarted)} >= {"keep"}


def test_a_long_call_that_is_stopped_leaves_what_it_told(tmp_path, planted):
    frame, _, events = sweep(tmp_path, [planted("keeps_and_hangs")], timeout_s=2.0)
    where = "run, half of it"
    reason = f"stopped at its time limit of 2 s (in stage: {where})"
    assert frame[["status", "reason"]].to_numpy().tolist() == [["timeout", reason]]
    assert where in [e.stage for e in events if isinstance(e, StageStarted)]
    (folder,) = tmp_path.iterdir()
    assert (folder / "keeps_and_hangs.txt").read_text() == f"{folder.name} 1000"
