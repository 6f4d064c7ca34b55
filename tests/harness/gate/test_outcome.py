"""Exit codes, and the outcome as JSON, JUnit XML and markdown, read back."""

from __future__ import annotations

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from junitparser import Error, Failure, JUnitXml, Skipped

from dynbench.harness.gate.junit import write_junit
from dynbench.harness.gate.outcome import Outcome
from dynbench.harness.gate.settings import Settings
from dynbench.harness.gate.summary import append_summary, markdown
from dynbench.harness.gate.verdicts import CaseVerdict, Verdict

BLOCKING = {Verdict.REGRESSED, Verdict.MISSING}


def verdict(kind: Verdict, number: int = 0, **more) -> CaseVerdict:
    fields = {"reason": "why", "blocks": kind in BLOCKING, **more}
    return CaseVerdict(f"{number:016x}", f"attention/nsa forward T={number}k", kind, **fields)


def outcome(*verdicts: CaseVerdict, **settings) -> Outcome:
    return Outcome("main", "run", verdicts, Settings(**settings), ["a note"])


R, IMP, U, C, A, M, INV, INC = Verdict
FAILED = verdict(INV, blocks=True)
ACCEPTED = verdict(R, blocks=False, accepted={"reason": "x"})


@pytest.mark.parametrize(
    ("verdicts", "code"),
    [
        ([], 3),
        ([verdict(INC)], 3),
        ([verdict(M)], 3),
        ([verdict(M), verdict(INC)], 3),
        ([verdict(U)], 0),
        ([verdict(U), verdict(INC)], 0),
        ([verdict(IMP)], 0),
        ([verdict(A)], 0),
        ([verdict(C)], 0),
        ([verdict(M, blocks=False, warns=True), verdict(U)], 0),
        ([verdict(R)], 1),
        ([verdict(R), verdict(INV), verdict(A)], 1),
        ([verdict(U), verdict(M)], 1),
        ([FAILED], 1),
        ([verdict(U), FAILED], 1),
        ([verdict(INV)], 4),
        ([verdict(U), verdict(INV)], 4),
        ([ACCEPTED], 0),
        ([ACCEPTED, verdict(R)], 1),
    ],
)
def test_exit_codes(verdicts, code):
    found = outcome(*verdicts)
    assert found.exit_code == code
    words = {0: "no regression", 1: "regression", 3: "nothing comparable", 4: "invalid data"}
    assert found.headline.startswith(words[code])
    assert json.loads(found.to_json())["exit_code"] == code


def test_strict_makes_doubt_a_failure():
    assert outcome(verdict(A), strict=True).exit_code == 1
    assert outcome(verdict(C), strict=True).exit_code == 1
    assert outcome(verdict(U), verdict(INC, warns=True), strict=True).exit_code == 1
    assert outcome(verdict(U), verdict(INC), strict=True).exit_code == 0
    assert outcome(verdict(U), strict=True).exit_code == 0


ALL = [verdict(kind, number) for number, kind in enumerate(Verdict)]


def test_json_has_every_verdict_and_the_settings():
    found = json.loads(outcome(*ALL, threshold=0.1).to_json())
    assert [case["verdict"] for case in found["cases"]] == [kind.value for kind in Verdict]
    assert found["settings"]["threshold"] == 0.1
    assert found["counts"] == dict.fromkeys((kind.value for kind in Verdict), 1)


def test_junit_is_read_back(tmp_path):
    path = tmp_path / "gate.xml"
    write_junit(outcome(*ALL, FAILED), path)
    (suite,) = JUnitXml.fromfile(str(path))
    results = [[type(result) for result in case.result] for case in suite]
    skipped, failure, error = [Skipped], [Failure], [Error]
    assert results == [failure, [], [], [], [], failure, error, skipped, failure]
    assert (suite.tests, suite.failures, suite.errors, suite.skipped) == (9, 3, 1, 1)
    assert {p.name: p.value for p in suite.properties()} == {"baseline": "main", "candidate": "run"}
    first = next(iter(suite))
    assert (first.classname, first.name) == ("attention.nsa", f"forward T=0k [{0:016x}]")
    assert first.result[0].message == "regressed: why"
    write_junit(outcome(verdict(A), strict=True), path)
    (suite,) = JUnitXml.fromfile(str(path))
    assert suite.failures == 1


@settings(max_examples=50, deadline=None)
@given(st.text(st.characters(exclude_categories=["Cs"]), max_size=40))
def test_any_text_of_a_row_survives_every_form(tmp_path_factory, text):
    path = tmp_path_factory.mktemp("junit") / "gate.xml"
    found = outcome(verdict(R, reason=text, command=text, notes=(text,)))
    write_junit(found, path)
    (suite,) = JUnitXml.fromfile(str(path))
    assert suite.failures == 1
    rows = [line for line in markdown(found).split("\n") if line.startswith("| **regressed**")]
    assert len(rows) == 1
    assert json.loads(found.to_json())["cases"][0]["reason"] == text


def test_the_summary_shows_regressions_first_and_folds_the_rest(tmp_path):
    path = tmp_path / "summary.md"
    path.write_text("before\n")
    slower = verdict(R, 9, baseline_ms=1.0, candidate_ms=1.1, change=0.1, low=0.08, high=0.12)
    append_summary(outcome(*ALL, slower), path)
    text = path.read_text()
    assert text.startswith("before\n## dynbench gate: regression: ")
    lines = text.splitlines()
    rows = [line.split("|")[1].strip() for line in lines if line.startswith("| ")]
    assert rows[:4] == ["verdict", "**regressed**", "**regressed**", "**missing**"]
    assert "| 1 ms | 1.1 ms | +10.0 % (+8.0 to +12.0) | why |" in text
    assert text.index("<details><summary>1 unchanged") > text.index("incomparable")
    assert "- a note" in lines
