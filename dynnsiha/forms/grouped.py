"""Matrix products of tokens with the experts that they chose, grouped by expert.

Tokens are sorted by expert, each expert multiplies its own contiguous rows, and the rows go back to
their tokens: no loop over experts, and no weights per token. Sorting is stable and every row is
moved by a permutation, forward and backward, so that the same input gives the same bits.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

# torch's grouped matmul wants rows that start at multiples of so many bytes.
_ALIGNMENT = 16
_SERVED = (torch.float32, torch.bfloat16, torch.float16)


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


def grouped_matmul(rows: Tensor, weight: Tensor, ends: Tensor) -> Tensor:
    """Multiply each row by the matrix of its expert.

    By torch's grouped matmul where that takes the operands, else by one batched product with every
    expert's rows padded to the longest group: float64, and widths that are no multiple of 16 bytes.
    Padding costs memory where groups differ in length, and the longest is read from the device.

    Args:
        rows: [M, d_in], those of expert 0 first, then those of expert 1, ...
        weight: [E, d_in, d_out]; small groups on a CPU multiply this layout faster than the
            transposed one.
        ends: the row after the last one of each expert, int32 [E]; the last is M.

    Returns:
        [M, d_out], in the dtype of ``rows``, or in autocast's where that is on.
    """
    device = rows.device.type
    if torch.is_autocast_enabled(device):
        dtype = torch.get_autocast_dtype(device)
        rows, weight = rows.to(dtype), weight.to(dtype)
    return _product(rows, weight, ends)


# Operations of their own, so that compilers need not look inside: torch cannot trace its grouped
# matmul in float32. The gradient of each is the other, so that there are gradients of any order.
@torch.library.custom_op("dynnsiha::grouped_product", mutates_args=())
def _product(rows: Tensor, weight: Tensor, ends: Tensor) -> Tensor:
    """Rows [M, m] times their experts' matrices [E, m, n] → [M, n]."""
    rows = rows.contiguous()
    if not (weight.is_contiguous() or weight.mT.is_contiguous()):
        weight = weight.contiguous()
    if _torch_serves(rows, weight.shape[1:]):
        return F.grouped_mm(rows, weight, offs=ends)
    slots, longest = _slots(ends, len(rows))
    product = torch.bmm(_padded(rows, slots, longest, len(ends)), weight)
    return product.flatten(0, 1).index_select(0, slots)


@torch.library.custom_op("dynnsiha::grouped_outer", mutates_args=())
def _outer(left: Tensor, right: Tensor, ends: Tensor) -> Tensor:
    """Sum over each expert's rows of left_i right_iᵀ: [M, m], [M, n] → [E, m, n]."""
    left, right = left.contiguous(), right.contiguous()
    if _torch_serves(left, (left.shape[1], right.shape[1])):
        return F.grouped_mm(left.t(), right, offs=ends)
    slots, longest = _slots(ends, len(left))
    left, right = (_padded(rows, slots, longest, len(ends)) for rows in (left, right))
    return torch.bmm(left.mT, right)


@_product.register_fake
def _(rows: Tensor, weight: Tensor, ends: Tensor) -> Tensor:
    return rows.new_empty(rows.shape[0], weight.shape[2])


@_outer.register_fake
def _(left: Tensor, right: Tensor, ends: Tensor) -> Tensor:
    return left.new_empty(ends.shape[0], left.shape[1], right.shape[1])


def _keep_inputs(ctx: Any, inputs: tuple[Tensor, Tensor, Tensor], output: Tensor) -> None:
    ctx.save_for_backward(*inputs)


def _product_backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    rows, weight, ends = ctx.saved_tensors
    wanted = ctx.needs_input_grad
    d_rows = _product(grad, weight.mT, ends) if wanted[0] else None
    return d_rows, _outer(rows, grad, ends) if wanted[1] else None, None


def _outer_backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    left, right, ends = ctx.saved_tensors
    return _product(right, grad.mT, ends), _product(left, grad, ends), None


_product.register_autograd(_product_backward, setup_context=_keep_inputs)
_outer.register_autograd(_outer_backward, setup_context=_keep_inputs)


def _torch_serves(rows: Tensor, widths: Sequence[int]) -> bool:
    aligned = all(width * rows.element_size() % _ALIGNMENT == 0 for width in widths)
    return aligned and rows.dtype in _SERVED


def _slots(ends: Tensor, rows: int) -> tuple[Tensor, int]:
    """Where each row stands once every group is padded, int64 [M], and the longest group."""
    starts = F.pad(ends[:-1], (1, 0))
    longest = int((ends - starts).max())
    places = torch.arange(rows, device=ends.device)
    expert = torch.searchsorted(ends, places, right=True)
    return expert * longest + places - starts[expert], longest


def _padded(rows: Tensor, slots: Tensor, longest: int, experts: int) -> Tensor:
    """Rows [M, m] as [E, longest, m], zeros behind each group."""
    padded = rows.new_zeros(experts * longest, rows.shape[1])
    return padded.index_copy_(0, slots, rows).unflatten(0, (experts, longest))


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
        return x.index_select(0, order // choices)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        order, inverse = ctx.saved_tensors
        copies = _Permute.apply(grad, inverse, order).unflatten(0, (-1, ctx.choices))
        return copies.sum(1), None, None, None


class _WeightedSum(torch.autograd.Function):
    """Rows of each token times its weights, added up where they lie: no copy in token order."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, weights: Tensor, order: Tensor, inverse: Tensor) -> Tensor:
        ctx.save_for_backward(rows, weights, order, inverse)
        places = inverse.view(weights.shape)
        # Detached, or it would prepare a backward pass of its own.
        plain, factors = rows.detach(), weights.detach()
        return F.embedding_bag(places, plain, per_sample_weights=factors, mode="sum")

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        rows, weights, order, inverse = ctx.saved_tensors
        spread = _Spread.apply(grad, order, inverse, weights.shape[1])
        d_rows = d_weights = None
        if ctx.needs_input_grad[0]:
            d_rows = spread * _Permute.apply(weights.reshape(-1, 1), order, inverse)
        if ctx.needs_input_grad[1]:
            per_row = (spread * rows).sum(-1, keepdim=True)
            d_weights = _Permute.apply(per_row, inverse, order).view(weights.shape)
        return d_rows, d_weights, None, None
