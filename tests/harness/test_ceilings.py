"""The roofline and the two rates behind it."""

from __future__ import annotations

import time
import timeit
from collections.abc import Callable

import pytest
import torch

from dynbench.harness.ceilings import Ceilings, measure_ceilings


def test_roofline_takes_the_slower_of_the_two():
    ceilings = Ceilings(copy_gb_s=100.0, matmul_tflops=2.0)
    assert ceilings.roofline_seconds(4e12, 1e9) == pytest.approx(2.0)
    assert ceilings.roofline_seconds(2e9, 300e9) == pytest.approx(3.0)


def best_seconds(call: Callable[[], object]) -> float:
    call()
    return min(timeit.repeat(call, number=1, repeat=5))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_measured_rates_are_those_of_this_machine_and_quick(dtype):
    """Against timings of smaller tensors: how fast a host is depends on it, and on its load."""
    began = time.perf_counter()
    ceilings = measure_ceilings("cpu", dtype)
    assert time.perf_counter() - began < 10
    source = torch.ones(2**25, dtype=torch.uint8)
    target = torch.zeros_like(source)
    gb_s = 2 * len(source) / best_seconds(lambda: target.copy_(source)) / 1e9
    a = torch.ones(256, 256, dtype=getattr(torch, dtype))
    tflops = 2 * 256**3 / best_seconds(lambda: a @ a) / 1e12
    assert gb_s / 20 < ceilings.copy_gb_s < 20 * gb_s
    assert tflops / 20 < ceilings.matmul_tflops < 20 * tflops
