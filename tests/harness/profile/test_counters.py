"""What ncu writes, in the form of its versions; counting itself needs a GPU."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest

from dynbench.harness.profile import counters
from dynbench.harness.profile.counters import METRICS, counted_kernels, find_ncu, ncu_command
from dynbench.harness.subject import Unavailable

NAMES = ("ID", "Process ID", "Process Name", "Host Name", "Kernel Name", *METRICS)
UNITS = ("", "", "", "", "", "byte", "byte", "ns", "register/thread", "byte/block", "byte/block")


def line(*cells: object) -> str:
    return ",".join(f'"{cell}"' for cell in cells)


def log(*launches: tuple[object, ...], units: tuple[str, ...] = UNITS) -> str:
    rows = [line(i, 77, "python", "127.0.0.1", *launch) for i, launch in enumerate(launches)]
    begin = ["==PROF== Connected to process 77 (/usr/bin/python3)"]
    return "\n".join([*begin, line(*NAMES), line(*units), *rows, "==PROF== Disconnected"])


def test_launches_of_a_kernel_are_added_up():
    text = log(
        ('copy<float, "x">(int)'.replace('"', '""'), 2048, 1024, 5000, 32, 0, 512),
        ("gemm", "1,000,000", 500, "20,000", 168, 1024, "66,560"),
        ("gemm", 10, 5, 10_000, 168, 1024, 66_560),
    )
    gemm, copy = counted_kernels(text)
    assert (gemm.name, gemm.calls, gemm.time_ms) == ("gemm", 2, pytest.approx(0.03))
    assert (gemm.dram_read_bytes, gemm.dram_write_bytes) == (1_000_010, 505)
    assert (gemm.registers, gemm.shared_bytes) == (168, 67_584)
    assert copy.name == 'copy<float, "x">(int)'
    assert copy.shared_bytes == 512


def test_units_of_other_versions_are_the_same_amounts():
    other = (*UNITS[:5], "Mbyte", "Kbyte", "usecond", *UNITS[8:])
    (kernel,) = counted_kernels(log(("k", 2, 3, 40, 32, 0, 0), units=other))
    assert (kernel.dram_read_bytes, kernel.dram_write_bytes) == (2e6, 3e3)
    assert kernel.time_ms == pytest.approx(0.04)
    strange = (*UNITS[:5], "furlong", *UNITS[6:])
    with pytest.raises(Unavailable, match="furlong"):
        counted_kernels(log(("k", 2, 3, 40, 32, 0, 0), units=strange))


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("==ERROR== ERR_NVGPUCTRPERM - The user does not have permission", "administrators"),
        ("==ERROR== An error was reported by the driver", "An error was reported by the driver"),
        ("==WARNING== No kernels were profiled.", "No kernels were profiled."),
        ("", "saw no kernel"),
        (log(), "saw no kernel"),
        (log(("k", "n/a", "n/a", 5, 32, 0, 0)), "counted no dram__bytes_read.sum"),
    ],
)
def test_without_numbers_its_own_complaint_is_the_reason(text, reason):
    with pytest.raises(Unavailable, match=reason):
        counted_kernels(text)


def test_ncu_is_looked_for_where_it_is_installed(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(counters, "_INSTALLED", (f"{tmp_path}/cuda-*/ncu",))
    with pytest.raises(Unavailable, match="ncu is not installed"):
        find_ncu()
    for place in ("cuda-1", "cuda-2"):
        (tmp_path / place).mkdir()
        (tmp_path / place / "ncu").touch(mode=0o755)
    assert find_ncu() == f"{tmp_path}/cuda-2/ncu"
    (tmp_path / "ncu").touch(mode=0o755)
    assert find_ncu() == f"{tmp_path}/ncu"


def test_only_the_marked_call_is_counted_and_nothing_is_set_on_the_card():
    command = ncu_command("ncu", Path("/tmp/log"), ["python", "job"])
    options = dict(itertools.pairwise(command))
    assert options["--profile-from-start"] == "off"
    assert options["--clock-control"] == options["--cache-control"] == "none"
    assert options["--metrics"].split(",")[:2] == ["dram__bytes_read.sum", "dram__bytes_write.sum"]
    assert command[-2:] == ["python", "job"]
