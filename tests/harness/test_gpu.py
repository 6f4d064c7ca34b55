"""The harness on a real GPU; skipped where there is none."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch

from dynbench.harness.case import Case
from dynbench.harness.ceilings import measure_ceilings
from dynbench.harness.gpus import gpu_lane, locked, visible_gpus
from dynbench.harness.graph import Replay, capture_stream, device_bytes
from dynbench.harness.machine import machine_facts
from dynbench.harness.measure import Limits, measure
from dynbench.harness.memory import MemoryMeter, release_memory
from dynbench.harness.nvml import open_device
from dynbench.harness.poison import Block, poison
from dynbench.harness.predict import Predictor
from dynbench.harness.run import RunOptions, run_cases
from dynbench.harness.schema import complete_row, disturbance
from dynbench.harness.store import RunWriter, read_runs
from dynbench.harness.subject import Correctness, Subject, Unavailable, Work
from dynbench.harness.supervisor import Supervisor
from dynbench.harness.timing import StoppingCriterion, make_timer, quantile, take_samples

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")

several_gpus = pytest.mark.skipif(torch.cuda.device_count() < 2, reason="there is one GPU")

MIB = 2**20
ONE = Work(1, 1, 1)


def row_of(subject: Subject, timer: str, limits: Limits | None = None) -> dict:
    case = Case("planted", "subject", "forward", "cuda", "float32", timer, {"seq_len": 1})
    return complete_row(measure(subject, case, {}, None, limits or Limits.quick()))


def near(outputs: torch.Tensor, expected: torch.Tensor) -> Correctness:
    error = (outputs - expected).square().mean().sqrt() / expected.square().mean().sqrt()
    return Correctness(float(error), 1e-4, "all")


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


# Timers


def test_a_replay_is_measured_like_a_call():
    """The peak of memory is that of a call: intermediate results are in it, the graph is not."""
    source = torch.rand(4 * MIB, device="cuda")

    def run() -> torch.Tensor:
        return source.exp().log() + source

    subject = Subject(run, lambda o: near(o, 2 * source), ONE, "1", inputs=source)
    rows = {timer: row_of(subject, timer) for timer in ("event", "graph")}
    assert {row["status"] for row in rows.values()} == {"ok"}
    assert rows["graph"]["sample_count"] >= 3
    assert 0 < rows["graph"]["latency_ms"] < 1.5 * rows["event"]["latency_ms"]
    assert rows["graph"]["peak_memory_bytes"] == rows["event"]["peak_memory_bytes"] >= 32 * MIB


def test_a_replay_spares_the_launches_of_many_short_kernels():
    source = torch.rand(1024, device="cuda")

    def run() -> torch.Tensor:
        x = source
        for _ in range(200):
            x = x + 1
        return x

    subject = Subject(run, lambda o: near(o, source + 200), ONE, "1", inputs=source)
    assert row_of(subject, "graph")["latency_ms"] < row_of(subject, "event")["latency_ms"]


@pytest.mark.parametrize("pass_", ["backward", "forward_backward"])
def test_a_backward_pass_is_captured(pass_):
    leaf = torch.randn(512, 512, device="cuda", requires_grad=True)
    weight, d_out = (torch.randn(512, 512, device="cuda") for _ in range(2))
    kept: list[torch.Tensor] = []

    def keep() -> None:
        kept.append((leaf @ weight).sin())

    def run() -> torch.Tensor:
        y = kept[0] if kept else (leaf @ weight).sin()
        return torch.autograd.grad(y, (leaf,), d_out, retain_graph=bool(kept))[0]

    with torch.no_grad():
        expected = (d_out * (leaf @ weight).cos()) @ weight.T
    setup = keep if pass_ == "backward" else None
    inputs = (leaf, weight, d_out)
    subject = Subject(run, lambda o: near(o, expected), ONE, "1", setup=setup, inputs=inputs)
    row = row_of(subject, "graph")
    assert row["status"] == "ok", row["reason"]


@pytest.mark.parametrize("how", ["keeps its answer", "launches nothing"])
def test_a_replay_that_does_nothing_is_incorrect(how):
    source = torch.rand(MIB, device="cuda")
    kept: list[torch.Tensor] = []

    def run() -> torch.Tensor:
        if how == "keeps its answer":
            if not kept:
                kept.append(source * 3)
            return kept[0]
        out = torch.empty_like(source)
        if not torch.cuda.is_current_stream_capturing():
            torch.mul(source, 3, out=out)
        return out

    subject = Subject(run, lambda o: near(o, 3 * source), ONE, "1", inputs=source)
    assert row_of(subject, "graph")["status"] == "incorrect"


def test_intermediate_results_of_a_replay_are_spoilt():
    """Work left out of a graph shows, though the memory it should write holds what is right."""
    source = torch.rand(MIB, device="cuda")
    places: list[int] = []

    def run() -> torch.Tensor:
        between = torch.empty_like(source)
        places.append(between.data_ptr())
        if not torch.cuda.is_current_stream_capturing():
            between.copy_(source)
        return between * 3

    with capture_stream():
        run()
        replay = Replay(run)
        stale = source.view(torch.uint8)
        device_bytes(places[-1], stale.numel()).copy_(stale)
        assert torch.equal(replay(), source * 3)
        replay.spoil()
        assert replay().isnan().all()


def test_what_cannot_be_captured_is_unsupported_and_the_sweep_goes_on(planted):
    providers = ["plain", "waits_for_device", "plain"]
    with Supervisor("planted:prepare", quick=True) as supervisor:
        cases = [planted(name, 1000 + i, "cuda", "graph") for i, name in enumerate(providers)]
        rows = [complete_row(supervisor.measure(case, 120.0)) for case in cases]
    assert [row["status"] for row in rows] == ["ok", "unsupported", "ok"], rows[0]["reason"]
    assert rows[1]["reason"].startswith("cannot be captured into a CUDA graph: ")
    assert rows[1]["reason"].endswith("; use --timer event")


def test_kernel_times_are_those_between_the_events():
    try:
        kernels = make_timer("proton", "cuda")
    except Unavailable as error:
        pytest.skip(str(error))
    a = torch.randn(4096, 4096, device="cuda")
    small = torch.zeros(1024, device="cuda")
    run = lambda: a @ a  # noqa: E731
    run()
    criterion = StoppingCriterion(max_samples=10)
    events = take_samples(make_timer("event", "cuda"), run, criterion)
    alone = take_samples(kernels, run, criterion)
    assert 0.8 < quantile(alone.ms, 0.5) / quantile(events.ms, 0.5) < 1.1
    assert 0 < kernels.time(lambda: small + 1).ms < 0.03  # without the flush, which takes 0.1 ms


@pytest.mark.parametrize("wanted_ms", [0.05, 5.0])
def test_the_harness_adds_nothing_to_a_kernel(wanted_ms):
    """Copies of 50 us and of 5 ms take what do_bench says, which flushes the cache alike."""
    from triton.testing import do_bench

    trial = torch.rand(64 * MIB, device="cuda")
    elements = int(len(trial) * wanted_ms / do_bench(trial.clone, return_mode="median"))
    source = torch.rand(elements, device="cuda")

    def check(output: torch.Tensor) -> Correctness:
        return Correctness(0.0 if torch.equal(output, source) else float("inf"), 0.0, "all")

    row = row_of(Subject(source.clone, check, ONE, "1", inputs=source), "event", Limits())
    bench_ms = do_bench(source.clone, warmup=500, rep=2000, return_mode="median")
    ratio = row["latency_ms"] / bench_ms
    print(f"{row['latency_ms']:.5f} ms, do_bench {bench_ms:.5f} ms, ratio {ratio:.4f}")
    assert 0.5 < bench_ms / wanted_ms < 2
    assert abs(ratio - 1) <= 0.02


@pytest.mark.parametrize("shared", [False, True])
def test_another_process_on_the_gpu_is_flagged(shared):
    """Needs NVML's utilisation of processes, which some virtual GPUs do not offer."""
    program = (
        "import torch; a = torch.randn(4096, 4096, device='cuda'); b = a @ a\n"
        "torch.cuda.synchronize(); print(flush=True)\n"
        "while True: b = a @ a; torch.cuda.synchronize()"
    )
    command = [sys.executable, "-c", program if shared else "print(flush=True); input()"]
    source = torch.randn(2048, 2048, device="cuda")
    wanted = source @ source
    subject = Subject(lambda: source @ source, lambda out: near(out, wanted), ONE, "matmul")
    criterion = StoppingCriterion(precision=-1, max_samples=10**6, max_seconds=4.0)
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        try:
            assert other.stdout is not None
            other.stdout.readline()
            row = row_of(subject, "event", Limits(criterion=criterion))
        finally:
            other.kill()
    if row["other_gpu_processes"] is None:
        pytest.skip("NVML does not tell what processes use here")
    assert bool(disturbance({**row, "device": "cuda"})) == shared


