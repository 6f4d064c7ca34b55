"""A project's own pytest suite that measures cases, run as its owner would run it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from dynbench.harness.curves import read_curves
from dynbench.harness.gate import baselines
from dynbench.harness.gate.gating import gate_stored
from dynbench.harness.gate.settings import Settings
from dynbench.harness.store import list_runs, read_rows, read_runs

SPEED = """
from dynbench.suites.pytest_plugin import parametrize

@parametrize(seq="128", providers="sdpa,dynnsiha", device="cpu", query_tile="16", passes="forward")
def test_speed(case, dynbench_case):
    row = dynbench_case(case)
    assert row["status"] == "ok" and row["rms_error"] <= row["rms_tolerance"]
"""
TRAINING = """
import torch
from dynbench.suites.pytest_plugin import parametrize

def test_that_leaves_torch_otherwise():
    torch.set_grad_enabled(False)
    torch.set_default_dtype(torch.float64)
    torch.manual_seed(7)

@parametrize(suite="quality", task="copy", seq="32", train_steps=2, providers="sdpa", device="cpu",
             q_heads=1, kv_heads=1, head_dim=8, layers=1, batch=1)
def test_training(case, dynbench_case):
    before = torch.get_rng_state()
    assert dynbench_case(case)["status"] == "ok"
    assert not torch.is_grad_enabled() and torch.get_default_dtype() == torch.float64
    assert torch.equal(torch.get_rng_state(), before)
"""
OWN = """
import torch
from dynbench.suites.pytest_plugin import parametrize
from dynbench.suites.plan import plan

FILES = ["wrong.py"]

@parametrize(seq="128", providers="flash", device="cpu", passes="forward")
def test_not_here(case, dynbench_case):
    dynbench_case(case)

@parametrize(seq="128", providers="sdpa", provider_files=FILES, device="cpu", passes="forward")
def test_own(case, dynbench_case):
    dynbench_case(case, FILES)
"""


def run_pytest(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    # A suite of its own, not of a worker of this one: there pytest-benchmark would stand aside.
    environment = {k: v for k, v in os.environ.items() if not k.startswith("PYTEST_")}
    return subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *arguments],
        cwd=folder,
        env={**environment, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=180,
    )


@pytest.fixture(scope="module")
def project(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("project")
    (folder / "test_speed.py").write_text(SPEED)
    return folder


def test_rows_lie_beside_the_plugins_numbers_and_the_gate_reads_them(project):
    for out in ("old", "new"):
        done = run_pytest(
            project,
            f"--dynbench-out={out}",
            "--benchmark-json=numbers.json",
            "--benchmark-max-time=0.1",
        )
        assert done.returncode == 0, done.stdout + done.stderr
        assert f"dynbench: rows in {out}/" in done.stdout
    frame, problems = read_runs([project / "new"])
    assert problems == []
    assert list(frame["provider"]) == ["sdpa", "dynnsiha"]
    assert list(frame["status"]) == ["ok", "ok"]
    assert frame["samples_ms"].map(len).min() >= 3
    assert frame["command"].str.contains("dynbench run --suite attention").all()
    (run,) = list_runs(project / "new")

    numbers = json.loads((project / "numbers.json").read_text())["benchmarks"]
    by_case = {row["case_id"]: row for row in frame.to_dict("records")}
    assert len(numbers) == len(by_case) == 2
    for one in numbers:
        ours = one["extra_info"]["dynbench"]
        assert ours["run_id"] == run.run_id
        assert ours["latency_ms"] == by_case[ours["case_id"]]["latency_ms"]
        # the same calls: of one magnitude, on whatever machine
        assert 0.02 < one["stats"]["median"] * 1e3 / ours["latency_ms"] < 50

    settings = Settings(assumed_noise=1.0, max_other_cpu_share=1.0)  # two runs tell no noise
    outcome = gate_stored(baselines.find(project, "old", [project]), project / "new", settings)
    assert outcome.exit_code == 0
    assert {v.case_id for v in outcome.verdicts} == set(by_case)
    assert all(v.baseline_ms and v.candidate_ms for v in outcome.verdicts)


def test_a_training_is_called_once_and_other_tests_settings_are_no_part_of_it(tmp_path):
    (tmp_path / "test_training.py").write_text(TRAINING)
    done = run_pytest(tmp_path, "--benchmark-json=numbers.json")
    assert done.returncode == 0, done.stdout + done.stderr
    (one,) = json.loads((tmp_path / "numbers.json").read_text())["benchmarks"]
    assert (one["stats"]["rounds"], one["stats"]["iterations"]) == (1, 1)
    (run,) = list_runs(tmp_path / "dynbench-results")
    (row,) = read_rows([run.path])[0]
    assert one["extra_info"]["dynbench"]["case_id"] == row["case_id"]
    assert {record["case_id"] for record in read_curves(run.path)} == {row["case_id"]}


@pytest.mark.parametrize("arguments", [["-p", "no:benchmark"], ["--benchmark-disable"]])
def test_rows_need_no_other_plugin(project, arguments, tmp_path):
    done = run_pytest(project, f"--dynbench-out={tmp_path}", "-k", "sdpa", *arguments)
    assert done.returncode == 0, done.stdout + done.stderr
    frame, _ = read_runs([tmp_path])
    assert list(frame["status"]) == ["ok"]


def test_failures_are_rows_and_outcomes_of_tests(tmp_path):
    (tmp_path / "test_own.py").write_text(OWN)
    (tmp_path / "wrong.py").write_text("def attention(q, k, v):\n    return q * 0 + 1\n")
    done = run_pytest(tmp_path, "-rs", "--benchmark-max-time=0.1")
    assert done.returncode == 1, done.stdout + done.stderr
    assert "1 failed, 1 passed, 1 skipped" in done.stdout
    assert "incorrect: rms error" in done.stdout
    frame, _ = read_runs([tmp_path / "dynbench-results"])
    assert list(frame["status"]) == ["unavailable", "ok", "incorrect"]


def test_a_suite_without_cases_is_left_alone(tmp_path):
    """The plugin is loaded in every pytest session: it must cost nothing there."""
    (tmp_path / "test_other.py").write_text(
        "import sys\n\ndef test_it():\n    assert not {'torch', 'pandas'} & set(sys.modules)\n"
    )
    done = run_pytest(tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "dynbench" not in done.stdout
    assert not (tmp_path / "dynbench-results").exists()
