"""A loss that trains chosen parameters and no others."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn


def only_to(loss: Tensor, parameters: Iterable[nn.Parameter]) -> Tensor:
    """``loss`` with the same value, whose backward pass reaches ``parameters`` only.

    Its gradient is computed here, once, and leaves the graph of ``loss`` usable; a parameter that
    ``loss`` does not depend on gets none. Parameters that need no gradient are left out.

    Returns:
        A scalar to add to other losses.
    """
    unique = list({id(p): p for p in parameters if p.requires_grad}.values())
    if not unique or not loss.requires_grad:
        return loss.detach()
    grads = torch.autograd.grad(loss, unique, retain_graph=True, allow_unused=True)
    reached = [(p, g) for p, g in zip(unique, grads, strict=True) if g is not None]
    if not reached:
        return loss.detach()
    chosen, given = zip(*reached, strict=True)
    return _Given.apply(loss.detach(), [g.detach() for g in given], *chosen)


class _Given(torch.autograd.Function):
    """A value whose gradients are known already."""

    @staticmethod
    def forward(ctx: Any, value: Tensor, grads: Sequence[Tensor], *parameters: Tensor) -> Tensor:
        ctx.save_for_backward(*grads)
        return value.clone()

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        return None, None, *(upstream.to(g.dtype) * g for g in ctx.saved_tensors)
