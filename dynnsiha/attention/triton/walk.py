"""What a tile of queries walks: its window, the list that it shares, what ``pairs`` left for it."""

from __future__ import annotations

import triton
import triton.language as tl

from .softmax import absorb, finished, fresh, overflown, packed, unpacked
from .sources import keys_of, store_numbers, store_tile

WIDE = tl.constexpr(256)
"""Heads so wide that the window's output does not fit beside the selected branch's in registers."""

_AT_ONCE = tl.constexpr(32)  # numbers of a list that are read without waiting, a register each


@triton.jit
def listed(lists, unit, kv, stride_t, stride_h, slot, INIT: tl.constexpr, SKIP: tl.constexpr):
    """A block of a shared list, whose slots INIT ... INIT + SKIP - 1 are handled elsewhere.

    Chosen lists have their empty slots behind all others, and complete blocks in those that are not
    handled elsewhere; given lists may have gaps, and blocks that a query sees in part.
    """
    at = tl.where(slot < INIT, slot, slot + SKIP)
    return tl.load(lists + unit.to(tl.int64) * stride_t + kv * stride_h + at)


@triton.jit
def slots_used(
    lists, unit, kv, stride_t, stride_h,
    SLOTS: tl.constexpr, INIT: tl.constexpr, SKIP: tl.constexpr,
):  # fmt: skip
    """Slots up to the last filled one: under top_p, or early in a sequence, fewer than SLOTS.

    One number after the other: the compiler knows that a program's threads agree on numbers from
    one address, and keeps the loop that they bound in uniform registers.
    """
    used = 0
    if SLOTS <= _AT_ONCE:
        for slot in tl.static_range(SLOTS):
            block = listed(lists, unit, kv, stride_t, stride_h, slot, INIT, SKIP)
            used = tl.where(block >= 0, slot + 1, used)
    else:
        for slot in tl.range(SLOTS, num_stages=1):
            block = listed(lists, unit, kv, stride_t, stride_h, slot, INIT, SKIP)
            used = tl.where(block >= 0, slot + 1, used)
    return used


@triton.jit
def walked(
    tile, k, v, shared, o_win, lse_win, sequence, block_row, row, start, end, tile0, kv,
    heads, scale2, k_t, k_h, v_t, v_h, shared_t, shared_h, window,
    G: tl.constexpr, GP: tl.constexpr, D: tl.constexpr, TMA: tl.constexpr, BQ: tl.constexpr,
    BN: tl.constexpr, BS: tl.constexpr, R: tl.constexpr, SLOTS: tl.constexpr, INIT: tl.constexpr,
    LOCAL: tl.constexpr, SELECTED: tl.constexpr, SLIDING: tl.constexpr, TRAIN: tl.constexpr,
    SHIFTED: tl.constexpr,
):  # fmt: skip
    """A tile's window and shared list: the selected branch's running state, the window's output.

    The output is packed, or 0 where there is no window. With TRAIN it is stored as well, and of
    WIDE heads it is only stored. Last is whether sums are ``overflown``.
    """
    # Where it is the second try, a rare one, it must not take more shared memory than the first.
    STAGES: tl.constexpr = 1 if SHIFTED and LOCAL > 0 else None
    n = tl.arange(0, BN)
    token, some = row + tl.arange(0, BQ * GP) // GP, end - row
    stop = tl.minimum(row + BQ, end)
    near = tl.maximum(block_row - (LOCAL - 1) * BS, start) if LOCAL > 0 else stop
    top, total, acc = fresh(BQ * GP, D, SHIFTED)
    o_near = tl.zeros([BQ * GP, D // 2], tl.int32)
    wrong = False
    for key_row in tl.range(near, stop, BN, num_stages=STAGES):
        offset, left = key_row - start, end - key_row
        keys = keys_of(k, sequence, start, offset, left, kv, k_t, k_h, BN, D, TMA)
        values = keys_of(v, sequence, start, offset, left, kv, v_t, v_h, BN, D, TMA)
        s = tl.dot(tile, tl.trans(keys))
        if key_row + BN > row:
            s = tl.where((key_row + n)[None, :] <= token[:, None], s, float("-inf"))
        top, total, acc = absorb(s, values, scale2, top, total, acc, SHIFTED)

    if SLIDING:
        if SELECTED:
            # Both branches go on from here.
            n_top, n_total = top, total
            o_local = packed(finished(top, total, acc)[0], tile.dtype)
        oldest = tl.maximum(row - window + 1 - start, 0) // BN * BN + start
        for key_row in tl.range(oldest, near, BN, num_stages=STAGES):
            offset, left = key_row - start, near - key_row
            keys = keys_of(k, sequence, start, offset, left, kv, k_t, k_h, BN, D, TMA)
            values = keys_of(v, sequence, start, offset, left, kv, v_t, v_h, BN, D, TMA)
            s = tl.dot(tile, tl.trans(keys))
            if (key_row <= row + BQ - 1 - window) | (key_row + BN > row):
                column = (key_row + n)[None, :]
                seen = (column <= token[:, None]) & (column > token[:, None] - window)
                s = tl.where(seen, s, float("-inf"))
            top, total, acc = absorb(s, values, scale2, top, total, acc, SHIFTED)
        wrong |= overflown(total, token < end, tile.dtype)
        o, logs = finished(top, total, acc)
        if TRAIN:
            store_numbers(lse_win, logs, row, some, kv, heads, G, GP, BQ)
            store_tile(o_win, o, row, some, kv, heads * D, D, G, GP, BQ, D)
        if not (TRAIN and D >= WIDE):
            o_near = packed(o, tile.dtype)
        if SELECTED:
            top, total = n_top, n_total
            acc = unpacked(o_local, tile.dtype) * total[:, None]

    if SELECTED:
        unit = row if R == 1 else tile0 + (row - start) // R
        used = slots_used(shared, unit, kv, shared_t, shared_h, SLOTS, INIT, LOCAL)
        for i in tl.range(used * (BS // BN), num_stages=STAGES):
            block = listed(shared, unit, kv, shared_t, shared_h, i // (BS // BN), INIT, LOCAL)
            key_row = start + tl.maximum(block, 0) * BS + i % (BS // BN) * BN
            offset, left = key_row - start, end - key_row
            keys = keys_of(k, sequence, start, offset, left, kv, k_t, k_h, BN, D, TMA)
            values = keys_of(v, sequence, start, offset, left, kv, v_t, v_h, BN, D, TMA)
            s = tl.dot(tile, tl.trans(keys))
            if (block < 0) | (key_row + BN > row):
                seen = ((key_row + n)[None, :] <= token[:, None]) & (block >= 0)
                s = tl.where(seen, s, float("-inf"))
            top, total, acc = absorb(s, values, scale2, top, total, acc, SHIFTED)
        wrong |= overflown(total, token < end, tile.dtype)
    return top, total, acc, o_near, wrong


@triton.jit
def partial_results(
    r, row, first_row, piece_heads, some,
    G: tl.constexpr, GP: tl.constexpr, PAIRS: tl.constexpr,
):  # fmt: skip
    """Where the partial results of the rows ``r`` of a tile lie among the rows of the piece.

    The results are [rows, heads, slots, G]. Returned are the tile's first (rows times heads), each
    row's place from there on, and whether the row is there.
    """
    live = (r // GP < some) & (r % GP < G)
    first = (row - first_row).to(tl.int64) * piece_heads + tl.program_id(1)
    return first, r // GP * (piece_heads * PAIRS * G) + r % GP, live
