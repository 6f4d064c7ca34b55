"""Planted providers: each costs its own row and nothing else."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import pytest

from dynbench.harness.case import Case
from dynbench.harness.failure import is_untaken
from dynbench.harness.schema import complete_row
from dynbench.harness.supervisor import Supervisor, WorkerProcess

PREPARE = "planted:prepare"
LIMIT_S = 60.0
CEILINGS = {"cpu": {"float32": [10.0, 0.1]}}  # given, so that no worker measures them

PLANTED = {
    "plain": ("ok", ""),
    "exits": ("error", "worker died: exit code 3"),
    "prints": ("ok", ""),
    "segfaults": ("error", "worker died: SIGSEGV"),
    "oom_slowly": ("out_of_memory", "tried to allocate 1 GiB"),
    "raises": ("error", "ValueError: planted in two lines"),
    "sys_exits": ("error", "the provider called sys.exit: 4"),
    "unavailable": ("unavailable", "package planted is not installed"),
    "unsupported": ("unsupported", "planted serves no such shape"),
    "fails_in_capture": ("unsupported", "planted does not fit into a graph"),
    "killed": ("out_of_memory", "worker killed by SIGKILL"),
    "changes_globals": ("ok", ""),
    "expects_defaults": ("ok", ""),
    "writes_to_pipes": ("error", "worker stopped: unreadable reply"),
    "leaves_child": ("error", "worker died: exit code 5"),
    "closes_pipes": ("error", "worker stopped: it closed its pipe"),
    "misspelt": ("error", "KeyError: 'columns unknown to the schema: bakcend'"),
    "wrong": ("incorrect", "rms error 0.333 is beyond its tolerance"),
}


@pytest.fixture(scope="module")
def sweep(tmp_path_factory):
    """Rows of all planted providers measured one after another, and the workers' process ids."""
    log = tmp_path_factory.mktemp("sweep") / "log"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(Path(__file__).parent))
        patch.setenv("OMP_NUM_THREADS", "1")
        with Supervisor(PREPARE, provider_files=[str(log)], quick=True) as supervisor:
            supervisor.ceilings.update(CEILINGS)
            found = {}
            for size, provider in enumerate(PLANTED, start=1000):
                names = ("planted", provider, "forward", "cpu", "float32", "wall")
                case = Case(*names, {"seq_len": size})
                found[provider] = complete_row(supervisor.measure(case, LIMIT_S))
    return found, pids(log)


@pytest.fixture(scope="module")
def rows(sweep):
    return sweep[0]


def pids(log: Path) -> dict[str, int]:
    lines = [line.split() for line in log.read_text().splitlines()]
    return {name.partition("/")[0]: int(pid) for name, pid in lines}


def is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


@pytest.mark.parametrize("provider", PLANTED)
def test_each_planted_provider_is_its_row(rows, provider):
    status, reason = PLANTED[provider]
    assert rows[provider]["status"] == status, rows[provider]["details"]
    assert (rows[provider]["reason"] or "").startswith(reason)
    assert "\n" not in (rows[provider]["reason"] or "")


def test_every_row_says_where_it_was_measured(rows):
    for row in rows.values():
        assert row["machine_id"] == rows["plain"]["machine_id"]
        assert row["torch_version"]
        assert row["cpu_threads"] == 1


def test_a_good_row_is_whole(rows):
    row = rows["plain"]
    assert row["latency_ms"] > 0
    assert row["sample_count"] == len(row["samples_ms"]) >= 3
    assert row["peak_memory_bytes"] < 2**20
    assert (row["flops"], row["bytes"]) == (2000, 8000)
    assert row["effective_tflops"] > 0
    assert 0 < row["roofline_share"] < 1
    assert row["backend"] == "planted"
    assert row["rms_error"] == 0.0


def test_a_failed_row_keeps_what_was_known(rows):
    assert rows["raises"]["flops"] > 0
    assert rows["raises"]["provider_version"] == "planted 1"
    assert rows["raises"]["latency_ms"] is None
    assert "planted.py" in rows["raises"]["details"]


def test_last_words_are_kept(rows):
    assert "Segmentation fault" in rows["segfaults"]["details"]
    assert "in stage: first call" in rows["segfaults"]["reason"]


def test_a_worker_serves_many_cases_and_is_replaced_after_a_failure(sweep):
    _, pid = sweep
    assert pid["plain"] == pid["exits"] != pid["prints"] == pid["segfaults"]
    assert pid["oom_slowly"] != pid["raises"] == pid["sys_exits"] == pid["unsupported"]
    assert pid["fails_in_capture"] == pid["unsupported"]
    assert pid["killed"] != pid["fails_in_capture"]  # a capture that broke off leaves its mark
    assert not any(map(is_alive, pid.values()))


def test_isolation_keeps_the_ceilings_and_nothing_else(planted, tmp_path):
    log, stages = tmp_path / "log", []
    files = [str(log)]
    with Supervisor(
        PREPARE, provider_files=files, quick=True, isolate=True, on_stage=stages.append
    ) as supervisor:
        rows = [supervisor.measure(planted(name), LIMIT_S) for name in ("plain", "prints")]
        (rates,) = supervisor.ceilings["cpu"].values()
    assert [row["status"] for row in rows] == ["ok", "ok"]
    assert len(set(pids(log).values())) == 2
    assert stages[:3] == ["accepted", "ceilings", "prepare"]
    assert {"first call", "check", "memory", "sampling"} <= set(stages)
    assert stages.count("ceilings") == 1
    assert {row["ceiling_copy_gb_s"] for row in rows} == {rates[0]}


