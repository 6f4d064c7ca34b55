"""The roofline and the two rates behind it."""

from __future__ import annotations

import time

import pytest

from dynbench.harness.ceilings import Ceilings, measure_ceilings


def test_roofline_takes_the_slower_of_the_two():
    ceilings = Ceilings(copy_gb_s=100.0, matmul_tflops=2.0)
    assert ceilings.roofline_seconds(4e12, 1e9) == pytest.approx(2.0)
    assert ceilings.roofline_seconds(2e9, 300e9) == pytest.approx(3.0)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_measured_rates_are_plausible_and_quick(dtype):
    began = time.perf_counter()
    ceilings = measure_ceilings("cpu", dtype)
    assert time.perf_counter() - began < 10
    assert 0.5 < ceilings.copy_gb_s < 5000
    assert 0.0005 < ceilings.matmul_tflops < 500
