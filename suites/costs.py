"""What any planned case costs, whatever its suite: for predictions. Imports no torch."""

from __future__ import annotations

from dynbench.harness.case import Case
from dynbench.harness.subject import Work
from dynbench.suites.quality.work import least_training_s, training_work
from dynbench.suites.work import case_work


def planned_work(case: Case) -> Work:
    """Cost of one call of the case, in closed form."""
    return training_work(case) if case.suite == "quality" else case_work(case)


def once_s(case: Case) -> float | None:
    """Least duration of a case whose call is made once; None of one that is sampled."""
    return least_training_s(case)
