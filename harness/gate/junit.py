"""The outcome as JUnit XML, which every CI shows."""

from __future__ import annotations

import re
from pathlib import Path

from junitparser import Error, Failure, JUnitXml, Skipped, TestCase, TestSuite

from dynbench.harness.gate.outcome import Outcome
from dynbench.harness.gate.verdicts import CaseVerdict, Verdict

_NOT_XML = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


def write_junit(outcome: Outcome, path: Path) -> None:
    """One test case for each case: regressions fail, throttled rows are errors, what has nothing
    to be compared with is skipped; doubtful cases pass (with ``strict`` they fail), with their
    reason as output. Raises OSError."""
    suite = TestSuite("dynbench gate")
    suite.add_property("baseline", _text(outcome.baseline))
    suite.add_property("candidate", _text(outcome.candidate))
    for verdict in outcome.verdicts:
        suite.add_testcase(_test_case(verdict, strict=outcome.settings.strict))
    xml = JUnitXml("dynbench gate")
    xml.add_testsuite(suite)
    xml.write(str(path), pretty=True)


def _test_case(verdict: CaseVerdict, *, strict: bool) -> TestCase:
    suite, _, name = verdict.label.partition(" ")
    case = TestCase(_text(f"{name or suite} [{verdict.case_id}]"), _text(suite.replace("/", ".")))
    if verdict.candidate_ms is not None:
        case.time = verdict.candidate_ms / 1e3
    line = _text(f"{verdict.verdict}: {verdict.reason}")
    if verdict.blocks or (strict and verdict.doubtful):
        case.result = [Failure(line, verdict.verdict.value)]
    elif verdict.verdict == Verdict.INVALID and verdict.accepted is None:
        case.result = [Error(line, verdict.verdict.value)]
    elif verdict.verdict == Verdict.INCOMPARABLE:
        case.result = [Skipped(line, verdict.verdict.value)]
    details = [line, *verdict.notes]
    if verdict.command:
        details.append(f"repeat with: {verdict.command}")
    case.system_out = _text("\n".join(details))
    return case


def _text(text: str) -> str:
    """The text without the characters that XML cannot hold."""
    return _NOT_XML.sub("\N{REPLACEMENT CHARACTER}", text)
