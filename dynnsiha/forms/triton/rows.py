"""Rows of tokens carried to the experts that they took, and the experts' rows added up again.

One program a token: it reads the token's row once and its k sorted rows where they lie. Sums are
made in float32, in the order of a token's choices, and rounded once.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

_WIDTH = 1024  # features that a program holds at a time


def spread(x: Tensor, inverse: Tensor, choices: int) -> Tensor:
    """x [N, d] → each row at the ``choices`` places that ``inverse`` [N k] names, [N k, d]."""
    tokens, width = x.shape
    rows = x.new_empty(tokens * choices, width)
    if tokens:
        spread_rows[(tokens,)](x.contiguous(), rows, inverse, width, K=choices, N=_block(width))
    return rows


def weighted_sum(rows: Tensor, weights: Tensor | None, inverse: Tensor, choices: int) -> Tensor:
    """Σ_j weights_j row_j of each token: rows [N k, d], weights [N, k] or None for 1 → [N, d]."""
    width = rows.shape[1]
    tokens = len(rows) // choices
    total = rows.new_empty(tokens, width)
    if tokens:
        rows = rows.contiguous()
        sum_rows[(tokens,)](
            *(rows, rows if weights is None else weights.contiguous(), total, inverse, width),
            WEIGHTED=weights is not None,
            K=choices,
            N=_block(width),
        )
    return total


def weighted_sum_backward(
    grad: Tensor, rows: Tensor, weights: Tensor, inverse: Tensor
) -> tuple[Tensor, Tensor]:
    """grad [N, d] of the sums → gradients of the rows [N k, d] and of the weights [N, k]."""
    tokens, choices = weights.shape
    rows, weights = rows.contiguous(), weights.contiguous()
    d_rows, d_weights = torch.empty_like(rows), torch.empty_like(weights)
    if tokens:
        width = rows.shape[1]
        sum_rows_backward[(tokens,)](
            *(grad.contiguous(), rows, weights, d_rows, d_weights, inverse, width),
            K=choices,
            N=_block(width),
        )
    return d_rows, d_weights


def _block(width: int) -> int:
    return min(_WIDTH, triton.next_power_of_2(width))


@triton.jit
def spread_rows(x, rows, inverse, width, K: tl.constexpr, N: tl.constexpr):
    """A token's row, at the places of its K choices."""
    token = tl.program_id(0).to(tl.int64)
    for start in range(0, width, N):
        d = start + tl.arange(0, N)
        row = tl.load(x + token * width + d, mask=d < width)
        for j in tl.static_range(K):
            place = tl.load(inverse + token * K + j)
            tl.store(rows + place * width + d, row, mask=d < width)


@triton.jit
def sum_rows(
    rows, weights, total, inverse, width, WEIGHTED: tl.constexpr, K: tl.constexpr, N: tl.constexpr
):
    """The rows of a token's K choices, times their weights, added up."""
    token = tl.program_id(0).to(tl.int64)
    for start in range(0, width, N):
        d = start + tl.arange(0, N)
        added = tl.zeros([N], tl.float32)
        for j in tl.static_range(K):
            place = tl.load(inverse + token * K + j)
            row = tl.load(rows + place * width + d, mask=d < width, other=0.0).to(tl.float32)
            if WEIGHTED:
                row *= tl.load(weights + token * K + j).to(tl.float32)
            added += row
        tl.store(total + token * width + d, added.to(total.dtype.element_ty), mask=d < width)


@triton.jit
def sum_rows_backward(
    grad, rows, weights, d_rows, d_weights, inverse, width, K: tl.constexpr, N: tl.constexpr
):
    """Of each choice: its weight times the gradient, and the gradient times its row."""
    token = tl.program_id(0).to(tl.int64)
    for j in range(K):
        place = tl.load(inverse + token * K + j) * width
        weight = tl.load(weights + token * K + j).to(tl.float32)
        products = tl.zeros([N], tl.float32)
        for start in range(0, width, N):
            d = start + tl.arange(0, N)
            g = tl.load(grad + token * width + d, mask=d < width, other=0.0).to(tl.float32)
            row = tl.load(rows + place + d, mask=d < width, other=0.0).to(tl.float32)
            products += g * row
            tl.store(d_rows + place + d, (g * weight).to(d_rows.dtype.element_ty), mask=d < width)
        d_weight = tl.sum(products, 0)
        tl.store(d_weights + token * K + j, d_weight.to(d_weights.dtype.element_ty))
