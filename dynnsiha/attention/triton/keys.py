"""dk and dv: what each block of keys owes to the queries whose window holds it, and the final sum.

The kernel runs last: to its own part, of the sliding branch and the local blocks, it adds the
segments that ``pairs`` left for its block and the gradient of the summaries, in a fixed order, and
rounds once.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from .geometry import line_of, windows_seen
from .order import Segments
from .problem import Gradients, Operands, Piece, Problem
from .softmax import keys_of, rows_of


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
    _add[(bins, triton.cdiv(size, 1024))](
        total.dk, total.dv, new.dk, new.dv, new.bounds, size, N=1024
    )
    return [total]


@triton.jit
def _add(total_dk, total_dv, dk, dv, bounds, size, N: tl.constexpr):
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


def backward(
    problem: Problem,
    piece: Piece,
    operands: Operands,
    grads: Gradients,
    local: int,
    parts: list[Segments],
    summaries: tuple[Tensor, Tensor] | None,
    results: tuple[Tensor, Tensor],
) -> None:
    """Write dk and dv [tokens, K, D] of the heads of ``piece``.

    Args:
        local: newest blocks of a query that the selected branch left to this kernel.
        parts: at most two sets of segments.
        summaries: float32 [windows, K, D], gradients of the means, or None.
    """
    dk, dv = results
    tuned = problem.tuned("keys")
    config = problem.config
    q, k, v = operands.q, operands.k, operands.v
    tables: list[Tensor] = []
    for i in range(2):
        part = parts[i] if i < len(parts) else None
        tables += [problem.block_table] * 3 if part is None else [part.dk, part.dv, part.bounds]
    pooled = (q, q) if summaries is None else summaries
    _backward[(problem.geometry.blocks, piece.heads)](
        q,
        k,
        v,
        grads.out,
        grads.logs,
        grads.delta,
        *tables,
        *pooled,
        dk,
        dv,
        problem.block_table,
        problem.scale,
        problem.scale2,
        *(q.stride(0), q.stride(1), k.stride(0), k.stride(1), v.stride(0), v.stride(1)),
        problem.geometry.tokens,
        problem.geometry.blocks,
        problem.kv_heads,
        piece.first_head,
        config.window,
        **problem.shape,
        **tuned.launch,
        BS=config.block_size,
        CB=config.compress_block,
        ST=config.compress_stride,
        LOCAL=local,
        SLIDING="sliding" in config.branches,
        PARTS=len(parts),
        POOLED=summaries is not None,
    )


@triton.jit
def _segments(dk_acc, dv_acc, dk, dv, bounds, bin_, at, SIZE: tl.constexpr):
    for i in range(tl.load(bounds + bin_), tl.load(bounds + bin_ + 1)):
        offset = tl.cast(i, tl.int64) * SIZE + at
        dk_acc += tl.load(dk + offset)
        dv_acc += tl.load(dv + offset)
    return dk_acc, dv_acc


@triton.jit
def _backward(
    q,
    k,
    v,
    grad,
    logs,
    delta,
    dk_a,
    dv_a,
    bounds_a,
    dk_b,
    dv_b,
    bounds_b,
    dk_cmp,
    dv_cmp,
    dk,
    dv,
    table,
    scale,
    scale2,
    q_t,
    q_h,
    k_t,
    k_h,
    v_t,
    v_h,
    tokens,
    blocks,
    kv_heads,
    first_head,
    window,
    G: tl.constexpr,
    GP: tl.constexpr,
    D: tl.constexpr,
    BQ: tl.constexpr,
    BS: tl.constexpr,
    CB: tl.constexpr,
    ST: tl.constexpr,
    LOCAL: tl.constexpr,
    SLIDING: tl.constexpr,
    PARTS: tl.constexpr,
    POOLED: tl.constexpr,
):
    block = tl.program_id(0)
    kv = first_head + tl.program_id(1)
    heads = kv_heads * G
    key_row, start, end, _b, window0, _t = line_of(table, block)
    count = end - key_row
    keys = keys_of(k + kv * k_h, key_row, count, k_t, BS, D)
    values = keys_of(v + kv * v_h, key_row, count, v_t, BS, D)
    r, n, d = tl.arange(0, BQ * GP), tl.arange(0, BS), tl.arange(0, D)
    head = kv * G + r % GP
    branch = tokens.to(tl.int64) * heads
    column = (key_row + n)[:, None]
    dk_acc = tl.zeros([BS, D], tl.float32)
    dv_acc = tl.zeros([BS, D], tl.float32)

    near = tl.minimum(key_row + LOCAL * BS, end)
    for row in range(key_row, near, BQ):
        token = row + r // GP
        live = (token < near) & (r % GP < G)
        tile = rows_of(q, token, head, live, q_t, q_h, D)
        tile_grad = rows_of(grad, token, head, live, heads * D, D, D)
        line = token.to(tl.int64) * heads + head
        log = tl.load(logs + branch + line, mask=live, other=float("inf"))
        shift = tl.load(delta + branch + line, mask=live, other=0.0)
        s = tl.dot(keys, tl.trans(tile)) * scale2
        if row < key_row + BS:
            s = tl.where(column <= token[None, :], s, float("-inf"))
        dp = tl.dot(values, tl.trans(tile_grad))
        p = tl.exp2(s - log[None, :])
        ds = p * (dp - shift[None, :])
        if SLIDING:
            log = tl.load(logs + 2 * branch + line, mask=live, other=float("inf"))
            shift = tl.load(delta + 2 * branch + line, mask=live, other=0.0)
            p_win = tl.exp2(s - log[None, :])
            ds += p_win * (dp - shift[None, :])
            p += p_win
        dv_acc = tl.dot(p.to(tile.dtype), tile_grad, dv_acc)
        dk_acc = tl.dot(ds.to(tile.dtype), tile, dk_acc)

    if SLIDING:
        far = tl.minimum(key_row + BS - 1 + window, end)
        for row in range(key_row + LOCAL * BS, far, BQ):
            token = row + r // GP
            live = (token < far) & (r % GP < G)
            tile = rows_of(q, token, head, live, q_t, q_h, D)
            tile_grad = rows_of(grad, token, head, live, heads * D, D, D)
            line = token.to(tl.int64) * heads + head
            log = tl.load(logs + 2 * branch + line, mask=live, other=float("inf"))
            shift = tl.load(delta + 2 * branch + line, mask=live, other=0.0)
            p = tl.exp2(tl.dot(keys, tl.trans(tile)) * scale2 - log[None, :])
            if (row < key_row + BS) | (row + BQ > key_row + window):
                seen = (column <= token[None, :]) & (column > token[None, :] - window)
                p = tl.where(seen, p, 0.0)
            dv_acc = tl.dot(p.to(tile.dtype), tile_grad, dv_acc)
            dp = tl.dot(values, tl.trans(tile_grad))
            ds = p * (dp - shift[None, :])
            dk_acc = tl.dot(ds.to(tile.dtype), tile, dk_acc)

    at = n[:, None] * D + d[None, :]
    bin_ = tl.program_id(1) * blocks + block
    if PARTS > 0:
        dk_acc, dv_acc = _segments(dk_acc, dv_acc, dk_a, dv_a, bounds_a, bin_, at, BS * D)
    if PARTS > 1:
        dk_acc, dv_acc = _segments(dk_acc, dv_acc, dk_b, dv_b, bounds_b, bin_, at, BS * D)
    if POOLED:
        position = key_row - start + n
        exist = windows_seen(end - 1 - start, CB, ST)
        for i in tl.static_range(CB // ST):
            w = position // ST - i
            covers = (w >= 0) & (w < exist) & (n < count)
            line = ((window0 + w).to(tl.int64) * kv_heads + kv)[:, None] * D + d[None, :]
            dk_acc += tl.load(dk_cmp + line, mask=covers[:, None], other=0.0) / CB
            dv_acc += tl.load(dv_cmp + line, mask=covers[:, None], other=0.0) / CB
    to = ((key_row + n).to(tl.int64) * kv_heads + kv)[:, None] * D + d[None, :]
    inside = (n < count)[:, None]
    tl.store(dk + to, (dk_acc * scale).to(dk.dtype.element_ty), mask=inside)
    tl.store(dv + to, dv_acc.to(dv.dtype.element_ty), mask=inside)
