"""The committed metrics of all kernels are sound, complete, and what the gate compares with.

``dynbench gate --compile`` (``.ci/run``) compiles the manifest and blocks what is worse than this
file, so what holds for the file holds for the kernels. What fails here after the file is saved
again is cured by another entry in ``dynnsiha/attention/triton/tuning.py``: more warps or fewer rows
where registers are spilled, fewer stages or rows where shared memory does not suffice.
"""

from __future__ import annotations

import importlib.util
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest

from dynbench.harness.compilemetrics import read_metrics
from dynbench.harness.crosscompile import Build
from dynbench.suites.kernels import SERVED

ROOT = Path(__file__).parents[2]
BASELINE = ROOT / "results" / "compile" / "kernels.parquet"
LEAST_ROWS = 64  # of the matrix instructions of Hopper and Blackwell
TARGETS = {target.name: target for target in SERVED}

needs_triton = pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="no Triton")

LAUNCHES = """
import json
from dynbench.suites.kernels import SERVED, launches
made = [
    [target.name, launch.name, use]
    for target in SERVED
    for launch in launches(target)
    for use in launch.uses
]
print(json.dumps(made))
"""


def python(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    return subprocess.run(
        [sys.executable, *arguments],
        cwd=cwd,
        env=environment | {"PYTHONPATH": str(Path(__file__).parent)},
        capture_output=True,
        text=True,
        timeout=600,
    )


@pytest.fixture(scope="module")
def builds() -> list[Build]:
    assert BASELINE.exists(), f"no {BASELINE}: write it with dynbench gate --compile --save"
    return read_metrics(BASELINE)


def assert_none(failing: Iterable[str]) -> None:
    found = list(failing)
    assert not found, "\n".join([f"{len(found)} builds:", *found])


def test_the_baseline_is_of_the_pinned_triton_and_of_every_target(builds):
    pinned = re.search(r"^triton==(\S+)$", (ROOT / "constraints.txt").read_text(), re.MULTILINE)
    assert {build.triton_version for build in builds} == {pinned[1]}
    assert {build.target for build in builds} == set(TARGETS)


@needs_triton
def test_the_baseline_has_every_build_of_the_manifest(builds, tmp_path):
    """Else a kernel would have nothing to be compared with; saving it again adds it."""
    done = python("-c", LAUNCHES, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    made = sorted(map(tuple, json.loads(done.stdout)))
    known = [(b.target, f"{b.module}.{b.kernel}", use) for b in builds for use in b.uses]
    assert sorted(known) == made


def test_every_kernel_compiles_for_every_target(builds):
    assert_none(f"{build}: {build.error}" for build in builds if build.error)


def test_no_register_is_spilled(builds):
    assert_none(
        f"{b}: {b.spill_store_bytes} bytes, num_stages={b.stages}"
        for b in builds
        if b.spill_store_bytes or b.spill_load_bytes
    )


def test_shared_memory_suffices(builds):
    """On Ampere's target for consumer cards, too."""
    assert TARGETS["sm_80"].shared_bytes == 99 << 10
    assert_none(
        f"{b}: {b.shared_bytes} bytes, num_stages={b.stages}"
        for b in builds
        if b.shared_bytes + b.static_shared_bytes > TARGETS[b.target].shared_bytes
    )


def test_matrices_are_multiplied_by_the_target_s_own_instruction(builds):
    """Blocks of fewer keys, or chunks of fewer tokens, than the instruction has rows may take
    Ampere's, which all GPUs have.

    Routers of float32 multiply in float32, which no matrix unit does.
    """

    def multiplies_well(build: Build) -> bool:
        rows = (build.constants.get(name, LEAST_ROWS) for name in ("BS", "ROWS"))
        narrow = min(rows) < LEAST_ROWS
        wanted = {TARGETS[build.target].matrix} | ({"mma_sync"} if narrow else set())
        return any(build.instructions[kind] for kind in wanted)

    multiplying = [b for b in builds if b.products and b.signature.get("x") != "*fp32"]
    assert len(multiplying) > 0.4 * len(builds)
    assert_none(f"{b}: {b.products}" for b in multiplying if not multiplies_well(b))


@pytest.fixture(scope="module")
def gate(tmp_path_factory):
    """Judges a planted launch of one of the library's kernels against the sound one."""
    folder = tmp_path_factory.mktemp("gate")

    def run(source: str, *options: str) -> subprocess.CompletedProcess[str]:
        arguments = ("gate", "--compile", "--kernels", f"planted_builds:{source}", *options)
        return python("-c", "from dynbench.cli import main; main()", *arguments, cwd=folder)

    saved = run("sound", "--save")
    assert saved.returncode == 0, saved.stderr
    return run


def cases(done: subprocess.CompletedProcess[str]) -> dict[str, dict[str, Any]]:
    """Verdicts by target; all are on one kernel."""
    found = json.loads(done.stdout)["cases"]
    assert {"compressed.compressed_forward, paper" in case["label"] for case in found} == {True}
    return {case["label"].split()[0].removeprefix("compile/"): case for case in found}


@needs_triton
def test_a_spill_planted_in_the_library_fails_the_gate(gate):
    done = gate("spilling", "--json", "-")
    found = cases(done)
    assert done.returncode == 1
    assert {target: case["verdict"] for target, case in found.items()} == {
        "sm_80": "unchanged",
        "sm_90a": "regressed",
        "sm_100a": "unchanged",
    }
    assert re.search(r"spill_store_bytes \d+ → \d{3,}, ", found["sm_90a"]["reason"])


@needs_triton
def test_a_tile_planted_in_the_library_that_loses_wgmma_fails_the_gate(gate):
    done = gate("retiled", "--json", "-")
    found = cases(done)
    assert done.returncode == 1
    assert re.search(r"lost wgmma \d+ → 0, ", found["sm_90a"]["reason"])
    assert re.search(r"lost tcgen05 \d+ → 0, ", found["sm_100a"]["reason"])
    assert [t for t, case in found.items() if case["blocks"]] == ["sm_90a", "sm_100a"]
