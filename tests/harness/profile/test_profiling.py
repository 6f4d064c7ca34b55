"""Planted providers under the profilers: real processes, one for each tool."""

from __future__ import annotations

import os
import time

import pytest

from dynbench.harness.profile.errors import ProfileError
from dynbench.harness.profile.profiling import ProfileOptions, profile_case
from dynbench.harness.profile.schema import KERNELS_FILE, TRACE_FILE, read_profile
from dynbench.harness.store import OutputError

OPTIONS = ProfileOptions("planted:prepare", limit_s=90.0, command="dynbench profile", run_id="run")


def test_a_call_on_the_cpu_has_operators_and_two_absent_tools(planted, tmp_path):
    case = planted("plain", 100_000)
    log = tmp_path / "log"
    told: list[str] = []
    options = ProfileOptions("planted:prepare", (str(log),), 90.0, "dynbench profile", "run")
    folder, rows = profile_case(case, tmp_path, options, told.append)
    assert told == ["torch"]
    assert folder.parent == tmp_path / "profiles"
    assert {path.name for path in folder.iterdir()} == {KERNELS_FILE, TRACE_FILE}
    assert read_profile(folder / KERNELS_FILE) == rows
    seen = [row for row in rows if row["kernel"] is not None]
    assert {row["tool"] for row in seen} == {"torch"}
    assert [row["calls"] for row in seen if row["kernel"] == "aten::mul"] == [1]
    assert sum(row["share"] for row in seen) == pytest.approx(1)
    absent = {row["tool"]: row["reason"] for row in rows if row["kernel"] is None}
    assert set(absent) == {"proton", "ncu"}
    assert all("runs on the CPU" in reason for reason in absent.values())
    for row in rows:
        assert (row["case_id"], row["run_id"]) == (case.case_id, "run")
        assert (row["flops"], row["backend"], row["command"]) == (
            200_000,
            "planted",
            "dynbench profile",
        )
        assert row["call_ms"] > 0
        assert row["cpu_name"]
    assert str(os.getpid()) not in log.read_text().split()  # it was called elsewhere


@pytest.mark.parametrize(
    ("provider", "reason"),
    [
        ("wrong", "incorrect: rms error 0.333 is beyond its tolerance"),
        ("raises", "error: ValueError: planted in two lines"),
        ("sys_exits", "error: the provider called sys.exit: 4"),
        ("exits", r"error: worker died: exit code 3 \(in stage: profiling with torch\)"),
        ("unavailable", "unavailable: package planted is not installed"),
    ],
)
def test_a_call_that_cannot_be_measured_leaves_nothing_behind(planted, tmp_path, provider, reason):
    with pytest.raises(ProfileError, match=f"planted/{provider} forward T=1000: {reason}"):
        profile_case(planted(provider), tmp_path, OPTIONS)
    assert not list((tmp_path / "profiles").iterdir())


def test_a_call_that_hangs_ends_at_its_limit(planted, tmp_path):
    began = time.monotonic()
    options = ProfileOptions("planted:prepare", limit_s=8.0)
    with pytest.raises(ProfileError, match="timeout: stopped at its time limit of 8 s"):
        profile_case(planted("hangs"), tmp_path, options)
    assert time.monotonic() - began < 60


def test_a_folder_that_takes_nothing_is_refused_before_anything_runs(planted, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(OutputError, match="is not a folder"):
        profile_case(planted("hangs"), tmp_path / "file", OPTIONS)
