"""Small cases of the suites that have a model."""

from __future__ import annotations

import pytest

from dynbench.harness.case import Case
from dynbench.suites.plan import PlanOptions, plan
from dynbench.suites.shapes import Shape

SHAPE = Shape("", 4, 2, 8, model_dim=24)
PROVIDERS = ["sdpa", "nsa", "dynsiha", "dynnsiha", "flat", "recursive"]
every_provider = pytest.mark.parametrize("provider", PROVIDERS)


def case_of(suite: str, provider: str, seq_len: int = 150, **changes) -> Case:
    """A case of ``suite`` with every part of sparse attention at work."""
    options = {"shapes": (SHAPE,), "batch": 2, "query_tiles": (16,), "window": 32, "top_n": 6}
    request = PlanOptions(
        (seq_len,), "cpu", suite=suite, providers=(provider,), **options | changes
    )
    return plan(request)[0]
