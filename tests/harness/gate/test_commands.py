"""``dynbench gate``, ``compare`` and ``baseline`` as their users meet them."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from junitparser import JUnitXml

from dynbench.harness.rowfiles import write_parquet

ROOT = Path(__file__).parents[3]
TOMORROW = str(datetime.now(UTC).date() + timedelta(days=1))
THERMAL = {"throttled_samples": 3, "throttle_reasons": ["hw_thermal_slowdown"]}


@pytest.fixture
def rows(tmp_path, simulate, make_gpu_row):
    """Writes rows of three GPU cases; a number for each: how much slower it is, None: absent."""
    source = simulate(21, 0.004)

    def write(name: str, *changes: float | None, count: int = 5, **columns) -> str:
        found = [
            make_gpu_row(case, source.latency_ms(change), run_id=f"{name}-{i}", **columns)
            for case, change in enumerate(changes)
            for i in range(count if change is not None else 0)
        ]
        write_parquet(found, tmp_path / name)
        return name

    return write


@pytest.fixture
def saved(dynbench, rows):
    """A baseline called main."""
    code, out, _ = dynbench("baseline", "save", "main", rows("base.parquet", 0.0, 0.0, 0.0))
    assert (code, out) == (0, "dynbench-baselines/main: 3 cases, 5 processes\n")


def test_every_exit_code_and_its_line(dynbench, rows, saved):
    """0, 1, 3 and 4 from rows; each says in one line why."""
    expected = {
        rows("same.parquet", 0.0, 0.0, 0.0): (0, "no regression: 3 unchanged"),
        rows("slow.parquet", 0.0, 0.1, 0.0): (1, "regression: 1 regressed, 2 unchanged"),
        rows("less.parquet", 0.0, 0.0): (1, "regression: 2 unchanged, 1 missing"),
        rows("wrong.parquet", 0.0, 0.0, 0.0, status="incorrect"): (1, "regression: 3 invalid"),
        rows("hot.parquet", 0.0, 0.0, 0.0, **THERMAL): (4, "invalid data: 3 invalid"),
        rows("other.parquet", 0.0, 0.0, 0.0, gpu_name="NVIDIA H100"): (
            3,
            "nothing comparable: 3 incomparable",
        ),
    }
    for name, (code, line) in expected.items():
        found, out, err = dynbench("gate", "--baseline", "main", "--candidate", name)
        last = out.splitlines()[-1]
        assert (found, last, err) == (code, f"{name} against main: {line}", "")


def test_doubt_warns_and_strict_blocks(dynbench, rows, saved):
    noisy = rows("noisy.parquet", 0.04, 0.0, 0.0, count=1)
    for extra, code in (([], 0), (["--strict"], 1)):
        found, out, _ = dynbench("gate", "--baseline", "main", "--candidate", noisy, *extra)
        assert (found, "ambiguous" in out) == (code, True)


def test_broken_files_and_missing_names_are_one_line(dynbench, rows, saved, tmp_path):
    good = rows("same.parquet", 0.0, 0.0, 0.0)
    (tmp_path / "torn.parquet").write_bytes((tmp_path / good).read_bytes()[:2000])
    (tmp_path / "gate.toml").write_text("treshold = 1")
    cases = [
        (["--baseline", "main", "--candidate", "torn.parquet"], 4, "torn.parquet"),
        (["--baseline", "torn.parquet", "--candidate", good], 4, "torn.parquet"),
        (["--baseline", "mian", "--candidate", good], 3, "dynbench-baselines has main"),
        (["--candidate", good], 3, "dynbench baseline save"),
        (["--baseline", "main", "--candidate", "nothing"], 2, "no run 'nothing'"),
        (["--baseline", "main"], 2, "no run in dynbench-results"),
        (["--baseline", "main", "--candidate", good, "--config", "gate.toml"], 2, "'threshold'"),
        (["--baseline", "main", "--candidate", good, "--threshold", "-1"], 2, "threshold = -1"),
        (["--baseline", "main", "--candidate", good, "--case", "*9k*"], 3, "names no case"),
        (["--candidate", good, "--rev", "HEAD"], 2, "leave it out with --rev"),
        (["--rev", "HEAD"], 2, "needs a git checkout"),
        (["--rev", ""], 2, "printed nothing"),
        (["--rev", "", "--self-check"], 2, "printed nothing"),
        (["--candidate", good, "--accept", "x"], 2, "name a saved one with --baseline"),
        (["--baseline", "main", "--candidate", good, "--accept", "x"], 2, "is no day"),
        (["--baseline", "main", "--candidate", good, "--junit", "no/x.xml"], 2, "name another"),
        (["--baseline", "main", "--budget", "soon"], 2, "'soon'"),
    ]
    for arguments, code, part in cases:
        found, out, err = dynbench("gate", *arguments)
        assert (found, out, len(err.splitlines())) == (code, "", 1), arguments
        assert part in err


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        ("--candidate x --budget 1m", "--budget: is of measuring, leave it out or give --rev or"),
        ("--candidate x --rounds 4", "--rounds: is of measuring"),
        ("--candidate x --out y", "--out: is of measuring"),
        ("--baseline x --resume", "--resume: is of measuring"),
        ("--candidate x --reason why", "--reason: is of --accept, name the case with that too"),
        (f"--rev HEAD --until {TOMORROW}", "--until: is of --accept"),
        ("--compile --plant 0.05", "--plant: is of measured rows, leave it out with --compile"),
        ("--compile --reason why", "--reason: is of measured rows"),
        (f"--compile --until {TOMORROW}", "--until: is of measured rows"),
        ("--compile --rounds 4", "--rounds: is of measured rows"),
        ("--rev HEAD --save", "--save: is of compiled kernels, give --compile too"),
    ],
)
def test_an_option_that_would_decide_nothing_is_refused(dynbench, arguments, line):
    code, out, err = dynbench("gate", *arguments.split())
    assert (code, out, len(err.splitlines())) == (2, "", 1)
    assert err.startswith(f"dynbench: {line}")


def test_the_promoted_baseline_needs_no_name(dynbench, rows, saved):
    same = rows("same.parquet", 0.0, 0.0, 0.0)
    assert dynbench("baseline", "promote", "main")[0] == 0
    assert dynbench("gate", "--candidate", same)[0] == 0
    _, out, _ = dynbench("baseline", "list")
    assert re.search(r"^main \* +20\S+ +3 +5 +.* 0 +NVIDIA H200 *$", out, re.MULTILINE)
    code, _, err = dynbench("baseline", "promote", "old")
    assert (code, "no baseline 'old'" in err) == (3, True)


def test_accepting_a_slow_down(dynbench, rows, saved):
    slow = rows("slow.parquet", 0.0, 0.1, 0.0)
    gate = ("gate", "--baseline", "main", "--candidate", slow)
    wanted = ("--accept", "*T=2k*", "--reason", "exact softmax", "--until", TOMORROW)
    code, out, err = dynbench(*gate, *wanted)
    assert (code, f"until {TOMORROW}: exact softmax" in " ".join(out.split())) == (0, True)
    assert err.startswith("accepted in dynbench-baselines/main: attention/nsa forward T=2k")
    assert dynbench(*gate)[0] == 0
    facts = json.loads(Path("dynbench-baselines/main/baseline.json").read_text())
    assert [entry["reason"] for entry in facts["accepted"]] == ["exact softmax"]


def test_every_form_of_output(dynbench, rows, saved, monkeypatch):
    slow = rows("slow.parquet", 0.0, 0.1, 0.0)
    gate = ("gate", "--baseline", "main", "--candidate", slow)
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", "step.md")
    code, out, _ = dynbench(*gate, "--json", "gate.json", "--junit", "gate.xml")
    assert code == 1
    assert re.search(
        r"^regressed +attention/nsa forward T=2k .* \+9\.\d % ", out, re.MULTILINE
    ) or (re.search(r"^regressed +attention/nsa forward T=2k .* \+10\.\d % ", out, re.MULTILINE))
    assert json.loads(Path("gate.json").read_text())["counts"] == {"regressed": 1, "unchanged": 2}
    (suite,) = JUnitXml.fromfile("gate.xml")
    assert (suite.tests, suite.failures) == (3, 1)
    assert "| **regressed** |" in Path("step.md").read_text()
    code, out, _ = dynbench(*gate, "--json", "-", "--summary", "other.md")
    assert (code, json.loads(out)["exit_code"]) == (1, 1)
    assert Path("other.md").exists()


def test_files_are_looked_at_before_anything_is_measured(dynbench, tmp_path, monkeypatch):
    """No checkout is here, nor a baseline: what is measured would be refused next."""
    expected = {
        ("--rev", "HEAD", "--json", "no/x.json"): "--json no/x.json: there is no folder no",
        ("--self-check", "--junit", "no/x.xml"): "--junit no/x.xml: there is no folder no",
        ("--compile", "--summary", "."): "--summary .: is a folder; name another file",
    }
    for arguments, line in expected.items():
        code, out, err = dynbench("gate", *arguments)
        assert (code, out) == (2, "")
        assert line in err
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", "no/step.md")
    assert "$GITHUB_STEP_SUMMARY no/step.md: there is no" in dynbench("gate", "--rev", "HEAD")[2]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no device that is always full")
def test_a_file_that_cannot_be_written_hides_no_verdict(dynbench, rows, saved):
    expected = {
        rows("slow.parquet", 0.0, 0.1, 0.0): (1, "regression: 1 regressed, 2 unchanged"),
        rows("same.parquet", 0.0, 0.0, 0.0): (2, "no regression: 3 unchanged"),
    }
    for option in ("--json", "--junit", "--summary"):
        for name, (code, line) in expected.items():
            gate = ("gate", "--baseline", "main", "--candidate", name, option, "/dev/full")
            found, out, err = dynbench(*gate)
            assert (found, out.splitlines()[-1]) == (code, f"{name} against main: {line}")
            assert err.startswith(f"dynbench: {option} /dev/full: No space left on device; name")


def test_settings_in_force_are_printed_and_read_back(dynbench, tmp_path):
    (tmp_path / "gate.toml").write_text('floor_us = 5\n[[override]]\ncase = "*"\nthreshold = 0.2\n')
    _, first, _ = dynbench("gate", "--config", "gate.toml", "--threshold", "0.1", "--dump-config")
    assert "threshold = 0.1\nfloor_us = 5.0\n" in first
    (tmp_path / "dumped.toml").write_text(first)
    assert dynbench("gate", "--config", "dumped.toml", "--dump-config") == (0, first, "")


def test_compare_is_for_people(dynbench, rows, saved):
    slow = rows("slow.parquet", 0.0, 0.1, 0.0)
    code, out, _ = dynbench("compare", "main", slow)
    assert (code, "regression: 1 regressed, 2 unchanged" in out) == (0, True)
    other = rows("other.parquet", 0.0, 0.0, 0.0, gpu_name="NVIDIA H100")
    assert dynbench("compare", "main", other)[0] == 3
    code, out, _ = dynbench("compare", "main", other, "--across", "--json")
    assert (code, len(json.loads(out)["cases"])) == (0, 3)
    assert "gpu_name is 'NVIDIA H100'" in out
    assert dynbench("compare", "main", "nothing")[0] == 3


@pytest.mark.parametrize(
    ("table", "part"),
    [
        ("sequence = 1", "did you mean 'seq'"),
        ("passes = 'forward'", "'passes'"),
        ("seq = {a = 1}", "must be a value"),
        ("seed = 'x'", "seed = 'x': must be a whole number"),
        ("providers = ['sdap']", "did you mean 'sdpa'"),
        ("seq = '8k..4k'", "8k..4k"),
    ],
)
def test_the_work_of_a_file_is_checked(table, part, dynbench, tmp_path):
    (tmp_path / "dynnsiha").mkdir()
    (tmp_path / "dynnsiha" / "__init__.py").touch()
    for words in (["init", "-q"], ["add", "-A"], ["commit", "-q", "-m", "x"]):
        who = ["-c", "user.name=test", "-c", "user.email=test@example.org"]
        subprocess.run(["git", *who, *words], check=True)
    (tmp_path / "gate.toml").write_text(f"[run]\ndevice = 'cpu'\n{table}\n")
    code, out, err = dynbench("gate", "--rev", "HEAD", "--config", "gate.toml")
    assert (code, out, len(err.splitlines())) == (2, "", 1)
    assert part in err
    assert not (tmp_path / "dynbench-gates").exists()
    code, _, err = dynbench("gate", "--rev", "nothing", "--config", "gate.toml")
    assert (code, "git fetch" in err) == (3, True)


def test_a_revision_of_the_library_is_measured_against_the_checkout(tmp_path):
    """The whole way, with the library itself: worktrees, rounds, rows, verdicts, resuming."""
    skipped = shutil.ignore_patterns("__pycache__")
    shutil.copytree(ROOT / "dynnsiha", tmp_path / "dynnsiha", ignore=skipped)
    (tmp_path / "gate.toml").write_text(
        "min_rounds = 2\nmax_rounds = 2\nthreshold = 10\nmax_other_cpu_share = 1\n"
        "[run]\ndevice = 'cpu'\nseq = 64\nproviders = 'dynnsiha'\nquery-tile = 16\n"
    )
    who = ["-c", "user.name=test", "-c", "user.email=test@example.org"]
    for words in (["init", "-q"], ["add", "-A"], ["commit", "-q", "-m", "x"]):
        subprocess.run(["git", *who, *words], check=True, cwd=tmp_path)
    (tmp_path / "dynnsiha" / "changed.py").touch()
    gate = [sys.executable, "-c", "from dynbench.cli import main; main()", "gate", "--rev", "HEAD"]
    gate += ["--config", "gate.toml", "--json", "-"]
    options = {
        "cwd": tmp_path,
        "env": {**os.environ, "OMP_NUM_THREADS": "1"},
        "capture_output": True,
        "text": True,
        "timeout": 600,
    }
    done = subprocess.run(gate, **options)
    found = json.loads(done.stdout)
    assert done.returncode == 0, done.stderr
    assert set(found["counts"]) <= {"unchanged", "ambiguous"}  # as noisy as the machine is
    assert found["baseline"].startswith("HEAD (")
    assert found["candidate"].endswith(", changed)")
    assert "round 1: 4/4\nround 2: 4/4\n" in done.stderr
    assert len(list(tmp_path.glob("dynbench-gates/gate-*/*/*/rows.parquet"))) == 8
    again = subprocess.run([*gate, "--resume"], **options)
    assert json.loads(again.stdout)["cases"] == found["cases"]
    assert len(list(tmp_path.glob("dynbench-gates/*"))) == 1
    shown = subprocess.run(["git", "worktree", "list"], **options).stdout
    assert len(shown.splitlines()) == 1
