"""Sums of the segments of dk and dv that the kernels leave, in a fixed order, rounded once."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from .geometry import VARYING, line_of, windows_seen
from .order import Segments
from .problem import Piece, Problem

_ROWS = 16  # keys that a program sums


def joined(
    problem: Problem, piece: Piece, before: list[Segments], new: Segments, last: bool
) -> list[Segments]:
    """The sum of what several pieces of queries left for the same heads; one piece as it is."""
    if last and not before:
        return [new]
    bins = piece.heads * problem.geometry.blocks
    if before:
        total = before[0]
    else:
        shape = (bins, *new.dk.shape[1:])
        dk, dv = (new.dk.new_zeros(shape) for _ in range(2))
        total = Segments(dk, dv, torch.arange(bins + 1, dtype=torch.int32, device=dk.device))
    size = new.dk[0].numel()
    add_segments[(bins, triton.cdiv(size, 1024))](
        total.dk, total.dv, new.dk, new.dv, new.bounds, size, N=1024
    )
    return [total]


@triton.jit
def add_segments(total_dk, total_dv, dk, dv, bounds, size, N: tl.constexpr):
    """Segments of one bin, added in their order to its running sum."""
    bin_ = tl.program_id(0)
    at = tl.program_id(1) * N + tl.arange(0, N)
    inside = at < size
    to = bin_.to(tl.int64) * size + at
    dk_sum = tl.load(total_dk + to, mask=inside, other=0.0)
    dv_sum = tl.load(total_dv + to, mask=inside, other=0.0)
    for i in range(tl.load(bounds + bin_), tl.load(bounds + bin_ + 1)):
        dk_sum += tl.load(dk + tl.cast(i, tl.int64) * size + at, mask=inside, other=0.0)
        dv_sum += tl.load(dv + tl.cast(i, tl.int64) * size + at, mask=inside, other=0.0)
    tl.store(total_dk + to, dk_sum, mask=inside)
    tl.store(total_dv + to, dv_sum, mask=inside)


def finish(
    problem: Problem,
    piece: Piece,
    parts: list[Segments],
    summaries: tuple[Tensor, Tensor] | None,
    results: tuple[Tensor, Tensor],
) -> None:
    """Write dk and dv [tokens, K, D] of the heads of ``piece``.

    Args:
        parts: at most three sets of segments.
        summaries: float32 [windows, K, D], gradients of the means, or None.
    """
    dk, dv = results
    config, geometry = problem.config, problem.geometry
    tables: list[Tensor] = []
    for i in range(3):
        part = parts[i] if i < len(parts) else None
        tables += [problem.block_table] * 3 if part is None else [part.dk, part.dv, part.bounds]
    rows = min(_ROWS, config.block_size)
    finish_keys[(geometry.blocks, config.block_size // rows, piece.heads)](
        *tables,
        *((dk, dv) if summaries is None else summaries),
        dk,
        dv,
        problem.block_table,
        problem.scale,
        geometry.blocks,
        problem.kv_heads,
        piece.first_head,
        D=problem.head_dim,
        N=rows,
        BS=config.block_size,
        CB=config.compress_block,
        ST=config.compress_stride,
        PARTS=len(parts),
        POOLED=summaries is not None,
    )


@triton.jit
def _segments(dk_sum, dv_sum, dk, dv, bounds, bin_, at, SIZE: tl.constexpr):
    for i in range(tl.load(bounds + bin_), tl.load(bounds + bin_ + 1)):
        offset = tl.cast(i, tl.int64) * SIZE + at
        dk_sum += tl.load(dk + offset)
        dv_sum += tl.load(dv + offset)
    return dk_sum, dv_sum


@triton.jit(do_not_specialize=VARYING)
def finish_keys(
    dk_a,
    dv_a,
    bounds_a,
    dk_b,
    dv_b,
    bounds_b,
    dk_c,
    dv_c,
    bounds_c,
    dk_cmp,
    dv_cmp,
    dk,
    dv,
    table,
    scale,
    blocks,
    kv_heads,
    first_head,
    D: tl.constexpr,
    N: tl.constexpr,
    BS: tl.constexpr,
    CB: tl.constexpr,
    ST: tl.constexpr,
    PARTS: tl.constexpr,
    POOLED: tl.constexpr,
):
    """dk and dv of N keys: all segments, and the share of their windows' gradient."""
    block = tl.program_id(0)
    kv = first_head + tl.program_id(2)
    row, start, end, _b, window0, _t, _s = line_of(table, block)
    n, d = tl.program_id(1) * N + tl.arange(0, N), tl.arange(0, D)
    inside = row + n < end
    dk_sum, dv_sum = tl.zeros([N, D], tl.float32), tl.zeros([N, D], tl.float32)
    at = n[:, None] * D + d[None, :]
    bin_ = tl.program_id(2) * blocks + block
    if PARTS > 0:
        dk_sum, dv_sum = _segments(dk_sum, dv_sum, dk_a, dv_a, bounds_a, bin_, at, BS * D)
    if PARTS > 1:
        dk_sum, dv_sum = _segments(dk_sum, dv_sum, dk_b, dv_b, bounds_b, bin_, at, BS * D)
    if PARTS > 2:
        dk_sum, dv_sum = _segments(dk_sum, dv_sum, dk_c, dv_c, bounds_c, bin_, at, BS * D)
    if POOLED:
        position = row - start + n
        exist = windows_seen(end - 1 - start, CB, ST)
        for i in tl.static_range(CB // ST):
            w = position // ST - i
            covers = (w >= 0) & (w < exist) & inside
            line = ((window0 + w).to(tl.int64) * kv_heads + kv)[:, None] * D + d[None, :]
            dk_sum += tl.load(dk_cmp + line, mask=covers[:, None], other=0.0) / CB
            dv_sum += tl.load(dv_cmp + line, mask=covers[:, None], other=0.0) / CB
    to = ((row + n).to(tl.int64) * kv_heads + kv)[:, None] * D + d[None, :]
    tl.store(dk + to, (dk_sum * scale).to(dk.dtype.element_ty), mask=inside[:, None])
    tl.store(dv + to, dv_sum.to(dv.dtype.element_ty), mask=inside[:, None])
