"""What the gate's tests share: the command line, rows as a run would have written them, and
simulated processes."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from dynbench import cli
from dynbench.harness.case import Case
from dynbench.harness.gate.conditions import Pairing, Reading
from dynbench.harness.schema import complete_row

Row = dict[str, Any]


def _make_row(case: int = 0, latency_ms: float = 1.0, **columns: Any) -> Row:
    """An ok CPU row of the case with this number; a failed one where a status says so."""
    planned = Case(
        suite="attention",
        provider="nsa",
        pass_="forward",
        device=columns.get("device", "cpu"),
        dtype="float32",
        timer="wall",
        workload={"seq_len": 1024 * (case + 1)},
    )
    values = {
        "run_id": "run",
        "status": "ok",
        "latency_ms": latency_ms,
        "samples_ms": [latency_ms] * 3,
        "sample_count": 3,
        "cpu_name": "a CPU",
        "cpu_threads": 2,
        "torch_version": "2.13.0",
        "triton_version": "3.7.1",
        "started_at": "2030-01-01T00:00:00.000+00:00",
        "command": "dynbench run ...",
        **planned.columns(),
        **columns,
    }
    if values["status"] != "ok":
        values["latency_ms"] = values["samples_ms"] = None
    return complete_row(values)


def _make_gpu_row(case: int = 0, latency_ms: float = 1.0, **columns: Any) -> Row:
    gpu = {
        "device": "cuda",
        "gpu_name": "NVIDIA H200",
        "gpu_power_limit_w": 700.0,
        "driver_version": "580.95.05",
        "sm_clock_mhz": 1980.0,
        "throttled_samples": 0,
        "throttle_reasons": [],
    }
    return _make_row(case, latency_ms, **(gpu | columns))


class Simulation:
    """Processes whose medians scatter, as real ones do: each has a speed of its own.

    Noise within a process is left out: what a gate sees of a process is its median.
    """

    def __init__(self, seed: int, noise: float, drift: float = 0.0) -> None:
        self.random = np.random.default_rng(seed)
        self.noise = noise
        self.drift = drift

    def latency_ms(self, change: float = 0.0, time: float = 0.0) -> float:
        """Of one more process, at a time that the machine's drift depends on."""
        log = math.log1p(change) + self.noise * self.random.standard_normal() + self.drift * time
        return math.exp(log)

    def rounds(self, case: int, count: int, change: float = 0.0, **columns: Any) -> Pairing:
        """A-B-B-A rounds of one case; the candidate is slower by ``change``. All are drawn anew."""
        row = _make_row(case, **columns)
        pairing = Pairing(str(row["case_id"]))
        for index in range(count):
            for place, is_candidate in enumerate((False, True, True, False)):
                speed = self.latency_ms(change if is_candidate else 0.0, 4 * index + place)
                side = pairing.candidate if is_candidate else pairing.baseline
                side.append(Reading({**row, "latency_ms": speed}, index))
        return pairing

    def processes(self, case: int, count: int, change: float = 0.0) -> list[Row]:
        """Rows of separate runs of one case."""
        return [_make_row(case, self.latency_ms(change), run_id=f"run-{i}") for i in range(count)]


@pytest.fixture(scope="session")
def make_row() -> Callable[..., Row]:
    return _make_row


@pytest.fixture(scope="session")
def make_gpu_row() -> Callable[..., Row]:
    return _make_gpu_row


@pytest.fixture(scope="session")
def simulate() -> type[Simulation]:
    return Simulation


@pytest.fixture
def dynbench(monkeypatch, capsys, tmp_path):
    """Runs the entry point in this process, in an empty folder: exit code, output, errors."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("GITHUB_STEP_SUMMARY", raising=False)

    def run(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["dynbench", *arguments])
        with pytest.raises(SystemExit) as stop:
            cli.main()
        output = capsys.readouterr()
        return int(stop.value.code or 0), output.out, output.err

    return run
