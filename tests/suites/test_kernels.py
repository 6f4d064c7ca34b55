"""The manifest's calls, between them, launch everything that the package has and is tuned for.

Triton's kernels may be interpreted in this process, so launches are captured in another one.
"""

from __future__ import annotations

import ast
import importlib.util
import json
import os
import subprocess
import sys
from itertools import product
from pathlib import Path
from typing import Any

import pytest

from dynbench.harness.crosscompile import TARGETS
from dynbench.suites.kernels import CALLS
from dynnsiha.attention.config import BRANCHES
from dynnsiha.attention.served import BLOCK_SIZES, HEAD_DIMS

pytestmark = pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="no Triton")

LIBRARY = Path(str(importlib.util.find_spec("dynnsiha").origin)).parent

CAPTURE = """
import json
from dynbench.harness.crosscompile import TARGETS
from dynbench.suites.kernels import launches
from dynnsiha.attention.triton import problem, tuning

read, used, entries, tuned = [], [], [], problem.tuned

class Noted(dict):
    def __init__(self, name, widths):
        super().__init__(widths)
        self.name = name
        entries.extend([*name, width] for width in widths)

    def __getitem__(self, width):
        read.append([*self.name, width])
        return super().__getitem__(width)

    def get(self, width):
        return self[width] if width in self else None

def noted(*arguments):
    found = tuned(*arguments)
    used.append(read[-1])  # what is read last replaces what was read before
    return found

problem.tuned = noted
tables = {(family,): kernels for family, kernels in tuning.TABLES.items()}
for name, kernels in (tables | tuning.EXCEPTIONS).items():
    for kernel in kernels:
        kernels[kernel] = Noted((*name, kernel), kernels[kernel])

found = {
    target.name: [
        {
            "kernel": launch.name.split(".triton.")[1],
            "variant": launch.variant,
            "types": sorted({str(t) for t in launch.signature.values()}),
            "constants": launch.named_constants,
        }
        for launch in launches(target)
    ]
    for target in TARGETS.values()
}
print(json.dumps({"launches": found, "entries": entries, "used": used}))
"""


@pytest.fixture(scope="module")
def captured() -> dict[str, Any]:
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    done = subprocess.run(
        [sys.executable, "-c", CAPTURE],
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    facts: dict[str, Any] = json.loads(done.stdout)
    return facts


@pytest.fixture(scope="module", params=TARGETS)
def launches(request: pytest.FixtureRequest, captured: dict[str, Any]) -> list[dict[str, Any]]:
    """What is compiled for one target."""
    found: list[dict[str, Any]] = captured["launches"][request.param]
    return found


def launched_kernels() -> set[str]:
    """Names of all that is launched, as ``module.function``: calls like ``forward[grid](...)``."""
    return {
        f"{path.stem}.{call.func.value.id}"
        for path in LIBRARY.glob("*/triton/*.py")
        for call in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(call, ast.Call)
        and isinstance(call.func, ast.Subscript)
        and isinstance(call.func.value, ast.Name)
    }


def values(launches: list[dict[str, Any]], constant: str) -> dict[str, set[Any]]:
    """The values that a constant takes, by kernel."""
    taken: dict[str, set[Any]] = {}
    for launch in launches:
        if constant in launch["constants"]:
            taken.setdefault(launch["kernel"], set()).add(launch["constants"][constant])
    return taken


def test_every_kernel_is_launched(launches):
    assert {launch["kernel"] for launch in launches} == launched_kernels()
    assert len(launched_kernels()) >= 23


def test_nothing_is_compiled_twice_and_not_too_much(launches):
    variants = [launch["variant"] for launch in launches]
    assert len(set(variants)) == len(variants) <= 240


def test_every_kernel_meets_every_width(launches):
    widths = values(launches, "D")
    assert len(widths) >= 11
    assert {kernel: met for kernel, met in widths.items() if met != set(HEAD_DIMS)} == {}


def test_every_entry_of_the_tables_is_used(captured):
    entries, used = ({tuple(name) for name in captured[key]} for key in ("entries", "used"))
    assert entries - used == set()
    assert len(entries) > 81


def test_keys_are_read_through_descriptors_and_through_pointers_at_every_width(captured):
    for name, launches in captured["launches"].items():
        kernels = values(launches, "TMA")
        ways = [False] if name == "sm_80" else [False, True]
        met = {
            (launch["kernel"], launch["constants"]["TMA"], launch["constants"]["D"])
            for launch in launches
            if launch["kernel"] in kernels
        }
        assert met == set(product(kernels, ways, HEAD_DIMS))


def test_every_block_size_is_there(launches):
    sizes = values(launches, "BS")
    assert set().union(*sizes.values()) == set(BLOCK_SIZES)
    windowed = sizes.keys() & values(launches, "SLIDING").keys()
    assert len(windowed) >= 3
    assert all(sizes[kernel] == set(BLOCK_SIZES) for kernel in windowed)


def test_every_kind_of_call_is_there(launches):
    branches = {tuple(call.config.branches) for call in CALLS}
    assert branches >= {BRANCHES, ("sliding",), ("selected",)}
    assert {call.given for call in CALLS} == {"", "lists", "summaries"}
    assert {call.config.lists for call in CALLS} >= {"exact", "hybrid"}
    assert any(call.config.top_p for call in CALLS)
    assert list(values(launches, "TRAIN").values()) == [{False, True}]


def test_groups_are_one_head_many_and_not_a_power_of_two(launches):
    groups = {kernel: values(launches, "G")[kernel] for kernel in values(launches, "GP")}
    assert len(groups) >= 8
    for met in groups.values():
        assert met >= {1, 16}
        assert any(group & (group - 1) for group in met)
    assert max(max(met) for met in groups.values()) == 64


def test_both_dtypes_are_read(launches):
    for kernel in values(launches, "TMA"):
        types = {t for launch in launches if launch["kernel"] == kernel for t in launch["types"]}
        for dtype in ("fp16", "bf16"):
            assert any(dtype in t for t in types), kernel
