"""Key-block-outer part of the selected branch: each block meets all queries that chose it.

A program loads one block of keys and values and gathers the queries of one segment of pairs. It
serves what is not shared by neighbours: private blocks, and all of exact NSA's. Every pair leaves a
partial output, or a partial dq, in a slot of its own: [rows, K, slots, G, D]. ``tiles`` joins them
in the order of the slots, so that nothing depends on the order of programs; what lies in slots
without a block is undefined.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..architecture import AMPERE
from ..config import BRANCHES
from .geometry import VARYING, line_of
from .lists import Lists
from .order import Order, Segments, segment_of
from .problem import Gradients, Operands, Piece, Problem
from .softmax import rows_of
from .sources import keys_of, numbers_of, tile_of


def forward(
    problem: Problem, piece: Piece, lists: Lists, operands: Operands, order: Order
) -> tuple[Tensor, Tensor]:
    """Outputs [rows, K, slots, G, D] and log-sum-exps in base 2 [rows, K, slots, G]."""
    q, k, v = operands.q, operands.k, operands.v
    slots = lists.private.shape[-1]
    shape = (piece.rows, piece.heads, slots, problem.group)
    part = torch.empty(*shape, problem.head_dim, dtype=q.dtype, device=q.device)
    lse = torch.empty(shape, dtype=torch.float32, device=q.device)
    if not lists.alike:
        lse.fill_(float("-inf"))  # which slots are empty must be known
    tuned = problem.tuned("pairs")
    size = problem.config.block_size
    pairs_forward[(len(order.key),)](
        q,
        problem.keys(k, size),
        problem.keys(v, size),
        part,
        lse,
        order.unit,
        order.line,
        order.first,
        order.segment,
        order.key,
        order.length,
        problem.block_table,
        problem.scale2,
        *(q.stride(0), q.stride(1), k.stride(0), k.stride(1), v.stride(0), v.stride(1)),
        len(order.segment) - 1,
        problem.geometry.blocks,
        order.spread,
        piece.first_head,
        **problem.shape,
        **tuned.launch,
        BS=size,
        DIAGONAL=problem.given,
    )
    return part, lse


@triton.jit(do_not_specialize=VARYING)
def pairs_forward(
    q,
    k,
    v,
    part,
    lse,
    unit_of_pair,
    line_of_pair,
    first,
    segment,
    key,
    length,
    table,
    scale2,
    q_t,
    q_h,
    k_t,
    k_h,
    v_t,
    v_h,
    bins,
    blocks,
    spread,
    first_head,
    G: tl.constexpr,
    GP: tl.constexpr,
    D: tl.constexpr,
    TMA: tl.constexpr,
    BQ: tl.constexpr,
    BS: tl.constexpr,
    DIAGONAL: tl.constexpr,
):
    """Partial results of one segment of pairs."""
    begin, end, bin_ = segment_of(key, first, segment, tl.program_id(0), length, bins)
    if begin < end:
        kv = bin_ // spread + first_head
        key_row, start, key_end, _b, _w, _t, sequence = line_of(table, bin_ % blocks)
        count = key_end - key_row
        offset = key_row - start
        keys = keys_of(k, sequence, start, offset, count, kv, k_t, k_h, BS, D, TMA)
        values = keys_of(v, sequence, start, offset, count, kv, v_t, v_h, BS, D, TMA)
        r = tl.arange(0, BQ * GP)
        g = r % GP
        token = tl.load(unit_of_pair + begin + r // GP, mask=begin + r // GP < end, other=0)
        for i in range(begin, end, BQ):
            at = i + r // GP
            live = (at < end) & (g < G)
            # Asked for early: at the end, when it is needed, nothing is left to do meanwhile.
            line = tl.load(line_of_pair + at, mask=live, other=0) * G + g
            tile = rows_of(q, token, kv * G + g, live, q_t, q_h, D)
            seen_by = token
            # A step ahead: what only a load waits for would take that load's place in the pipeline.
            token = tl.load(unit_of_pair + at + BQ, mask=at + BQ < end, other=0)
            s = tl.dot(tile, tl.trans(keys))
            if DIAGONAL:
                s = tl.where((key_row + tl.arange(0, BS))[None, :] <= seen_by[:, None], s, -1.0e30)
            top = tl.max(s, 1) * scale2
            p = tl.exp2(s * scale2 - top[:, None])
            total = tl.sum(p, 1)
            o = tl.dot(p.to(values.dtype), values) * (1.0 / total)[:, None]
            d = tl.arange(0, D)
            tl.store(
                part + (line * D)[:, None] + d[None, :],
                o.to(part.dtype.element_ty),
                mask=live[:, None],
                cache_modifier=".cs",
            )
            tl.store(lse + line, top + tl.log2(total), mask=live)


def backward(
    problem: Problem,
    piece: Piece,
    lists: Lists,
    operands: Operands,
    grads: Gradients,
    order: Order,
) -> tuple[Tensor, Segments]:
    """dq [rows, K, slots, G, D] and segments of dk and dv; dq and dk lack the factor ``scale``."""
    slots = lists.private.shape[-1]
    shape = (piece.rows, piece.heads, slots, problem.group, problem.head_dim)
    dq = torch.empty(shape, dtype=operands.q.dtype, device=operands.q.device)
    segments = _launch(problem, piece, operands, grads, order, dq, problem.given, None, 1)
    return dq, segments


def backward_shared(
    problem: Problem,
    piece: Piece,
    lists: Lists,
    operands: Operands,
    grads: Gradients,
    order: Order,
) -> Segments:
    """Segments of dk and dv that the walked blocks of ``lists`` leave, for all queries."""
    table = problem.geometry.programs(lists.span) if lists.span > 1 else None
    diagonal = lists.local == 0
    return _launch(problem, piece, operands, grads, order, None, diagonal, table, lists.span)


def _launch(
    problem: Problem,
    piece: Piece,
    operands: Operands,
    grads: Gradients,
    order: Order,
    dq: Tensor | None,
    diagonal: bool,
    units: Tensor | None,
    span: int,
) -> Segments:
    q, k, v = operands.q, operands.k, operands.v
    size = problem.config.block_size
    shape = (len(order.key), size, problem.head_dim)
    dk, dv = (torch.empty(shape, dtype=torch.float32, device=q.device) for _ in range(2))
    single = units is None
    tuned = problem.tuned(
        "units backward" if dq is None else "pairs backward", None if single else span
    )
    branch = BRANCHES.index("selected")
    tiles = problem.bulk and units is not None
    pairs_backward[(len(order.key),)](
        problem.rows(q, tuned.queries) if tiles else q,
        problem.keys(k, size),
        problem.keys(v, size),
        problem.rows(grads.out, tuned.queries) if tiles else grads.out,
        grads.logs[branch],
        grads.delta[branch],
        dk if dq is None else dq,
        dk,
        dv,
        order.unit,
        order.line,
        order.first,
        order.segment,
        order.key,
        order.length,
        problem.block_table,
        problem.block_table if units is None else units,
        problem.scale2,
        *(q.stride(0), q.stride(1), k.stride(0), k.stride(1), v.stride(0), v.stride(1)),
        len(order.segment) - 1,
        problem.geometry.blocks,
        problem.kv_heads,
        piece.first_head,
        **problem.shape,
        **tuned.launch,
        BS=size,
        SUB=1 if units is None else span // tuned.queries,
        SINGLE=units is None,
        DIAGONAL=diagonal,
        DQ=dq is not None,
        TURNED=problem.family != AMPERE,
    )
    return Segments(dk, dv, order.segment)


@triton.jit(do_not_specialize=VARYING)
def pairs_backward(
    q,
    k,
    v,
    grad,
    logs,
    delta,
    dq,
    dk,
    dv,
    unit_of_pair,
    line_of_pair,
    first,
    segment,
    key,
    length,
    table,
    units,
    scale2,
    q_t,
    q_h,
    k_t,
    k_h,
    v_t,
    v_h,
    bins,
    blocks,
    kv_heads,
    first_head,
    G: tl.constexpr,
    GP: tl.constexpr,
    D: tl.constexpr,
    TMA: tl.constexpr,
    BQ: tl.constexpr,
    BS: tl.constexpr,
    SUB: tl.constexpr,
    SINGLE: tl.constexpr,
    DIAGONAL: tl.constexpr,
    DQ: tl.constexpr,
    TURNED: tl.constexpr,
):
    """dk and dv of one segment of pairs, and dq of each pair where DQ."""
    begin, end, bin_ = segment_of(key, first, segment, tl.program_id(0), length, bins)
    if begin < end:
        kv = bin_ // blocks + first_head
        heads = kv_heads * G
        key_row, start, key_end, _b, _w, _t, sequence = line_of(table, bin_ % blocks)
        count = key_end - key_row
        offset = key_row - start
        keys = keys_of(k, sequence, start, offset, count, kv, k_t, k_h, BS, D, TMA)
        values = keys_of(v, sequence, start, offset, count, kv, v_t, v_h, BS, D, TMA)
        r = tl.arange(0, BQ * GP)
        g = r % GP
        head = kv * G + g
        d = tl.arange(0, D)
        dk_acc = tl.zeros([BS, D], tl.float32)
        dv_acc = tl.zeros([BS, D], tl.float32)
        for i in range(begin * SUB, end * SUB, BQ if SINGLE else 1):
            if SINGLE:
                left = end - i
                live = (r // GP < left) & (g < G)
                token = tl.load(unit_of_pair + i + r // GP, mask=live, other=0)
                tile = rows_of(q, token, head, live, q_t, q_h, D)
                tile_grad = rows_of(grad, token, head, live, heads * D, D, D)
                line = token.to(tl.int64) * heads + head
                log = tl.load(logs + line, mask=live, other=0.0)
            else:
                unit = line_of(units, tl.load(unit_of_pair + i // SUB))
                row, row_start, stop, from_ = unit[0] + (i % SUB) * BQ, unit[1], unit[2], unit[6]
                ahead, left = row - row_start, stop - row
                tile = tile_of(q, from_, row_start, ahead, left, kv, q_t, q_h, G, GP, BQ, D, TMA)
                tile_grad = tile_of(
                    grad, from_, row_start, ahead, left, kv, heads * D, D, G, GP, BQ, D, TMA
                )
                log = numbers_of(logs, row, left, kv, heads, G, GP, BQ)
            p = tl.exp2(tl.dot(keys, tl.trans(tile)) * scale2 - log[None, :])
            dp = tl.dot(values, tl.trans(tile_grad))
            # Loaded late: it would take registers while the products before are summed.
            if SINGLE:
                shift = tl.load(delta + line, mask=live, other=0.0)
            else:
                shift = numbers_of(delta, row, left, kv, heads, G, GP, BQ)
            ds = p * (dp - shift[None, :])
            if left < BQ:
                some = (r // GP < left)[None, :]
                p, ds = tl.where(some, p, 0.0), tl.where(some, ds, 0.0)
            if G < GP:
                mine = (g < G)[None, :]
                p, ds = tl.where(mine, p, 0.0), tl.where(mine, ds, 0.0)
            if DIAGONAL:
                if not SINGLE:
                    token = row + r // GP
                seen = (key_row + tl.arange(0, BS))[:, None] <= token[None, :]
                p, ds = tl.where(seen, p, 0.0), tl.where(seen, ds, 0.0)
            ds = ds.to(tile.dtype)
            dv_acc = tl.dot(p.to(tile.dtype), tile_grad, dv_acc)
            dk_acc = tl.dot(ds, tile, dk_acc)
            if DQ:
                to = (tl.load(line_of_pair + i + r // GP, mask=live, other=0) * G + g) * D
                if TURNED:
                    # The width of the heads, not the few rows, fills the matrix instruction.
                    part = tl.trans(tl.dot(tl.trans(keys), ds))
                else:
                    part = tl.dot(tl.trans(ds), keys)
                part = part.to(dq.dtype.element_ty)
                tl.store(dq + to[:, None] + d[None, :], part, mask=live[:, None])
        at = tl.program_id(0).to(tl.int64) * BS * D
        at = at + tl.arange(0, BS)[:, None] * D + d[None, :]
        tl.store(dk + at, dk_acc)
        tl.store(dv + at, dv_acc)
