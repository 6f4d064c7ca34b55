"""Torch's profiler: a real trace of a call on the CPU, and the form of a GPU's trace."""

from __future__ import annotations

import gzip
import json

import pytest
import torch

from dynbench.harness.profile.trace import CALL, device_kernels, record_trace


def event(cat: str, name: str, ts: float, dur: float, **args: object) -> dict:
    return {"ph": "X", "cat": cat, "name": name, "ts": ts, "dur": dur, "args": args}


def gpu_trace() -> list[dict]:
    """Two calls that launch a kernel twice each and copy once; a flush before each call."""
    events: list[dict] = [{"ph": "M", "name": "process_name", "args": {"name": "python"}}]
    for call, begin in enumerate((1000.0, 9000.0)):
        events.append(event("user_annotation", CALL, begin, 500.0))
        events.append(event("gpu_user_annotation", CALL, begin + 90, 300.0))
        launches = [("flush", -200.0, 80.0), ("gemm", 10.0, 100.0), ("gemm", 20.0, 140.0)]
        for place, (name, after, dur) in enumerate(launches):
            key = 10 * call + place
            runtime = "cuda_driver" if place == 2 else "cuda_runtime"
            events.append(event(runtime, "launch", begin + after, 5.0, correlation=key))
            details = {"registers per thread": 100 + place, "shared memory": 1024 * place}
            # the device's clock is behind the host's: its times alone would mislead
            events.append(
                event("kernel", name, begin + after + 250, dur, correlation=key, **details)
            )
        events.append(event("cuda_runtime", "launch", begin + 30, 5.0, correlation=10 * call + 5))
        events.append(
            event("gpu_memcpy", "Memcpy DtoD", begin + 600, 2.0, correlation=10 * call + 5)
        )
    return events


def test_kernels_of_a_gpu_belong_to_the_call_that_launched_them():
    gemm, copy = device_kernels(gpu_trace(), calls=2)
    assert (gemm.name, gemm.kind, gemm.calls) == ("gemm", "kernel", 2)
    assert gemm.time_ms == pytest.approx(0.240)
    assert (gemm.registers, gemm.shared_bytes) == (102, 2048)
    assert (copy.name, copy.kind, copy.calls, copy.registers) == ("Memcpy DtoD", "copy", 1, None)


def test_a_kernel_without_a_launch_counts_by_its_own_time():
    events = [event("user_annotation", CALL, 0.0, 100.0)]
    events += [event("kernel", "inside", 50.0, 3.0), event("kernel", "after", 150.0, 3.0)]
    assert [kernel.name for kernel in device_kernels(events, 1)] == ["inside"]


def test_operators_of_a_real_call(tmp_path):
    a = torch.randn(256, 256)
    calls: list[int] = []

    def run() -> torch.Tensor:
        calls.append(1)
        return torch.relu(a @ a) @ a

    path = tmp_path / "trace.json.gz"
    found = {kernel.name: kernel for kernel in record_trace(run, "cpu", 3, path)}
    assert len(calls) == 4  # one of them in a session that is thrown away
    assert found["aten::mm"].calls == 2
    assert found["aten::relu"].calls == 1
    assert {kernel.kind for kernel in found.values()} == {"operator"}
    assert CALL not in found
    with gzip.open(path, "rt") as trace:
        names = [event.get("name") for event in json.load(trace)["traceEvents"]]
    assert names.count(CALL) == 3
    assert names.count("aten::mm") == 6
