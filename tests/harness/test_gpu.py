"""The harness on a real GPU; skipped where there is none."""

from __future__ import annotations

import pytest
import torch

from dynbench.harness.case import Case
from dynbench.harness.ceilings import measure_ceilings
from dynbench.harness.machine import machine_facts
from dynbench.harness.measure import Limits, measure
from dynbench.harness.memory import MemoryMeter, release_memory
from dynbench.harness.nvml import open_device
from dynbench.harness.poison import Block, poison
from dynbench.harness.schema import complete_row
from dynbench.harness.subject import Correctness, Subject, Work
from dynbench.harness.supervisor import Supervisor
from dynbench.harness.timing import StoppingCriterion, make_timer, take_samples

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")

MIB = 2**20


def test_event_times_are_those_of_the_device():
    a = torch.randn(4096, 4096, device="cuda")
    run = lambda: a @ a  # noqa: E731
    run()
    events = take_samples(make_timer("event", "cuda"), run, StoppingCriterion(max_samples=20))
    walls = take_samples(make_timer("wall", "cuda"), run, StoppingCriterion(max_samples=20))
    assert 0.01 < min(events.ms) < 1.5 * min(walls.ms)


@pytest.mark.parametrize("mib", [2, 64])
def test_peaks_are_exact(mib):
    meter = MemoryMeter("cuda")
    _, peak = meter.peak_of(lambda: torch.empty(mib * MIB, dtype=torch.uint8, device="cuda"))
    assert peak.allocated_bytes == mib * MIB
    assert peak.reserved_bytes >= mib * MIB


def test_poisoned_memory_is_what_the_next_output_gets():
    release_memory("cuda")
    block = Block((4096, 1024), torch.bfloat16, torch.device("cuda", 0))
    poison([block])
    assert torch.empty(block.shape, dtype=block.dtype, device="cuda").isnan().all()


@pytest.mark.parametrize("size", [1000, 2**20, 2**25])
def test_an_output_left_unwritten_is_incorrect(size):
    """Its memory follows that of an intermediate result, so it is not where the last one was."""
    calls = []

    def run() -> torch.Tensor:
        calls.append(1)
        between = torch.full((size,), 1.0, device="cuda")
        return between * 3 if len(calls) == 1 else torch.empty(size, device="cuda")

    def check(output: torch.Tensor) -> Correctness:
        return Correctness(float((output - 3).square().mean().sqrt() / 3), 1e-3, "all")

    case = Case("planted", "lazy", "forward", "cuda", "float32", "event", {"seq_len": size})
    row = measure(Subject(run, check, Work(1, 1, 1), "lazy"), case, {}, None, Limits.quick())
    assert row["status"] == "incorrect"


def test_ceilings_are_plausible():
    ceilings = measure_ceilings("cuda", "bfloat16")
    assert 100 < ceilings.copy_gb_s < 20_000
    assert 5 < ceilings.matmul_tflops < 5_000


def test_facts_and_nvml():
    row = complete_row(machine_facts("cuda"))
    for name in ("gpu_name", "gpu_uuid_hash", "gpu_memory_bytes", "cuda_version", "machine_id"):
        assert row[name], name
    device = open_device()
    if device is None:
        pytest.skip("NVML is hidden here")
    assert row["driver_version"]
    assert device.memory_used_bytes() > 0


def test_faults_of_the_device_cost_one_row_each(planted):
    providers = ["plain", "faults_on_device", "plain", "oom_on_device", "plain"]
    with Supervisor("planted:prepare", quick=True) as supervisor:
        cases = [planted(name, 1000 + i, "cuda") for i, name in enumerate(providers)]
        rows = [complete_row(supervisor.measure(case, 120.0)) for case in cases]
    statuses = [row["status"] for row in rows]
    assert statuses == ["ok", "error", "ok", "out_of_memory", "ok"]
    assert "CUDA error" in rows[1]["reason"]
    good = rows[-1]
    assert good["latency_ms"] > 0
    assert good["sm_clock_mhz"] is None or good["sm_clock_mhz"] > 100
    assert good["reserved_memory_bytes"] > 0
    assert good["ceiling_copy_gb_s"] > 100
