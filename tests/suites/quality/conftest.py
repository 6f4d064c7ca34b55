"""Tiny trainings: a case of suite quality by its provider and what is changed."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from dynbench.harness.case import Case
from dynbench.suites.plan import PlanOptions, plan
from dynbench.suites.shapes import Shape


@pytest.fixture
def tiny_case() -> Callable[..., Case]:
    """The first case of a request for one provider: T = 64, width 16, a handful of steps."""

    def make(provider: str, **changes) -> Case:
        options = {
            "seq_lens": (64,),
            "device": "cpu",
            "suite": "quality",
            "providers": (provider,),
            "tasks": ("recall",),
            "shapes": (Shape("", 2, 2, 8, batch=2),),
            "layers": 2,
            "train_steps": 4,
            "window": 8,
            "block_size": 8,
            "top_n": 5,
        }
        return plan(PlanOptions(**options | changes))[0]

    return make
