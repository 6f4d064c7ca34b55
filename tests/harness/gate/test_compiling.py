"""``dynbench gate --compile`` as its users meet it: planted kernels, and stored metrics."""

from __future__ import annotations

import importlib.util
import json
import re
from dataclasses import replace
from pathlib import Path

import pytest
from junitparser import JUnitXml

from dynbench.harness.compilemetrics import read_metrics, write_metrics
from dynbench.harness.crosscompile import Build
from dynbench.harness.ptx import INSTRUCTIONS

HERE = Path(__file__).parents[1]

needs_triton = pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="no Triton")


@pytest.fixture
def compiled(dynbench, monkeypatch):
    """Compiles planted launches and judges them: exit code, output, errors."""
    monkeypatch.syspath_prepend(str(HERE))

    def run(source: str, *options: str) -> tuple[int, str, str]:
        return dynbench("gate", "--compile", "--kernels", f"planted_launches:{source}", *options)

    return run


@needs_triton
def test_a_planted_spill_and_a_lost_instruction_fail_the_gate(compiled):
    code, out, err = compiled("sound", "--save")
    assert (code, out) == (0, "")
    assert "saved in dynbench-compile/kernels.parquet: 6 builds, Triton" in err

    code, out, _ = compiled("sound", "--strict")
    assert code == 0
    assert out.splitlines() == [
        "this checkout against dynbench-compile/kernels.parquet: no regression: 6 unchanged"
    ]

    files = ("--junit", "gate.xml", "--summary", "gate.md", "--json", "gate.json")
    code, out, _ = compiled("spilling", *files)
    assert code == 1
    assert out.splitlines()[-1].endswith("regression: 3 regressed, 3 unchanged")
    reasons = {c["label"]: c["reason"] for c in json.loads(Path("gate.json").read_text())["cases"]}
    for target in ("sm_80", "sm_90a", "sm_100a"):
        label = f"compile/{target} planted_launches.centred, mean"
        metrics = r"spill_store_bytes 0 → \d+, spill_load_bytes 0 → \d+, stack_bytes 0 → \d+, "
        assert re.match(metrics, reasons[label])
        assert re.search(rf"^regressed +{label} \[\w+\] +spill_store_bytes 0", out, re.MULTILINE)
    (suite,) = JUnitXml.fromfile("gate.xml")
    assert (suite.tests, suite.failures) == (6, 3)
    assert "spill\\_store\\_bytes 0 → " in Path("gate.md").read_text()

    code, out, _ = compiled("retiled", "--json", "-")
    found = {case["label"]: case for case in json.loads(out)["cases"]}
    product = {
        target: found[f"compile/{target} planted_launches.product, tall"]
        for target in ("sm_80", "sm_90a", "sm_100a")
    }
    assert code == 1
    assert product["sm_90a"]["reason"].startswith("lost wgmma 4 → 0, ")
    assert "lost tcgen05 8 → 0, " in product["sm_100a"]["reason"]
    assert {t: (c["verdict"], c["blocks"]) for t, c in product.items()} == {
        "sm_80": ("changed", False),
        "sm_90a": ("regressed", True),
        "sm_100a": ("regressed", True),
    }
    assert json.loads(out)["counts"] == {"regressed": 2, "unchanged": 3, "changed": 1}


@needs_triton
def test_what_cannot_run_is_new_and_fails_and_cases_are_picked(compiled):
    assert compiled("sound", "--save")[0] == 0
    code, out, err = compiled("crowded", "--case", "*sm_90a planted_launches.product*")
    assert code == 1
    assert "2 builds for 3 targets" in err
    assert re.search(r"^invalid .*new: \d+ bytes of shared memory: sm_90a has 232448", out, re.M)
    assert "regression: 1 unchanged, 1 invalid" in out.splitlines()[-1]


@needs_triton
def test_what_cannot_be_compiled_is_one_line(compiled, dynbench):
    assert compiled("nothing", "--save")[0] == 3
    assert compiled("sound")[0] == 3
    write_metrics([build()], Path("base.parquet"))
    for source, code, part in (
        ("planted_launches:absent", 2, "no attribute 'absent'"),
        ("absent.module:x", 2, "No module named 'absent'"),
        ("planted_launches", 2, "write package.module:function"),
        ("planted_launches:nothing", 3, "no launch"),
    ):
        options = ("--kernels", source, "--baseline", "base.parquet")
        found, out, err = dynbench("gate", "--compile", *options)
        assert (found, out) == (code, "")
        assert part in err.splitlines()[-1]
    code, _, err = compiled("sound", "--baseline", "base.parquet", "--case", "*sm_70*")
    assert (code, "names no build" in err.splitlines()[-1]) == (3, True)