def test_a_worker_ends_with_a_case_that_is_distrusted(planted, tmp_path):
    log = tmp_path / "log"
    with Supervisor(
        PREPARE,
        provider_files=[str(log)],
        quick=True,
        distrust=lambda case: case.provider == "prints",
    ) as supervisor:
        supervisor.ceilings.update(CEILINGS)
        for name in ("plain", "prints", "expects_defaults"):
            assert supervisor.measure(planted(name), LIMIT_S)["status"] == "ok"
    pid = pids(log)
    assert pid["plain"] == pid["prints"] != pid["expects_defaults"]


def test_what_torch_imports_late_is_no_memory_of_a_case(planted):
    """The first torch.autograd.grad of a process imports sympy: over 30 MiB."""
    with Supervisor(PREPARE, quick=True) as supervisor:
        supervisor.ceilings.update(CEILINGS)
        row = supervisor.measure(planted("differentiates"), LIMIT_S)
    assert row["status"] == "ok"
    assert row["peak_memory_bytes"] < 8 * 2**20


def test_hangs_and_deaths_between_cases(planted, tmp_path):
    log = tmp_path / "log"
    with Supervisor(PREPARE, provider_files=[str(log)], quick=True) as supervisor:
        supervisor.ceilings.update(CEILINGS)
        hang = supervisor.measure(planted("hangs"), 1.0)
        assert hang["status"] == "timeout"
        assert hang["reason"].startswith("stopped at its time limit of 1 s (in stage: ")
        assert not is_alive(pids(log)["hangs"])
        assert supervisor.measure(planted("plain"), LIMIT_S)["status"] == "ok"
        os.kill(pids(log)["plain"], signal.SIGKILL)  # no case is running: it costs no row
        assert supervisor.measure(planted("prints"), LIMIT_S)["status"] == "ok"


def test_a_suite_that_cannot_be_imported_is_an_error_row(planted, tmp_path, monkeypatch):
    """Nor does a worker import what happens to lie in the working folder."""
    (tmp_path / "torch.py").write_text("raise ImportError('wrong torch')\n")
    monkeypatch.chdir(tmp_path)
    with Supervisor("nowhere:prepare") as supervisor:
        supervisor.ceilings.update(CEILINGS)
        row = supervisor.measure(planted("plain"), LIMIT_S)
    assert row["status"] == "error"
    assert row["reason"] == "ModuleNotFoundError: No module named 'nowhere'"


def test_workers_that_cannot_start_cost_rows_and_little_time(planted, tmp_path, monkeypatch):
    (tmp_path / "torch.py").write_text("raise ImportError('torch is broken here')\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    began = time.monotonic()
    with Supervisor(PREPARE) as supervisor:
        rows = [supervisor.measure(planted("plain"), LIMIT_S) for _ in range(5)]
    assert {row["status"] for row in rows} == {"error"}
    assert rows[0]["reason"] == "no worker can be started: ImportError: torch is broken here"
    assert rows[0]["machine_id"]
    assert time.monotonic() - began < 20


def test_a_case_whose_workers_die_before_it_is_not_taken(planted, monkeypatch):
    class Mortal(WorkerProcess):
        def request(self, *arguments):
            self.kill()
            return super().request(*arguments)

    monkeypatch.setattr("dynbench.harness.supervisor.WorkerProcess", Mortal)
    with Supervisor(PREPARE, quick=True) as supervisor:
        row = complete_row(supervisor.measure(planted("plain"), LIMIT_S))
    assert is_untaken(row)
    assert "worker killed by SIGKILL" in row["reason"]


def test_a_launched_worker_is_the_one_that_measures(planted, monkeypatch):
    started = []

    class Noted(WorkerProcess):
        def __init__(self, *arguments):
            started.append(self)
            super().__init__(*arguments)

    monkeypatch.setattr("dynbench.harness.supervisor.WorkerProcess", Noted)
    with Supervisor(PREPARE, quick=True) as supervisor:
        supervisor.ceilings.update(CEILINGS)
        supervisor.launch("cpu")
        supervisor.launch("cpu")  # there is one
        assert len(started) == 1
        assert not started[0].machine  # and nothing waited for it
        assert supervisor.measure(planted("plain"), LIMIT_S)["status"] == "ok"
        supervisor.launch("cpu")
        assert len(started) == 1


@pytest.mark.parametrize(("quick", "rest"), [(False, 0.0), (True, 2.0)])
def test_a_failed_case_says_whether_its_gpu_would_have_rested(planted, quick, rest):
    """A gate compares rows of equal conditions: what is broken must not look incomparable."""
    with Supervisor(PREPARE, quick=quick) as supervisor:
        assert supervisor.measure(planted("error", device="cuda"), LIMIT_S)["rest"] == rest
        assert supervisor.measure(planted("error"), LIMIT_S)["rest"] == 0.0


def test_cuda_without_a_gpu_is_unavailable(planted):
    import torch

    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    with Supervisor(PREPARE) as supervisor:
        row = supervisor.measure(planted("plain", device="cuda"), LIMIT_S)
    assert row["status"] == "unavailable"
    assert "no CUDA device" in row["reason"]
