"""Learning rates as functions of the step: nothing to save, nothing to resume."""

from __future__ import annotations

import math
from collections.abc import Callable

Schedule = Callable[[int], float]
"""Step (from 1) → factor on every group's learning rate."""


def warmup_cosine(steps: int, *, warmup: int = 0, final: float = 0.1) -> Schedule:
    """Rise in a line to 1 over ``warmup`` steps, then fall by a half cosine to ``final``.

    Raises:
        ValueError: warmup is not in [0, steps), or final not in [0, 1].
    """
    if not 0 <= warmup < steps:
        raise ValueError(f"warmup={warmup}: must be at least 0 and below steps={steps}")
    if not 0 <= final <= 1:
        raise ValueError(f"final={final}: must lie in [0, 1]")

    def factor(step: int) -> float:
        if step <= warmup:
            return step / warmup
        progress = min(1.0, (step - warmup) / (steps - warmup))
        return final + (1 - final) * (1 + math.cos(math.pi * progress)) / 2

    return factor