def build(number: int = 0, **fields) -> Build:
    known = {
        "module": "package.tiles",
        "kernel": "forward",
        "target": "sm_90a",
        "triton_version": "3.7.1",
        "constants": {"BQ": 64},
        "signature": {},
        "warps": 4,
        "stages": 2,
        "uses": (f"call {number}",),
        "instructions": dict.fromkeys(INSTRUCTIONS, 1),
    }
    return Build(identity=f"{number:016x}", **(known | fields))


@pytest.fixture
def stored(dynbench):
    """Judges stored builds against three sound ones."""
    sound = [build(number) for number in range(3)]
    write_metrics(sound, Path("base.parquet"))

    def run(builds: list[Build], *options: str) -> tuple[int, str, str]:
        write_metrics(builds, Path("new.parquet"))
        files = ("--baseline", "base.parquet", "--candidate", "new.parquet")
        return dynbench("gate", "--compile", *files, *options)

    return run


def test_every_exit_code_of_stored_builds(stored):
    sound = [build(number) for number in range(3)]
    spilt = replace(sound[1], spill_store_bytes=4)
    cases = [
        (sound, 0, "no regression: 3 unchanged"),
        ([sound[0], spilt, sound[2]], 1, "regression: 1 regressed, 2 unchanged"),
        ([replace(sound[0], registers=9), *sound[1:]], 0, "no regression: 2 unchanged, 1 changed"),
        (sound[:2], 0, "no regression: 2 unchanged, 1 missing"),
        ([*sound, build(3)], 0, "no regression: 3 unchanged, 1 incomparable"),
        ([replace(sound[0], error="x"), *sound[1:]], 1, "regression: 2 unchanged, 1 invalid"),
        ([replace(s, error="x") for s in sound], 1, "regression: 3 invalid"),
    ]
    for builds, code, line in cases:
        found, out, err = stored(builds)
        assert (found, err) == (code, "")
        assert out.splitlines()[-1] == f"new.parquet against base.parquet: {line}"
        strict = 1 if code or "3 unchanged" not in line or "incomparable" in line else 0
        assert stored(builds, "--strict")[0] == strict
    for builds, part in (
        ([build(9)], "no kernel is in both"),
        ([replace(s, triton_version="3.6.0") for s in sound], "here is 3.6.0: install"),
    ):
        found, out, err = stored(builds)
        assert (found, out, len(err.splitlines())) == (3, "", 1)
        assert part in err


def test_a_baseline_of_another_triton_ends_before_compiling(dynbench):
    write_metrics([build(triton_version="3.0.0")], Path("base.parquet"))
    code, out, err = dynbench("gate", "--compile", "--baseline", "base.parquet")
    assert (code, out, len(err.splitlines())) == (3, "", 1)
    assert "by Triton 3.0.0, here is" in err
    assert "constraints.txt" in err


def test_options_and_files_that_make_no_sense(dynbench):
    write_metrics([build()], Path("base.parquet"))
    Path("torn.parquet").write_bytes(Path("base.parquet").read_bytes()[:500])
    base = ("--baseline", "base.parquet")
    cases = [
        (["--compile"], 3, "no baseline dynbench-compile/kernels.parquet"),
        (["--compile", "--baseline", "torn.parquet"], 4, "torn.parquet"),
        (["--compile", *base, "--candidate", "torn.parquet"], 4, "torn.parquet"),
        (["--compile", *base, "--candidate", "absent.parquet"], 2, "no such file"),
        (["--compile", *base, "--save", "--case", "*"], 2, "leave --case out"),
        (["--compile", *base, "--rev", "HEAD"], 2, "--rev: is of measured rows"),
        (["--compile", *base, "--threshold", "0.1"], 2, "--threshold: is of measured rows"),
        (["--compile", *base, "--self-check"], 2, "--self-check"),
        ([*base, "--save"], 2, "--save: is of compiled kernels"),
        ([*base, "--kernels", "a:b"], 2, "--kernels"),
    ]
    for arguments, code, part in cases:
        found, out, err = dynbench("gate", *arguments)
        assert (found, out, len(err.splitlines())) == (code, "", 1), arguments
        assert part in err


def test_saving_shows_what_changed_and_replaces(stored):
    worse = [build(0, spill_load_bytes=8), build(1), build(2)]
    code, out, err = stored(worse, "--save")
    assert (code, err) == (0, "saved in base.parquet: 3 builds, Triton 3.7.1\n")
    assert "spill_load_bytes 0 → 8" in out
    assert "--save" not in out
    assert read_metrics(Path("base.parquet")) == worse
    other = [replace(b, triton_version="3.8.0") for b in worse]
    code, out, err = stored(other, "--save")
    assert (code, out) == (0, "")
    assert err.startswith("replaced without a comparison: base.parquet was compiled by Triton")
    Path("base.parquet").write_text("torn")
    assert stored(worse, "--save")[:2] == (0, "")
    assert stored(worse)[0] == 0
