"""Peaks are those of the call, to within pages; limits make allocations fail and kill nothing."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch

from dynbench.harness.memory import MemoryMeter

MIB = 2**20


def allocate(mib: int) -> torch.Tensor:
    return torch.ones(mib * MIB, dtype=torch.uint8)


@pytest.mark.parametrize("mib", [1, 16, 100])
def test_peak_is_what_the_call_took(mib):
    meter = MemoryMeter("cpu")
    meter.peak_of(lambda: allocate(1))
    _, peak = meter.peak_of(lambda: allocate(mib))
    assert peak.allocated_bytes == pytest.approx(mib * MIB, abs=2 * MIB)
    assert peak.reserved_bytes is None


def test_memory_taken_after_the_baseline_counts_and_before_it_does_not():
    held = allocate(64)
    meter = MemoryMeter("cpu")
    of_setup = allocate(32)
    _, peak = meter.peak_of(lambda: allocate(16))
    assert peak.allocated_bytes == pytest.approx(48 * MIB, abs=2 * MIB)
    assert held.sum() + of_setup.sum() == 96 * MIB


def test_an_earlier_peak_is_forgotten():
    meter = MemoryMeter("cpu")
    meter.peak_of(lambda: allocate(200))
    _, peak = meter.peak_of(lambda: allocate(8))
    assert peak.allocated_bytes < 12 * MIB


def test_memory_freed_in_small_pieces_is_not_mistaken_for_room():
    meter = MemoryMeter("cpu")
    pieces = [torch.ones(MIB // 16, dtype=torch.uint8) for _ in range(16 * 48)]
    del pieces
    _, peak = meter.peak_of(lambda: allocate(8))
    assert peak.allocated_bytes == pytest.approx(8 * MIB, abs=2 * MIB)


def test_address_space_limit_in_a_process_of_its_own():
    code = """
import torch
from dynbench.harness.memory import limit_address_space
limit = limit_address_space(1 << 30)
torch.empty(1 << 29, dtype=torch.uint8)
try:
    torch.empty(1 << 31, dtype=torch.uint8)
except RuntimeError as error:
    print(limit > 1 << 30, "can't allocate memory" in str(error))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["True", "True"]


def test_device_peaks_are_the_allocators(monkeypatch):
    state = {"held": 100, "peak": 900}

    def reset() -> None:
        state["peak"] = state["held"]

    def call() -> str:
        state["peak"] = max(state["peak"], state["held"] + 50)
        return "result"

    for name in ("synchronize", "empty_cache"):
        monkeypatch.setattr(torch.cuda, name, lambda: None)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda: state["held"])
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda: state["peak"])
    monkeypatch.setattr(torch.cuda, "max_memory_reserved", lambda: 2048)
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", reset)
    meter = MemoryMeter("cuda")
    state["held"] += 30  # what setup holds
    result, peak = meter.peak_of(call)
    assert result == "result"
    assert (peak.allocated_bytes, peak.reserved_bytes) == (80, 2048)
