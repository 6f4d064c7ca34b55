"""Compressed branch: dense causal attention over the summaries that have ended."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from .geometry import VARYING, line_of, windows_seen
from .problem import Gradients, Operands, Problem
from .softmax import absorb, finished, fresh, overflown, rows_of, store_rows
from .sources import keys_of, numbers_of, tile_of

_PROGRAMS = 2048  # enough to fill a large GPU several times
_LEAST_PART = 1024  # queries


def forward(problem: Problem, q: Tensor, k_cmp: Tensor, v_cmp: Tensor) -> tuple[Tensor, Tensor]:
    """Output [tokens, H, D] and log-sum-exp in base 2 [tokens, H]."""
    out = torch.empty(q.shape, dtype=q.dtype, device=q.device)
    lse = torch.empty(q.shape[:2], dtype=torch.float32, device=q.device)
    tuned = problem.tuned("compressed")
    table = problem.geometry.programs(tuned.queries)
    compressed_forward[(len(table), problem.kv_heads)](
        q,
        problem.keys(k_cmp, tuned.launch["BN"]),
        problem.keys(v_cmp, tuned.launch["BN"]),
        out,
        lse,
        table,
        problem.scale2,
        q.stride(0),
        q.stride(1),
        problem.kv_heads,
        **problem.shape,
        **tuned.launch,
        CB=problem.config.compress_block,
        ST=problem.config.compress_stride,
    )
    return out, lse


@triton.jit
def over_windows(
    tile, k_cmp, v_cmp, sequence, window, last, kv, width, scale2, seen, all_see,
    D: tl.constexpr, TMA: tl.constexpr, BN: tl.constexpr, SHIFTED: tl.constexpr,
):  # fmt: skip
    """The running state of a tile after the windows before ``last``."""
    top, total, acc = fresh(tile.shape[0], D, SHIFTED)
    for first in tl.range(0, last, BN, num_stages=1 if SHIFTED else None):
        k = keys_of(k_cmp, sequence, window, first, last - first, kv, width, D, BN, D, TMA)
        v = keys_of(v_cmp, sequence, window, first, last - first, kv, width, D, BN, D, TMA)
        s = tl.dot(tile, tl.trans(k))
        if first + BN > all_see:
            s = tl.where((first + tl.arange(0, BN))[None, :] < seen[:, None], s, float("-inf"))
        top, total, acc = absorb(s, v, scale2, top, total, acc, SHIFTED)
    return top, total, acc


@triton.jit
def compressed_forward(
    q,
    k_cmp,
    v_cmp,
    out,
    lse,
    table,
    scale2,
    q_t,
    q_h,
    kv_heads,
    G: tl.constexpr,
    GP: tl.constexpr,
    D: tl.constexpr,
    TMA: tl.constexpr,
    BQ: tl.constexpr,
    BN: tl.constexpr,
    CB: tl.constexpr,
    ST: tl.constexpr,
):
    """Output and log-sum-exp of BQ queries."""
    # The last tiles see most summaries: they start first.
    last_first = tl.num_programs(0) - 1 - tl.program_id(0)
    row, start, end, _b, window, _t, sequence = line_of(table, last_first)
    kv = tl.program_id(1)
    r = tl.arange(0, BQ * GP)
    token, head = row + r // GP, kv * G + r % GP
    live = (token < end) & (r % GP < G)
    tile = rows_of(q, token, head, live, q_t, q_h, D)
    seen = windows_seen(token - start, CB, ST)
    all_see = windows_seen(row - start, CB, ST)
    last = windows_seen(tl.minimum(row + BQ, end) - 1 - start, CB, ST)
    width = kv_heads * D
    top, total, acc = over_windows(
        tile, k_cmp, v_cmp, sequence, window, last, kv, width, scale2, seen, all_see,
        D, TMA, BN, False,
    )  # fmt: skip
    if overflown(total, live & (seen > 0), tile.dtype):
        top, total, acc = over_windows(
            tile, k_cmp, v_cmp, sequence, window, last, kv, width, scale2, seen, all_see,
            D, TMA, BN, True,
        )  # fmt: skip
    o, logs = finished(top, total, acc)
    heads = kv_heads * G
    store_rows(out, o, token, head, live, heads * D, D, D)
    tl.store(lse + token.to(tl.int64) * heads + head, logs, mask=live)


def backward(problem: Problem, operands: Operands, grads: Gradients) -> tuple[Tensor, Tensor]:
    """Gradients of the summaries, float32 [windows, K, D]; that of k_cmp lacks the scale.

    Long sequences of queries are split, so that there are programs enough; the parts are summed in
    a fixed order.
    """
    q, k_cmp, v_cmp = operands.q, operands.k_cmp, operands.v_cmp
    tuned = problem.tuned("compressed backward")
    table = problem.geometry.window_programs(tuned.launch["BN"])
    longest = max(problem.geometry.lengths)
    parts = max(1, min(_PROGRAMS // max(1, len(table) * problem.kv_heads), longest // _LEAST_PART))
    length = triton.cdiv(triton.cdiv(longest, parts), tuned.queries) * tuned.queries
    shape = (parts, *k_cmp.shape)
    dk = torch.zeros(shape, dtype=torch.float32, device=q.device)
    dv = torch.zeros_like(dk)
    if len(table):
        compressed_backward[(len(table), problem.kv_heads, parts)](
            problem.rows(q, tuned.queries),
            problem.keys(k_cmp, tuned.launch["BN"]),
            problem.keys(v_cmp, tuned.launch["BN"]),
            problem.rows(grads.out, tuned.queries),
            grads.logs,
            grads.delta,
            dk,
            dv,
            table,
            problem.scale2,
            q.stride(0),
            q.stride(1),
            problem.kv_heads,
            problem.geometry.windows,
            length,
            **problem.shape,
            **tuned.launch,
            CB=problem.config.compress_block,
            ST=problem.config.compress_stride,
        )
    return dk.sum(0), dv.sum(0)


@triton.jit(do_not_specialize=VARYING)
def compressed_backward(
    q,
    k_cmp,
    v_cmp,
    grad,
    logs,
    delta,
    dk,
    dv,
    table,
    scale2,
    q_t,
    q_h,
    kv_heads,
    windows,
    length,
    G: tl.constexpr,
    GP: tl.constexpr,
    D: tl.constexpr,
    TMA: tl.constexpr,
    BQ: tl.constexpr,
    BN: tl.constexpr,
    CB: tl.constexpr,
    ST: tl.constexpr,
):
    """dk and dv of BN windows, from one part of the queries."""
    first, start, end, _b, window0, _t, sequence = line_of(table, tl.program_id(0))
    kv, part = tl.program_id(1), tl.program_id(2)
    heads = kv_heads * G
    exist = windows_seen(end - 1 - start, CB, ST)
    # The first query that sees the first window, rounded down to whole tiles.
    begin = tl.maximum((first * ST + CB - 1) // BQ * BQ, part * length) + start
    stop = tl.minimum((part + 1) * length + start, end)
    if begin < stop:
        width = kv_heads * D
        left = exist - first
        keys = keys_of(k_cmp, sequence, window0, first, left, kv, width, D, BN, D, TMA)
        values = keys_of(v_cmp, sequence, window0, first, left, kv, width, D, BN, D, TMA)
        r, n, d = tl.arange(0, BQ * GP), tl.arange(0, BN), tl.arange(0, D)
        all_seen = (first + BN - 1) * ST + CB - 1 + start
        dk_acc = tl.zeros([BN, D], tl.float32)
        dv_acc = tl.zeros([BN, D], tl.float32)
        for row in range(begin, stop, BQ):
            at, left = row - start, stop - row
            tile = tile_of(q, sequence, start, at, left, kv, q_t, q_h, G, GP, BQ, D, TMA)
            tile_grad = tile_of(
                grad, sequence, start, at, left, kv, heads * D, D, G, GP, BQ, D, TMA
            )
            log = numbers_of(logs, row, left, kv, heads, G, GP, BQ)
            p = tl.exp2(tl.dot(keys, tl.trans(tile)) * scale2 - log[None, :])
            dp = tl.dot(values, tl.trans(tile_grad))
            shift = numbers_of(delta, row, left, kv, heads, G, GP, BQ)
            ds = p * (dp - shift[None, :])
            if (row < all_seen) | (row + BQ > stop):
                token = row + r // GP
                ended = tl.where(token < stop, windows_seen(token - start, CB, ST), 0)
                seen = (first + n)[:, None] < ended[None, :]
                p, ds = tl.where(seen, p, 0.0), tl.where(seen, ds, 0.0)
            if G < GP:
                mine = (r % GP < G)[None, :]
                p, ds = tl.where(mine, p, 0.0), tl.where(mine, ds, 0.0)
            dv_acc = tl.dot(p.to(tile.dtype), tile_grad, dv_acc)
            dk_acc = tl.dot(ds.to(tile.dtype), tile, dk_acc)
        inside = (first + n < exist)[:, None]
        to = (part * windows + window0 + first + n).to(tl.int64) * kv_heads + kv
        tl.store(dk + to[:, None] * D + d[None, :], dk_acc, mask=inside)
        tl.store(dv + to[:, None] * D + d[None, :], dv_acc, mask=inside)
