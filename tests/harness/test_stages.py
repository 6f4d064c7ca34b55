"""Recorded calls: how many, beside which samples, and what becomes of their times."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch

from dynbench.harness.case import Case
from dynbench.harness.measure import Limits, measure
from dynbench.harness.schema import complete_row
from dynbench.harness.stages import stage_columns
from dynbench.harness.subject import Correctness, Subject, Work
from dynbench.harness.timing import StoppingCriterion, WallTimer

CASE = Case("planted", "plain", "forward", "cpu", "float32", "wall", {"seq_len": 1000})
LIMITS = Limits(warmup_s=0.0, criterion=StoppingCriterion(min_samples=3, max_samples=3))


class Staged:
    """A subject that writes down its calls and its recordings; ``times_ms`` are what they find."""

    def __init__(self, *times_ms: dict[str, float], error: float = 0.0) -> None:
        self.events: list[str] = []
        self._times_ms = list(times_ms)
        self._error = error
        self.duration_s = 0.0

    def run(self) -> torch.Tensor:
        self.events.append("run")
        time.sleep(self.duration_s)
        return torch.ones(4)

    @contextmanager
    def record(self) -> Iterator[Staged]:
        self.events.append("(")
        yield self
        self.events.append(")")

    def milliseconds(self) -> dict[str, float]:
        return self._times_ms[min(self.events.count("(") - 1, len(self._times_ms) - 1)]

    def check(self, outputs: torch.Tensor) -> Correctness:
        self.events.append("check")
        return Correctness(self._error, 0.5, "everything")

    def subject(self) -> Subject:
        work = Work(1, 1, 1)
        return Subject(self.run, self.check, work, "staged 1", record_stages=self.record)

    def row(self, limits: Limits = LIMITS, **more) -> dict:
        return complete_row(measure(self.subject(), CASE, {}, None, limits, **more))


def columns(staged: Staged, calls: int) -> dict[str, str]:
    return stage_columns(staged.record, staged.run, WallTimer("cpu"), calls)


def test_each_stage_has_its_median_in_the_order_of_the_calls():
    staged = Staged({"b": 1.0, "a": 10.0}, {"b": 3.0, "a": 10.0}, {"b": 2.0, "a": 70.0, "c": 5.0})
    found = json.loads(columns(staged, 3)["stages_ms"])
    assert list(found.items()) == [("b", 2.0), ("a", 10.0), ("c", 0.0)]
    assert staged.events == ["(", "run", ")"] * 3


def test_a_subject_without_stages_is_called_once():
    staged = Staged({})
    assert columns(staged, 7) == {}
    assert staged.events == ["(", "run", ")"]


def test_times_keep_six_digits():
    found = columns(Staged({"a": 1.23456789, "b": 0.000123456789}), 1)["stages_ms"]
    assert found == '{"a": 1.23457, "b": 0.000123457}'


def test_no_sample_is_taken_while_recording():
    staged = Staged({"a": 1.0})
    row = staged.row(stages=True)
    # first, checked, memory, three samples, checked; then the recorded calls
    usual = ["run", "run", "check", "run", "run", "run", "run", "run", "check"]
    assert staged.events == usual + ["(", "run", ")"] * LIMITS.stage_calls
    assert row["stages_ms"] == '{"a": 1.0}'
    assert row["sample_count"] == 3
    assert Limits.quick().stage_calls < LIMITS.stage_calls


def test_stages_are_recorded_where_they_are_wanted_only():
    staged = Staged({"a": 1.0})
    assert staged.row()["stages_ms"] is None
    assert "(" not in staged.events


def test_a_slow_case_is_recorded_once():
    staged = Staged({"a": 1.0})
    staged.duration_s = 0.03
    row = staged.row(Limits(slow_call_s=0.02, warmup_s=0.0), stages=True)
    assert staged.events.count("(") == 1
    assert row["stages_ms"] is not None


def test_a_wrong_output_has_no_stages():
    staged = Staged({"a": 1.0}, error=0.9)
    row = staged.row(stages=True)
    assert (row["status"], row["stages_ms"]) == ("incorrect", None)
    assert "(" not in staged.events


def test_a_subject_that_records_nothing_needs_no_recording():
    subject = Staged().subject()
    subject.record_stages = None
    row = measure(subject, CASE, {}, None, LIMITS, stages=True)
    assert "stages_ms" not in row


def test_an_error_while_recording_is_the_cases_own():
    staged = Staged({"a": 1.0})
    subject = staged.subject()

    @contextmanager
    def broken() -> Iterator[Staged]:
        raise RuntimeError("planted")
        yield staged

    subject.record_stages = broken
    with pytest.raises(RuntimeError, match="planted"):
        measure(subject, CASE, {}, None, LIMITS, stages=True)
