"""What the device reaches at best: copy bandwidth and matrix product rate, measured in this run.

The roofline is drawn from these two numbers and from no table of datasheets: they hold for this
device, its clocks today and its number of threads. Both are the best of several rounds, since a
ceiling is what is possible, not what is usual.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

from dynbench.harness.machine import available_memory_bytes

_CPU_COPY_BYTES = 256 * 2**20
_CPU_SECONDS = 0.2  # each of the two measurements
_GPU_COPY_BYTES = 2**30
_GPU_ROUNDS = 20


@dataclass(frozen=True)
class Ceilings:
    """Best rates measured. The copy counts both what is read and what is written."""

    copy_gb_s: float
    matmul_tflops: float

    def roofline_seconds(self, flops: float, moved_bytes: float) -> float:
        """Least time for this work: whichever of arithmetic and traffic takes longer."""
        return max(flops / (self.matmul_tflops * 1e12), moved_bytes / (self.copy_gb_s * 1e9))


def measure_ceilings(device: str, dtype: str) -> Ceilings:
    """Measure both ceilings on ``cpu`` or ``cuda`` for ``dtype`` (``float32``, ``bfloat16``, ...).

    Takes about a second. Raises what torch raises where the device has too little memory.
    """
    if device == "cuda":
        return Ceilings(_gpu_copy_gb_s(), _gpu_matmul_tflops(dtype))
    return Ceilings(_cpu_copy_gb_s(), _cpu_matmul_tflops(dtype))


def _cpu_copy_gb_s() -> float:
    import torch

    # far beyond a core's caches, far below what a small machine has
    size = min(_CPU_COPY_BYTES, available_memory_bytes() // 16)
    source = torch.ones(size, dtype=torch.uint8)
    target = torch.zeros_like(source)  # touched, so that no page fault falls into the copy
    return 2 * size / _best_seconds(lambda: target.copy_(source)) / 1e9


def _cpu_matmul_tflops(dtype: str) -> float:
    import torch

    generator = torch.Generator().manual_seed(0)

    def seconds_of(side: int) -> float:
        shape = (side, side)
        a, b = (torch.randn(shape, generator=generator).to(getattr(torch, dtype)) for _ in "ab")
        out = a @ b
        return _best_seconds(lambda: torch.mm(a, b, out=out), _CPU_SECONDS / 3)

    side, best = 256, 0.0
    while True:  # grow until one product takes long enough to hide its start-up
        seconds = seconds_of(side)
        best = max(best, 2 * side**3 / seconds / 1e12)
        if seconds > _CPU_SECONDS / 16 or side >= 2048:
            return best
        side *= 2


def _best_seconds(call: Callable[[], object], limit_s: float = _CPU_SECONDS) -> float:
    """Least duration of ``call`` on the host clock, over at least three rounds."""
    call()
    seconds: list[float] = []
    while len(seconds) < 3 or sum(seconds) < limit_s:
        began = time.perf_counter()
        call()
        seconds.append(time.perf_counter() - began)
    return min(seconds)


def _gpu_copy_gb_s() -> float:
    import torch

    free, _ = torch.cuda.mem_get_info()
    size = min(_GPU_COPY_BYTES, free // 8)
    source = torch.ones(size, dtype=torch.uint8, device="cuda")
    target = torch.empty_like(source)
    return 2 * size / _best_event_seconds(lambda: target.copy_(source)) / 1e9


def _gpu_matmul_tflops(dtype: str) -> float:
    import torch

    side = 4096 if dtype == "float32" else 8192
    generator = torch.Generator(device="cuda").manual_seed(0)
    a, b = (
        torch.randn(side, side, device="cuda", generator=generator).to(getattr(torch, dtype))
        for _ in "ab"
    )
    out = a @ b
    return 2 * side**3 / _best_event_seconds(lambda: torch.mm(a, b, out=out)) / 1e12


def _best_event_seconds(call: Callable[[], object]) -> float:
    """Least duration of ``call`` on the device's clock."""
    import torch

    for _ in range(3):
        call()
    marks = [
        (torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True))
        for _ in range(_GPU_ROUNDS)
    ]
    for begin, end in marks:
        begin.record()
        call()
        end.record()
    torch.cuda.synchronize()
    return min(begin.elapsed_time(end) for begin, end in marks) / 1e3
