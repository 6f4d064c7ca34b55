"""Building planted kernels for GPUs that are not here.

Triton works in one way for a whole process, so what needs it runs in processes of its own.
"""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from dynbench.harness.crosscompile import (
    TARGETS,
    Build,
    compile_everywhere,
)

HERE = str(Path(__file__).parent)
KERNELS = ["product", "product", "centred", "mistaken", "copied"]

needs_triton = pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="no Triton")


@pytest.fixture(scope="module")
def builds() -> Iterator[list[Build]]:
    """Every planted launch for every target, from a process that knows the planted kernels."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(HERE)
        patch.setenv("TRITON_INTERPRET", "1")  # is not for the processes that compile
        yield list(compile_everywhere("planted_launches:everything", list(TARGETS.values()), 2))


def of(builds: list[Build], kernel: str) -> dict[str, Build]:
    """A kernel's first build for each target."""
    return {b.target: b for b in reversed(builds) if b.kernel == kernel}


def python(code: str) -> subprocess.CompletedProcess[str]:
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    return subprocess.run(
        [sys.executable, "-c", code],
        env=environment | {"PYTHONPATH": HERE},
        capture_output=True,
        text=True,
        timeout=120,
    )


@needs_triton
def test_builds_come_in_the_order_of_targets_and_launches(builds):
    assert [(b.target, b.kernel) for b in builds] == [(t, k) for t in TARGETS for k in KERNELS]
    assert {b.module for b in builds} == {"planted_launches"}


@needs_triton
def test_each_architecture_multiplies_with_its_own_instruction(builds):
    matrix = [target.matrix for target in TARGETS.values()]
    for name, build in of(builds, "product").items():
        counts = {kind: build.instructions[kind] for kind in matrix}
        assert [kind for kind in matrix if counts[kind]] == [TARGETS[name].matrix]
        assert build.products == ((64, 64, 64),)
        assert (build.error, build.spill_store_bytes, build.spill_load_bytes) == ("", 0, 0)
        assert 0 < build.shared_bytes < TARGETS[name].shared_bytes
        assert (build.tensor_memory_columns > 0) == (name == "sm_100a")
    for build in of(builds, "copied").values():
        assert build.products == ()
        assert not any(build.instructions[kind] for kind in matrix)
        assert build.instructions["global_load"] == build.instructions["global_store"] == 1


@needs_triton
def test_registers_that_do_not_suffice_are_spilled(builds):
    for build in of(builds, "centred").values():
        # 512 numbers a thread, of which at most 255 find a register.
        assert build.spill_store_bytes > 1024
        assert build.spill_load_bytes > 1024
        assert build.stack_bytes > 0
    for build in of(builds, "copied").values():
        assert 0 < build.registers < 32
        assert build.spill_store_bytes == build.spill_load_bytes == build.stack_bytes == 0


@needs_triton
def test_what_cannot_run_says_why_in_one_line(builds):
    errors = {(b.target, b.kernel, b.stages): b.error for b in builds if b.error}
    assert set(errors) == {
        (target, *failing) for target in TARGETS for failing in (("mistaken", 0), ("product", 16))
    }
    for (target, kernel, _), error in errors.items():
        assert "\n" not in error
        if kernel == "mistaken":
            assert error.startswith("ValueError")
            assert "16 and 32" in error
        else:
            assert f"of shared memory: {target} has {TARGETS[target].shared_bytes}" in error
    for build in of(builds, "mistaken").values():
        assert build.registers == build.shared_bytes == 0
        assert build.instructions == {}


@needs_triton
def test_a_build_has_what_compiled_in_and_what_did_not(builds):
    build = of(builds, "copied")["sm_80"]
    assert build.constants == {"step": 1, "N": 64}  # Triton compiles a 1 in
    assert build.signature == {"x": "*bf16", "y": "*fp32", "count": "i32"}
    assert (build.warps, build.stages) == (0, 0)
    assert str(build) == "planted_launches.copied on sm_80: step=1 N=64 num_warps=0"


@pytest.fixture(scope="module")
def copies() -> dict[str, Any]:
    done = python("import json, planted_launches as p; print(json.dumps(p.copies()))")
    assert done.returncode == 0, done.stderr
    facts: dict[str, Any] = json.loads(done.stdout)
    return facts


@needs_triton
def test_distinct_launches_are_noted_and_none_runs(copies):
    assert not copies["written"]
    assert set(copies["noted"]) == {
        *("first", "multiple of 16", "step of 1"),
        *("constant", "dtype", "warps"),
    }
    identities = [identity for identity, _ in copies["noted"].values()]
    assert len(set(identities)) == len(identities)


@needs_triton
def test_variants_differ_in_constants_types_and_options_but_not_in_values_of_integers(copies):
    variants = {name: variant for name, (_, variant) in copies["noted"].items()}
    assert variants["multiple of 16"] == variants["step of 1"] == variants["first"]
    assert len(set(variants.values())) == 4


@needs_triton
def test_identities_are_the_same_in_other_processes(builds, copies):
    again = python("import json, planted_launches as p; print(json.dumps(p.copies()))")
    assert json.loads(again.stdout) == copies
    per_target = [[b.identity for b in builds if b.target == name] for name in TARGETS]
    assert per_target[0] == per_target[1] == per_target[2]
    assert len(set(per_target[0])) == len(KERNELS)


@needs_triton
@pytest.mark.parametrize(
    "steps",
    [
        ("import triton.language", "os.environ['TRITON_INTERPRET'] = '1'"),
        ("os.environ['TRITON_INTERPRET'] = '1'", "import triton.language"),
        (
            "os.environ['TRITON_INTERPRET'] = '1'",
            "import triton.language",
            "del os.environ['TRITON_INTERPRET']",
        ),
    ],
    ids=["after Triton's import", "before it", "during it alone"],
)
def test_launches_of_the_interpreter_are_not_captured(steps):
    capture = "from dynbench.harness.crosscompile import captured_launches as c\nwith c(): pass"
    done = python("\n".join(["import os", *steps, capture]))
    assert done.returncode == 1
    assert "RuntimeError: TRITON_INTERPRET=1" in done.stderr


@needs_triton
def test_no_launches_are_no_builds(monkeypatch):
    monkeypatch.syspath_prepend(HERE)
    assert list(compile_everywhere("planted_launches:nothing", [TARGETS["sm_80"]], 1)) == []
