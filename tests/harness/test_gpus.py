"""Which GPU a worker gets, and who may measure on it; real GPUs are in test_gpu.py."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from dynbench.harness.gpus import Gpu, GpuBusy, gpu_lane, locked, visible_gpus
from dynbench.harness.machine import uuid_hash

FIRST, SECOND = Gpu(0, "NVIDIA H100", "aaaa"), Gpu(1, "NVIDIA H100", "bbbb")


@pytest.mark.parametrize(
    ("visible", "seen"),
    [(None, "1"), ("4,7", "7"), (" GPU-abc , GPU-def", "GPU-def"), ("3,2,1", "2")],
)
def test_a_worker_sees_its_gpu_alone(visible, seen):
    lane = gpu_lane(SECOND, {} if visible is None else {"CUDA_VISIBLE_DEVICES": visible})
    assert lane.environment == {"CUDA_VISIBLE_DEVICES": seen}
    assert lane.columns == {"gpu_index": 1}
    assert (lane.name, lane.card, lane.words) == ("GPU 1", "bbbb", ("--gpus", "1"))


def hold(folder, *hashes: str) -> subprocess.Popen[str]:
    """Another process that holds the locks of these GPUs until its input ends."""
    program = (
        "import sys; from pathlib import Path; from dynbench.harness.gpus import Gpu, locked\n"
        "with locked([Gpu(0, 'g', h) for h in sys.argv[2:]], Path(sys.argv[1])):\n"
        "    print('held', flush=True); sys.stdin.read()\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", program, str(folder), *hashes],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    return process


def test_one_sweep_at_a_time_on_a_gpu(tmp_path):
    with hold(tmp_path, "bbbb") as other:
        with locked([FIRST], tmp_path):
            pass
        refusal = r"^GPU 1 \(NVIDIA H100\): another dynbench .*--gpus$"
        with pytest.raises(GpuBusy, match=refusal), locked([FIRST, SECOND], tmp_path):
            raise AssertionError("the lock was given twice")
        with hold(tmp_path, "aaaa") as third:  # what was locked before the refusal is free again
            third.kill()
        other.kill()  # the lock goes with its process
    with locked([FIRST, SECOND], tmp_path), pytest.raises(GpuBusy), locked([FIRST], tmp_path):
        raise AssertionError("the lock was given twice")
    with locked([FIRST, SECOND], tmp_path):
        pass


def test_a_folder_that_takes_no_locks_is_no_obstacle(tmp_path):
    with locked([FIRST, Gpu(1, "unknown", None)], tmp_path / "missing"):
        pass
    assert list(tmp_path.iterdir()) == []
    os.symlink(tmp_path / "elsewhere", tmp_path / "dynbench-gpu-aaaa.lock")
    with locked([FIRST], tmp_path):  # somebody's link is not followed
        assert not (tmp_path / "elsewhere").exists()


def test_without_a_gpu_there_is_none(monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    assert visible_gpus() == []


def test_uuids_are_one_with_and_without_their_prefix():
    assert uuid_hash("GPU-12") == uuid_hash("12") != uuid_hash("13")
