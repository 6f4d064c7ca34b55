"""dk and dv of the sliding branch, and of the newest blocks, which the selected branch sees too."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from .geometry import VARYING, line_of
from .order import Segments
from .problem import Gradients, Operands, Piece, Problem
from .sources import keys_of, numbers_of, tile_of


def backward(
    problem: Problem, piece: Piece, operands: Operands, grads: Gradients, local: int
) -> Segments:
    """One segment of dk and dv for every block and head of ``piece``; dk lacks the scale.

    ``local`` newest blocks of a query were left to this kernel by the selected branch.
    """
    config, geometry = problem.config, problem.geometry
    size = config.block_size
    tuned = problem.tuned("keys", size)
    q, k, v = operands.q, operands.k, operands.v
    bins = piece.heads * geometry.blocks
    shape = (bins, size, problem.head_dim)
    dk, dv = (torch.empty(shape, dtype=torch.float32, device=q.device) for _ in range(2))
    keys_backward[(geometry.blocks, piece.heads)](
        problem.rows(q, tuned.queries),
        problem.keys(k, size),
        problem.keys(v, size),
        problem.rows(grads.out, tuned.queries),
        grads.logs,
        grads.delta,
        dk,
        dv,
        problem.block_table,
        problem.scale2,
        *(q.stride(0), q.stride(1), k.stride(0), k.stride(1), v.stride(0), v.stride(1)),
        geometry.tokens,
        geometry.blocks,
        problem.kv_heads,
        piece.first_head,
        problem.window,
        **problem.shape,
        **tuned.launch,
        BS=size,
        LOCAL=local,
        SLIDING="sliding" in config.branches,
    )
    return Segments(dk, dv, torch.arange(bins + 1, dtype=torch.int32, device=q.device))


@triton.jit(do_not_specialize=VARYING)
def keys_backward(
    q,
    k,
    v,
    grad,
    logs,
    delta,
    dk,
    dv,
    table,
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
    TMA: tl.constexpr,
    BQ: tl.constexpr,
    BS: tl.constexpr,
    LOCAL: tl.constexpr,
    SLIDING: tl.constexpr,
):
    """dk and dv of one block, from the queries whose window holds it."""
    block = tl.program_id(0)
    kv = first_head + tl.program_id(1)
    heads = kv_heads * G
    key_row, start, end, _b, _w, _t, sequence = line_of(table, block)
    count = end - key_row
    offset = key_row - start
    keys = keys_of(k, sequence, start, offset, count, kv, k_t, k_h, BS, D, TMA)
    values = keys_of(v, sequence, start, offset, count, kv, v_t, v_h, BS, D, TMA)
    r, n, d = tl.arange(0, BQ * GP), tl.arange(0, BS), tl.arange(0, D)
    branch = tl.cast(tokens, tl.int64) * heads
    column = (key_row + n)[:, None]
    dk_acc = tl.zeros([BS, D], tl.float32)
    dv_acc = tl.zeros([BS, D], tl.float32)

    # Queries whose window holds the block; to the first of them it is local as well. Without a
    # window, those alone.
    near = key_row + LOCAL * BS
    far = tl.minimum(key_row + BS - 1 + window if SLIDING else near, end)
    for row in range(key_row, far, BQ):
        offset, left = row - start, far - row
        tile = tile_of(q, sequence, start, offset, left, kv, q_t, q_h, G, GP, BQ, D, TMA)
        tile_grad = tile_of(
            grad, sequence, start, offset, left, kv, heads * D, D, G, GP, BQ, D, TMA
        )
        which = tl.where(row < near, 3, 2) * branch
        log = numbers_of(logs + which, row, left, kv, heads, G, GP, BQ)
        p = tl.exp2(tl.dot(keys, tl.trans(tile)) * scale2 - log[None, :])
        dp = tl.dot(values, tl.trans(tile_grad))
        shift = numbers_of(delta + which, row, left, kv, heads, G, GP, BQ)
        ds = p * (dp - shift[None, :])
        if (row < key_row + BS) | (row + BQ > tl.minimum(key_row + window, far)):
            token = (row + r // GP)[None, :]
            seen = (column <= token) & (column > token - window) & (token < far)
            p, ds = tl.where(seen, p, 0.0), tl.where(seen, ds, 0.0)
        if G < GP:
            mine = (r % GP < G)[None, :]
            p, ds = tl.where(mine, p, 0.0), tl.where(mine, ds, 0.0)
        dv_acc = tl.dot(p.to(tile.dtype), tile_grad, dv_acc)
        dk_acc = tl.dot(ds.to(tile.dtype), tile, dk_acc)

    bin_ = tl.program_id(1) * blocks + block
    at = bin_.to(tl.int64) * BS * D + n[:, None] * D + d[None, :]
    tl.store(dk + at, dk_acc)
    tl.store(dv + at, dv_acc)
