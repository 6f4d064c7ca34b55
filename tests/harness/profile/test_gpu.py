"""Profiles on a real GPU; skipped where there is none, and parts of them where a tool is absent."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch

from dynbench.harness.case import Case
from dynbench.harness.profile.errors import ProfileError
from dynbench.harness.profile.kernels import TOOLS
from dynbench.harness.profile.profiling import FILES, ProfileOptions, profile_case
from dynbench.harness.profile.schema import KERNELS_FILE, read_profile

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")

SIZE = 2**28  # floats: 1 GiB read and 1 GiB written, far beyond every cache


@pytest.fixture(scope="module")
def profiled(tmp_path_factory):
    """The folder and the rows of a doubling of 2**28 floats: one kernel."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(Path(__file__).parents[1]))
        case = Case("planted", "plain", "forward", "cuda", "float32", "event", {"seq_len": SIZE})
        options = ProfileOptions("planted:prepare", limit_s=300.0)
        return profile_case(case, tmp_path_factory.mktemp("profiled"), options)


def kernels_of(rows: list[dict], tool: str) -> list[dict]:
    """The kernels that the tool saw; the test is skipped, with its reason, if it saw none."""
    found = [row for row in rows if row["tool"] == tool]
    if found[0]["reason"]:
        pytest.skip(f"{tool}: {found[0]['reason']}")
    return found


def test_every_tool_gave_kernels_and_a_file_or_a_reason(profiled):
    folder, rows = profiled
    assert read_profile(folder / KERNELS_FILE) == rows
    assert {row["tool"] for row in rows} == set(TOOLS)
    for row in rows:
        print(row["tool"], row["kernel"], row["time_ms"], row["reason"])
        assert (row["kernel"] is None) == (row["reason"] is not None)
        if row["kernel"] is not None:
            assert (folder / FILES[row["tool"]]).stat().st_size > 0
        assert row["gpu_name"]
    if shutil.which("ncu") is None:
        assert "not installed" in next(r["reason"] or "" for r in rows if r["tool"] == "ncu")


@pytest.mark.parametrize("tool", TOOLS)
def test_one_launch_takes_what_the_call_takes_without_the_flush(profiled, tool):
    (kernel,) = kernels_of(profiled[1], tool)
    assert (kernel["kind"], kernel["calls"], kernel["share"]) == ("kernel", 1, 1)
    assert 0.7 < kernel["time_ms"] / kernel["call_ms"] < 1.1


@pytest.mark.parametrize("tool", ["torch", "ncu"])
def test_registers_are_those_of_a_kernel(profiled, tool):
    (kernel,) = kernels_of(profiled[1], tool)
    assert 8 <= kernel["registers"] <= 255
    assert kernel["shared_bytes"] >= 0


def test_dram_traffic_is_what_the_call_reads_and_writes(profiled):
    """Some of what is written last may stay in the cache."""
    (kernel,) = kernels_of(profiled[1], "ncu")
    assert kernel["dram_read_bytes"] == pytest.approx(4 * SIZE, rel=0.1)
    assert kernel["dram_write_bytes"] == pytest.approx(4 * SIZE, rel=0.15)
    assert kernel["achieved_intensity"] == pytest.approx(kernel["arithmetic_intensity"], rel=0.15)


def test_a_fault_of_the_device_ends_the_profile_with_its_reason(planted, tmp_path):
    options = ProfileOptions("planted:prepare", limit_s=300.0)
    with pytest.raises(ProfileError, match=r"error: .*CUDA error"):
        profile_case(planted("faults_on_device", 1000, "cuda"), tmp_path, options)
