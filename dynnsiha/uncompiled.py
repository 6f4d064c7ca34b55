"""What stays out of ``torch.compile``."""

from __future__ import annotations

from collections.abc import Callable
from typing import ParamSpec, TypeVar

import torch

P = ParamSpec("P")
R = TypeVar("R")


def uncompiled(run: Callable[P, R], reason: str) -> Callable[P, R]:
    """``run``, which compilers call as it is: they would cut it into many small graphs.

    Outside of ``torch.compile`` it is ``run`` itself, and nothing is imported or wrapped: torch's
    own decorator loads the compiler where it stands.
    """
    if not torch.compiler.is_compiling():
        return run
    kept_out: Callable[P, R] = torch.compiler.disable(run, reason=reason)
    return kept_out
