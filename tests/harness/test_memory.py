"""Peaks are those of the call, to within pages; limits make allocations fail and kill nothing."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from dynbench.harness.memory import MemoryMeter

MIB = 2**20

# A process's resident set is also what every other thread in it takes, and a test runner has some:
# the peaks are taken where the suite takes them, in a process that does nothing else.
PEAKS = """
import json
import torch
from dynbench.harness.memory import MemoryMeter

MIB = 2**20

def allocate(mib):
    return torch.ones(mib * MIB, dtype=torch.uint8)

def peak_of(mib, meter=None):
    return (meter or MemoryMeter("cpu")).peak_of(lambda: allocate(mib))[1]

MemoryMeter("cpu").peak_of(lambda: allocate(1))
peaks = {f"{mib} MiB": peak_of(mib) for mib in (1, 16, 100)}

held = allocate(64)
meter = MemoryMeter("cpu")
of_setup = allocate(32)
peaks["16 MiB after 32 MiB of setup"] = peak_of(16, meter)
assert held.sum() + of_setup.sum() == 96 * MIB
del held, of_setup

meter = MemoryMeter("cpu")
peak_of(200, meter)
peaks["8 MiB after a call of 200 MiB"] = peak_of(8, meter)

meter = MemoryMeter("cpu")
pieces = [torch.ones(MIB // 16, dtype=torch.uint8) for _ in range(16 * 48)]
del pieces
peaks["8 MiB after 48 MiB freed in pieces"] = peak_of(8, meter)

assert all(peak.reserved_bytes is None for peak in peaks.values())
print(json.dumps({name: peak.allocated_bytes for name, peak in peaks.items()}))
"""


# Whether the kernel may give an array of numpy huge pages: flag hg in proc_pid_smaps(5).
HUGE_PAGES = """
import re
import sys
from dynbench.harness.memory import keep_numpy_off_huge_pages

if sys.argv[1] == "kept off":
    keep_numpy_off_huge_pages()
import numpy

array = numpy.ones(2**23)
inside = array.ctypes.data + 2**20
for line in open("/proc/self/smaps"):
    if bounds := re.match(r"([0-9a-f]+)-([0-9a-f]+) ", line):
        first, end = (int(bound, 16) for bound in bounds.groups())
    elif line.startswith("VmFlags:") and first <= inside < end:
        print("hg" in line.split())
"""


@pytest.mark.skipif(
    not Path("/sys/kernel/mm/transparent_hugepage").exists(), reason="a kernel without huge pages"
)
@pytest.mark.parametrize(("numpy_is", "asks"), [("kept off", "False"), ("as it is", "True")])
def test_numpy_asks_for_no_huge_pages(numpy_is: str, asks: str, monkeypatch) -> None:
    monkeypatch.delenv("NUMPY_MADVISE_HUGEPAGE", raising=False)
    command = [sys.executable, "-c", HUGE_PAGES, numpy_is]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.split() == [asks]


@pytest.fixture(scope="module")
def peaks() -> dict[str, int]:
    done = subprocess.run([sys.executable, "-c", PEAKS], capture_output=True, text=True, check=True)
    found: dict[str, int] = json.loads(done.stdout)
    return found


@pytest.mark.parametrize("mib", [1, 16, 100])
def test_peak_is_what_the_call_took(peaks, mib):
    assert peaks[f"{mib} MiB"] == pytest.approx(mib * MIB, abs=2 * MIB)


def test_memory_taken_after_the_baseline_counts_and_before_it_does_not(peaks):
    assert peaks["16 MiB after 32 MiB of setup"] == pytest.approx(48 * MIB, abs=2 * MIB)


def test_an_earlier_peak_is_forgotten(peaks):
    assert peaks["8 MiB after a call of 200 MiB"] == pytest.approx(8 * MIB, abs=2 * MIB)


def test_memory_freed_in_small_pieces_is_not_mistaken_for_room(peaks):
    assert peaks["8 MiB after 48 MiB freed in pieces"] == pytest.approx(8 * MIB, abs=2 * MIB)


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
