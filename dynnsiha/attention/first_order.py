"""Backward passes that are not differentiable themselves, and say so."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch._C import _functions

Gradients = tuple[Tensor | None, ...]

_ERROR = (
    b"second-order gradients: of native_sparse_attention's backends only the reference has them;"
    b' call it with backend="reference"'
)


def first_order(
    backward: Callable[[Any, Sequence[Any], Tensor], Gradients],
) -> Callable[..., Gradients]:
    """backward(ctx, saved tensors, gradient) as autograd calls it; its results have no derivative.

    torch's ``once_differentiable`` refuses a derivative only where the incoming gradient has one of
    its own. These results depend on the operands as well, which must be among the saved tensors: a
    derivative by them is refused too, whatever the incoming gradient is.
    """

    @functools.wraps(backward)
    def run(ctx: Any, grad: Tensor, *_: Tensor) -> Gradients:
        saved = ctx.saved_tensors  # read once: activation checkpointing gives them only once
        with torch.no_grad():
            gradients = backward(ctx, saved, grad)
        if not torch.is_grad_enabled():
            return gradients
        sources = [x for x in (grad, *saved) if x is not None and x.requires_grad]
        behind: tuple[Any, ...] = (*gradients, *sources)
        return _functions.DelayedError(_ERROR, len(behind))(*behind)[: len(gradients)]

    return run
