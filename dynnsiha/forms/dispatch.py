"""Rows of tokens, carried to the experts that the tokens chose and back.

Tokens are sorted by expert, each expert multiplies its own contiguous rows (``grouped``), and the
rows go back to their tokens: no loop over experts, and no weights per token. Sorting is stable and
every row is moved by a permutation, forward and backward, so that the same input gives the same
bits. On a GPU Triton kernels move them; plain torch does elsewhere, in float64, where a compiler
looks on, and for gradients of gradients.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from dynnsiha.triton_device import kernels_serve


@dataclass(frozen=True)
class Dispatch:
    """N tokens with k chosen experts each, as N k rows sorted by expert.

    Attributes:
        order: the pair token * k + choice that each sorted row belongs to, int64 [N k].
        inverse: the sorted row of each pair, int64 [N k].
        ends: the row after the last one of each expert, int32 [E].
        choices: k.
    """

    order: Tensor
    inverse: Tensor
    ends: Tensor
    choices: int

    @classmethod
    def of(cls, indices: Tensor, experts: int) -> Dispatch:
        """Sort by expert: indices int64 [N, k] of the chosen ones among E = ``experts``."""
        chosen, order = indices.flatten().sort(stable=True)
        places = torch.arange(len(order), device=order.device)
        inverse = torch.empty_like(order).scatter_(0, order, places)
        numbers = torch.arange(experts, device=order.device)
        ends = torch.searchsorted(chosen, numbers, right=True, out_int32=True)
        return cls(order, inverse, ends, indices.shape[-1])

    def spread(self, x: Tensor) -> Tensor:
        """x [N, d] → the row of each pair, sorted by expert, [N k, d]."""
        return _Spread.apply(x, self.order, self.inverse, self.choices)

    def gather(self, rows: Tensor, weights: Tensor) -> Tensor:
        """Rows [N k, d], sorted, and weights [N, k] → Σ_j weights_j row_j of each token, [N, d]."""
        return _WeightedSum.apply(rows, weights.to(rows.dtype), self.order, self.inverse)


class _Permute(torch.autograd.Function):
    """Rows in another order. The gradient is the inverse order: nothing is added up."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, order: Tensor, inverse: Tensor) -> Tensor:
        ctx.save_for_backward(order, inverse)
        return rows.index_select(0, order)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        order, inverse = ctx.saved_tensors
        return _Permute.apply(grad, inverse, order), None, None


class _Spread(torch.autograd.Function):
    """Each row k times, sorted. The gradient adds a row's k copies in a fixed order."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, order: Tensor, inverse: Tensor, choices: int) -> Tensor:
        ctx.save_for_backward(order, inverse)
        ctx.choices = choices
        if kernels_serve(x):
            from dynnsiha.forms import triton

            return triton.spread(x, inverse, choices)
        return x.index_select(0, order // choices)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        order, inverse = ctx.saved_tensors
        if kernels_serve(grad) and not torch.is_grad_enabled():
            from dynnsiha.forms import triton

            return triton.weighted_sum(grad, None, inverse, ctx.choices), None, None, None
        copies = _Permute.apply(grad, inverse, order).unflatten(0, (-1, ctx.choices))
        return copies.sum(1), None, None, None


class _WeightedSum(torch.autograd.Function):
    """Rows of each token times its weights, added up where they lie: no copy in token order."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, weights: Tensor, order: Tensor, inverse: Tensor) -> Tensor:
        ctx.save_for_backward(rows, weights, order, inverse)
        if kernels_serve(rows):
            from dynnsiha.forms import triton

            return triton.weighted_sum(rows, weights, inverse, weights.shape[1])
        places = inverse.view(weights.shape)
        # Detached, or it would prepare a backward pass of its own.
        plain, factors = rows.detach(), weights.detach()
        return F.embedding_bag(places, plain, per_sample_weights=factors, mode="sum")

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        rows, weights, order, inverse = ctx.saved_tensors
        if kernels_serve(grad) and not torch.is_grad_enabled():
            from dynnsiha.forms import triton

            return *triton.weighted_sum_backward(grad, rows, weights, inverse), None, None
        spread = _Spread.apply(grad, order, inverse, weights.shape[1])
        d_rows = d_weights = None
        if ctx.needs_input_grad[0]:
            d_rows = spread * _Permute.apply(weights.reshape(-1, 1), order, inverse)
        if ctx.needs_input_grad[1]:
            per_row = (spread * rows).sum(-1, keepdim=True)
            d_weights = _Permute.apply(per_row, inverse, order).view(weights.shape)
        return d_rows, d_weights, None, None