@several_gpus
def test_a_sweep_over_two_gpus_has_rows_of_both(planted, tmp_path):
    gpus = visible_gpus()[:2]
    cases = [planted("plain", size, "cuda") for size in range(1000, 1006)]
    with locked(gpus, tmp_path):
        run_cases(
            cases,
            RunWriter.create(tmp_path / "runs", "sweep"),
            prepare="planted:prepare",
            options=RunOptions(quick=True),
            predictor=Predictor(lambda case: 1),
            lanes=[gpu_lane(gpu) for gpu in gpus],
        )
    frame, problems = read_runs([tmp_path / "runs"])
    assert problems == []
    assert list(frame["status"]) == ["ok"] * len(cases)
    assert set(frame["gpu_index"]) == {0, 1}
    found = dict(zip(frame["gpu_index"], frame["gpu_uuid_hash"], strict=True))
    assert found == {gpu.index: gpu.uuid_hash for gpu in gpus}  # by NVML in the worker
    assert found[0] != found[1]
    assert (frame.groupby("gpu_index")["gpu_uuid_hash"].nunique() == 1).all()
    if gpus[0].name == gpus[1].name:
        assert frame["machine_id"].nunique() == 1


@several_gpus
def test_telemetry_follows_the_worker_to_its_gpu(planted):
    """The second GPU's worker reads the memory of the second, whatever CUDA calls it there."""
    second = visible_gpus()[1]
    held = torch.empty(4096 * MIB, dtype=torch.uint8, device="cuda:1")
    try:
        rows = {}
        for gpu in visible_gpus()[:2]:
            environment = {**os.environ, **gpu_lane(gpu).environment}
            with Supervisor("planted:prepare", quick=True, environment=environment) as supervisor:
                rows[gpu.index] = supervisor.measure(planted("plain", device="cuda"), 120)
        more = rows[1]["device_memory_bytes"] - rows[0]["device_memory_bytes"]
        assert more > held.numel() // 2
        assert rows[1]["gpu_uuid_hash"] == second.uuid_hash
    finally:
        del held
        torch.cuda.empty_cache()
