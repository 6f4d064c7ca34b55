"""Matrix products of rows with the matrices of their experts, without a loop over experts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

# torch's grouped matmul wants rows that start at multiples of so many bytes.
_ALIGNMENT = 16
_SERVED = (torch.float32, torch.bfloat16, torch.float16)


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
    if torch.compiler.is_compiling():
        return _product_operation(rows, weight, ends)
    return _Product.apply(rows, weight, ends)


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


def _outer(left: Tensor, right: Tensor, ends: Tensor) -> Tensor:
    """Sum over each expert's rows of left_i right_iᵀ: [M, m], [M, n] → [E, m, n]."""
    left, right = left.contiguous(), right.contiguous()
    if _torch_serves(left, (left.shape[1], right.shape[1])):
        return F.grouped_mm(left.t(), right, offs=ends)
    slots, longest = _slots(ends, len(left))
    left, right = (_padded(rows, slots, longest, len(ends)) for rows in (left, right))
    return torch.bmm(left.mT, right)


# The gradient of each of the two is the other, so that there are gradients of any order.
_Grouped = Callable[[Tensor, Tensor, Tensor], Tensor]


def _product_gradients(
    ctx: Any, grad: Tensor, product: _Grouped, outer: _Grouped
) -> tuple[Tensor | None, ...]:
    rows, weight, ends = ctx.saved_tensors
    wanted = ctx.needs_input_grad
    d_rows = product(grad, weight.mT, ends) if wanted[0] else None
    return d_rows, outer(rows, grad, ends) if wanted[1] else None, None


def _outer_gradients(ctx: Any, grad: Tensor, product: _Grouped) -> tuple[Tensor | None, ...]:
    left, right, ends = ctx.saved_tensors
    return product(right, grad.mT, ends), product(left, grad, ends), None


class _Product(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, rows: Tensor, weight: Tensor, ends: Tensor) -> Tensor:
        ctx.save_for_backward(rows, weight, ends)
        return _product(rows, weight, ends)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        return _product_gradients(ctx, grad, _Product.apply, _Outer.apply)


class _Outer(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, left: Tensor, right: Tensor, ends: Tensor) -> Tensor:
        ctx.save_for_backward(left, right, ends)
        return _outer(left, right, ends)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        return _outer_gradients(ctx, grad, _Product.apply)


# Operations of their own for compilers, which then need not look inside: torch cannot trace its
# grouped matmul in float32. Called from Python they take 0.2 ms longer than what they wrap.
_product_operation = torch.library.custom_op("dynnsiha::grouped_product", mutates_args=())(_product)
_outer_operation = torch.library.custom_op("dynnsiha::grouped_outer", mutates_args=())(_outer)


@_product_operation.register_fake
def _(rows: Tensor, weight: Tensor, ends: Tensor) -> Tensor:
    return rows.new_empty(rows.shape[0], weight.shape[2])


@_outer_operation.register_fake
def _(left: Tensor, right: Tensor, ends: Tensor) -> Tensor:
    return left.new_empty(ends.shape[0], left.shape[1], right.shape[1])


def _keep_inputs(ctx: Any, inputs: tuple[Tensor, Tensor, Tensor], output: Tensor) -> None:
    ctx.save_for_backward(*inputs)


_product_operation.register_autograd(
    lambda ctx, grad: _product_gradients(ctx, grad, _product_operation, _outer_operation),
    setup_context=_keep_inputs,
)
_outer_operation.register_autograd(
    lambda ctx, grad: _outer_gradients(ctx, grad, _product_operation), setup_context=_keep_inputs
)


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
