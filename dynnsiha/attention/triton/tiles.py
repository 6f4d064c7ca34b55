"""Query-outer kernels: a tile of neighbouring queries walks its window and its shared list.

The newest ``LOCAL`` blocks are in the window and in every list: their logits and products are
computed once and enter both branches. The forward kernel merges what ``pairs`` left for each query,
applies the gates and writes the only pass over o; the backward one sums all of dq.
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from .geometry import VARYING, line_of, windows_seen
from .lists import Lists
from .problem import Gradients, Operands, Outputs, Piece, Problem
from .softmax import closed, unpacked
from .sources import keys_of, loaded_tile, numbers_of, store_numbers, store_tile
from .walk import WIDE, listed, partial_results, slots_used, walked

_PART_STAGES = tl.constexpr(4)  # partial results that are read ahead
_FEW = tl.constexpr(8)
"""Rows that see fewer keys are shifted by a maximum: the largest probability is then exactly 1.
Rounded to 16 bits, the only one would be an error of all of the output, and of all of the gradient
of q, which is a difference. The errors of many average out."""


def forward(
    problem: Problem,
    piece: Piece,
    operands: Operands,
    lists: Lists,
    parts: tuple[Tensor, Tensor] | None,
    outputs: Outputs,
) -> None:
    """Write o, and the branches' outputs and log-sum-exps where ``outputs`` has room for them."""
    q, k, v, gates = operands.q, operands.k, operands.v, operands.gates
    tuned = problem.tuned("tiles", lists.span)
    size = problem.config.block_size
    part, part_lse = (q, outputs.lse_selected) if parts is None else parts
    some = outputs.out
    tiles_forward[(piece.blocks * (size // tuned.queries), piece.heads)](
        q,
        problem.keys(k, tuned.launch["BN"]),
        problem.keys(v, tuned.launch["BN"]),
        gates,
        some if outputs.compressed is None else outputs.compressed,
        lists.shared,
        lists.private,
        part,
        part_lse,
        outputs.out,
        some if outputs.selected is None else outputs.selected,
        some if outputs.sliding is None else outputs.sliding,
        outputs.lse_selected,
        outputs.lse_selected if outputs.lse_sliding is None else outputs.lse_sliding,
        problem.block_table,
        problem.scale2,
        *(q.stride(0), q.stride(1), k.stride(0), k.stride(1), v.stride(0), v.stride(1)),
        *(lists.shared.stride(0), lists.shared.stride(1)),
        *(lists.private.stride(0), lists.private.stride(1)),
        problem.kv_heads,
        piece.first_block,
        piece.heads,
        piece.first_head,
        piece.first_row,
        problem.window,
        **problem.shape,
        **tuned.launch,
        BS=size,
        **lists.constants,
        WIDTH=triton.next_power_of_2(max(1, lists.private.shape[-1])),
        COMPRESSED="compressed" in problem.config.branches,
        SELECTED="selected" in problem.config.branches,
        SLIDING="sliding" in problem.config.branches,
        TRAIN=outputs.sliding is not None,
    )


@triton.jit(do_not_specialize=VARYING)
def tiles_forward(
    q,
    k,
    v,
    gates,
    o_cmp,
    shared,
    private,
    part,
    part_lse,
    out,
    o_slc,
    o_win,
    lse_slc,
    lse_win,
    table,
    scale2,
    q_t,
    q_h,
    k_t,
    k_h,
    v_t,
    v_h,
    shared_t,
    shared_h,
    private_t,
    private_h,
    kv_heads,
    first_block,
    piece_heads,
    first_head,
    first_row,
    window,
    G: tl.constexpr,
    GP: tl.constexpr,
    D: tl.constexpr,
    TMA: tl.constexpr,
    BQ: tl.constexpr,
    BN: tl.constexpr,
    BS: tl.constexpr,
    R: tl.constexpr,
    SLOTS: tl.constexpr,
    INIT: tl.constexpr,
    LOCAL: tl.constexpr,
    PAIRS: tl.constexpr,
    ALIKE: tl.constexpr,
    WIDTH: tl.constexpr,
    COMPRESSED: tl.constexpr,
    SELECTED: tl.constexpr,
    SLIDING: tl.constexpr,
    TRAIN: tl.constexpr,
):
    """o of BQ queries and the heads of one key/value head."""
    SUB: tl.constexpr = BS // BQ
    pid = tl.program_id(0)
    place = line_of(table, first_block + pid // SUB)
    block_row, start, end, tile0, sequence = place[0], place[1], place[2], place[5], place[6]
    row = block_row + (pid % SUB) * BQ
    if row < end:
        kv = first_head + tl.program_id(1)
        heads = kv_heads * G
        r = tl.arange(0, BQ * GP)
        some = end - row
        tile = loaded_tile(q, row, some, kv, q_t, q_h, G, GP, BQ, D)
        # Given lists may have nothing for a query: there sums of 0 are no sign of anything.
        SHIFTED: tl.constexpr = SELECTED and LOCAL == 0
        top, total, acc, o_near, wrong = walked(
            tile, k, v, shared, o_win, lse_win, sequence, block_row, row, start, end, tile0, kv,
            heads, scale2, k_t, k_h, v_t, v_h, shared_t, shared_h, window,
            G, GP, D, TMA, BQ, BN, BS, R, SLOTS, INIT, LOCAL, SELECTED, SLIDING, TRAIN, SHIFTED,
        )  # fmt: skip
        if not SHIFTED:  # noqa: SIM102
            if wrong | (row - start < _FEW):
                top, total, acc, o_near, wrong = walked(
                    tile, k, v, shared, o_win, lse_win, sequence, block_row, row, start, end,
                    tile0, kv, heads, scale2, k_t, k_h, v_t, v_h, shared_t, shared_h, window,
                    G, GP, D, TMA, BQ, BN, BS, R, SLOTS, INIT, LOCAL, SELECTED, SLIDING, TRAIN,
                    True,
                )  # fmt: skip
        if SELECTED:
            if PAIRS > 0:
                first, at, live = partial_results(
                    r, row, first_row, piece_heads, some, G, GP, PAIRS
                )
                part_lse += first * (PAIRS * G)
                part += first * (PAIRS * G * D)
                if ALIKE:
                    count = slots_used(private, row, kv, private_t, private_h, PAIRS, 0, 0)
                else:
                    count = PAIRS
                slot = tl.arange(0, WIDTH)[None, :]
                some_logs = live[:, None] & (slot < count)
                logs = tl.load(
                    part_lse + (at[:, None] + slot * G), mask=some_logs, other=float("-inf")
                )
                higher = tl.maximum(top, tl.max(logs, 1))
                fade = tl.exp2(top - higher)
                total = total * fade + tl.sum(tl.exp2(logs - higher[:, None]), 1)
                acc *= fade[:, None]
                top = higher
                for i in tl.range(count, num_stages=_PART_STAGES):
                    log = tl.load(part_lse + at + i * G, mask=live, other=float("-inf"))
                    from_ = part + ((at + i * G) * D)[:, None] + tl.arange(0, D)[None, :]
                    value = tl.load(from_, mask=live[:, None], other=0.0).to(tl.float32)
                    if not ALIKE:
                        value = tl.where((log > float("-inf"))[:, None], value, 0.0)
                    acc = tl.fma(value, tl.exp2(log - higher)[:, None], acc)
            factor, logs = closed(top, total)
            if TRAIN:
                o = acc * factor[:, None]
                store_tile(o_slc, o, row, some, kv, heads * D, D, G, GP, BQ, D)
            store_numbers(lse_slc, logs, row, some, kv, heads, G, GP, BQ)
            gate = numbers_of(gates + 1, row, some, kv, heads, G, GP, BQ, 3).to(tl.float32)
            result = acc * (gate * factor)[:, None]
        else:
            result = tl.zeros([BQ * GP, D], tl.float32)
        if SLIDING:
            gate = numbers_of(gates + 2, row, some, kv, heads, G, GP, BQ, 3).to(tl.float32)
            if TRAIN and D >= WIDE:
                tl.debug_barrier()  # other threads may have written it
                o = loaded_tile(o_win, row, some, kv, heads * D, D, G, GP, BQ, D).to(tl.float32)
            else:
                o = unpacked(o_near, tile.dtype)
            result += gate[:, None] * o
        if COMPRESSED:
            o = loaded_tile(o_cmp, row, some, kv, heads * D, D, G, GP, BQ, D).to(tl.float32)
            gate = numbers_of(gates, row, some, kv, heads, G, GP, BQ, 3).to(tl.float32)
            result += gate[:, None] * o
        store_tile(out, result, row, some, kv, heads * D, D, G, GP, BQ, D)


def backward(
    problem: Problem,
    piece: Piece,
    operands: Operands,
    grads: Gradients,
    lists: Lists,
    part: Tensor | None,
    dq: Tensor,
) -> None:
    """Write dq [tokens, H, D]: of all branches, and of the pairs' partial results."""
    q, k, v = operands.q, operands.k, operands.v
    tuned = problem.tuned("tiles backward", lists.span)
    size = problem.config.block_size
    tiles_backward[(piece.blocks * (size // tuned.queries), piece.heads)](
        q,
        problem.keys(k, min(size, tuned.launch["BN"])),
        problem.keys(v, min(size, tuned.launch["BN"])),
        problem.keys(operands.k_cmp, tuned.launch["BN"]),
        problem.keys(operands.v_cmp, tuned.launch["BN"]),
        grads.out,
        grads.logs,
        grads.delta,
        lists.shared,
        lists.private,
        q if part is None else part,
        dq,
        problem.block_table,
        problem.scale,
        problem.scale2,
        *(q.stride(0), q.stride(1), k.stride(0), k.stride(1), v.stride(0), v.stride(1)),
        *(lists.shared.stride(0), lists.shared.stride(1)),
        *(lists.private.stride(0), lists.private.stride(1)),
        problem.geometry.tokens,
        problem.kv_heads,
        piece.first_block,
        piece.heads,
        piece.first_head,
        piece.first_row,
        problem.window,
        **problem.shape,
        **tuned.launch,
        BS=size,
        CB=problem.config.compress_block,
        ST=problem.config.compress_stride,
        **lists.constants,
        COMPRESSED="compressed" in problem.config.branches,
        SELECTED="selected" in problem.config.branches,
        SLIDING="sliding" in problem.config.branches,
    )


@triton.jit(do_not_specialize=VARYING)
def tiles_backward(
    q,
    k,
    v,
    k_cmp,
    v_cmp,
    grad,
    logs,
    delta,
    shared,
    private,
    part,
    dq,
    table,
    scale,
    scale2,
    q_t,
    q_h,
    k_t,
    k_h,
    v_t,
    v_h,
    shared_t,
    shared_h,
    private_t,
    private_h,
    tokens,
    kv_heads,
    first_block,
    piece_heads,
    first_head,
    first_row,
    window,
    G: tl.constexpr,
    GP: tl.constexpr,
    D: tl.constexpr,
    TMA: tl.constexpr,
    BQ: tl.constexpr,
    BN: tl.constexpr,
    BS: tl.constexpr,
    CB: tl.constexpr,
    ST: tl.constexpr,
    R: tl.constexpr,
    SLOTS: tl.constexpr,
    INIT: tl.constexpr,
    LOCAL: tl.constexpr,
    PAIRS: tl.constexpr,
    ALIKE: tl.constexpr,
    COMPRESSED: tl.constexpr,
    SELECTED: tl.constexpr,
    SLIDING: tl.constexpr,
):
    """dq of BQ queries and the heads of one key/value head."""
    SUB: tl.constexpr = BS // BQ
    N: tl.constexpr = min(BN, BS)
    pid = tl.num_programs(0) - 1 - tl.program_id(0)
    place = line_of(table, first_block + pid // SUB)
    block_row, start, end = place[0], place[1], place[2]
    window0, tile0, sequence = place[4], place[5], place[6]
    row = block_row + (pid % SUB) * BQ
    if row < end:
        kv = first_head + tl.program_id(1)
        heads = kv_heads * G
        r = tl.arange(0, BQ * GP)
        n = tl.arange(0, N)
        token, some = row + r // GP, end - row
        tile = loaded_tile(q, row, some, kv, q_t, q_h, G, GP, BQ, D)
        tile_grad = loaded_tile(grad, row, some, kv, heads * D, D, G, GP, BQ, D)
        branch = tl.cast(tokens, tl.int64) * heads
        acc = tl.zeros([BQ * GP, D], tl.float32)

        if COMPRESSED:
            log = numbers_of(logs, row, some, kv, heads, G, GP, BQ)
            shift = numbers_of(delta, row, some, kv, heads, G, GP, BQ)
            ended = windows_seen(token - start, CB, ST)
            all_see = windows_seen(row - start, CB, ST)
            last = windows_seen(tl.minimum(row + BQ, end) - 1 - start, CB, ST)
            width = kv_heads * D
            for first in range(0, last, BN):
                left = last - first
                keys = keys_of(k_cmp, sequence, window0, first, left, kv, width, D, BN, D, TMA)
                values = keys_of(v_cmp, sequence, window0, first, left, kv, width, D, BN, D, TMA)
                p = tl.exp2(tl.dot(tile, tl.trans(keys)) * scale2 - log[:, None])
                dp = tl.dot(tile_grad, tl.trans(values))
                ds = p * (dp - shift[:, None])
                if first + BN > all_see:
                    ds = tl.where((first + tl.arange(0, BN))[None, :] < ended[:, None], ds, 0.0)
                acc = tl.dot(ds.to(keys.dtype), keys, acc)

        if SLIDING:
            w_log = numbers_of(logs + 2 * branch, row, some, kv, heads, G, GP, BQ)
            w_shift = numbers_of(delta + 2 * branch, row, some, kv, heads, G, GP, BQ)
        # The window, with the newest blocks that the selected branch sees as well; without a
        # window, those blocks alone.
        if SLIDING or LOCAL > 0:
            near = block_row - (LOCAL - 1) * BS
            n_log = numbers_of(logs + 3 * branch, row, some, kv, heads, G, GP, BQ)
            n_shift = numbers_of(delta + 3 * branch, row, some, kv, heads, G, GP, BQ)
            if SLIDING:
                oldest = row - window + 1
            else:
                oldest = near
            oldest = tl.maximum(oldest - start, 0) // N * N + start
            for key_row in range(oldest, tl.minimum(row + BQ, end), N):
                offset, left = key_row - start, end - key_row
                keys = keys_of(k, sequence, start, offset, left, kv, k_t, k_h, N, D, TMA)
                values = keys_of(v, sequence, start, offset, left, kv, v_t, v_h, N, D, TMA)
                if SLIDING:
                    log = tl.where(key_row >= near, n_log, w_log)
                    shift = tl.where(key_row >= near, n_shift, w_shift)
                else:
                    log, shift = n_log, n_shift
                p = tl.exp2(tl.dot(tile, tl.trans(keys)) * scale2 - log[:, None])
                dp = tl.dot(tile_grad, tl.trans(values))
                ds = p * (dp - shift[:, None])
                if (key_row <= row + BQ - 1 - window) | (key_row + N > row):
                    column = (key_row + n)[None, :]
                    seen = (column <= token[:, None]) & (column > token[:, None] - window)
                    ds = tl.where(seen, ds, 0.0)
                acc = tl.dot(ds.to(keys.dtype), keys, acc)

        if SELECTED:
            unit = row if R == 1 else tile0 + (row - start) // R
            used = slots_used(shared, unit, kv, shared_t, shared_h, SLOTS, INIT, LOCAL)
            s_log = numbers_of(logs + branch, row, some, kv, heads, G, GP, BQ)
            s_shift = numbers_of(delta + branch, row, some, kv, heads, G, GP, BQ)
            for i in range(used * (BS // N)):
                block = listed(shared, unit, kv, shared_t, shared_h, i // (BS // N), INIT, LOCAL)
                key_row = start + tl.maximum(block, 0) * BS + i % (BS // N) * N
                offset, left = key_row - start, end - key_row
                keys = keys_of(k, sequence, start, offset, left, kv, k_t, k_h, N, D, TMA)
                values = keys_of(v, sequence, start, offset, left, kv, v_t, v_h, N, D, TMA)
                p = tl.exp2(tl.dot(tile, tl.trans(keys)) * scale2 - s_log[:, None])
                dp = tl.dot(tile_grad, tl.trans(values))
                ds = p * (dp - s_shift[:, None])
                if (block < 0) | (key_row + N > row):
                    seen = ((key_row + n)[None, :] <= token[:, None]) & (block >= 0)
                    ds = tl.where(seen, ds, 0.0)
                acc = tl.dot(ds.to(keys.dtype), keys, acc)
            if PAIRS > 0:
                # Rows [tokens, heads, slots, G, D]; slots without a block hold anything.
                first, at, live = partial_results(
                    r, row, first_row, piece_heads, some, G, GP, PAIRS
                )
                part += first * (PAIRS * G * D)
                if ALIKE:
                    count = slots_used(private, row, kv, private_t, private_h, PAIRS, 0, 0)
                else:
                    count = PAIRS
                for i in tl.range(count, num_stages=_PART_STAGES):
                    from_ = part + ((at + i * G) * D)[:, None] + tl.arange(0, D)[None, :]
                    value = tl.load(from_, mask=live[:, None], other=0.0).to(tl.float32)
                    if not ALIKE:
                        chosen = private + token.to(tl.int64) * private_t + kv * private_h + i
                        chosen = tl.load(chosen, mask=live, other=-1)
                        value = tl.where((chosen >= 0)[:, None], value, 0.0)
                    acc += value
        store_tile(dq, acc * scale, row, some, kv, heads * D, D, G, GP, BQ, D)
