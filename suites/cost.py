"""What a case costs in closed form, whatever its suite. Imports no torch."""

from __future__ import annotations

from dynbench.harness.case import Case
from dynbench.harness.subject import Work
from dynbench.suites.catalog import MODEL_SUITES
from dynbench.suites.modelwork import model_work, prefill_flops
from dynbench.suites.quality.work import least_training_s, training_work
from dynbench.suites.work import case_work

FIRST_TOKEN_CALLS = 5
"""Prompts read to measure the time to the first token, where they take little time."""


def call_work(case: Case) -> Work:
    """Cost of one call of the case's pass; in suite ``quality`` that is a whole training."""
    if case.suite == "quality":
        return training_work(case)
    return model_work(case) if case.suite in MODEL_SUITES else case_work(case)


def further_flops(case: Case) -> int:
    """FLOPs outside of the calls: to time a step, prompts are read, once more for the check."""
    return (2 + FIRST_TOKEN_CALLS) * prefill_flops(case) if case.suite == "generation" else 0


def once_s(case: Case) -> float | None:
    """Least duration of a case whose call is made once; None of one that is sampled."""
    return least_training_s(case)
