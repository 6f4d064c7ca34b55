"""Choice of blocks: importance of the compressed branch and a running top-n, in one pass.

Scores live in registers only. A candidate is one 32-bit key, its score above and its block below,
so that the best ones are found by integer maxima and ties fall to the lower block. The index takes
the lowest bits of the score: with 2048 blocks 12 bits of the mantissa stay.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..lists import private_size, shared_size
from .geometry import line_of, windows_seen
from .problem import Problem
from .softmax import rows_of
from .sources import keys_of

_FEW = 4  # blocks that are chosen without a look at whether any candidate is good enough


def choose(problem: Problem, q: Tensor, k_cmp: Tensor, lse: Tensor) -> tuple[Tensor, Tensor]:
    """Shared lists int32 [tiles, K, s] and private ones [tokens, K, m] (docs/architecture.md).

    ``lse`` [tokens, H] in base 2 is the compressed branch's.
    """
    config, geometry = problem.config, problem.geometry
    kv_heads, device = problem.kv_heads, q.device
    empty = torch.empty
    shared = empty(geometry.tiles, kv_heads, shared_size(config), dtype=torch.int32, device=device)
    private = empty(
        geometry.tokens, kv_heads, private_size(config), dtype=torch.int32, device=device
    )
    operands = (q, k_cmp, lse)
    forced = config.init_blocks + config.local_blocks
    _launch(problem, operands, shared, None, forced, problem.tile)
    if private.shape[-1]:
        _launch(problem, operands, private, shared, 0, 1)
    return shared, private


def _launch(
    problem: Problem,
    operands: tuple[Tensor, Tensor, Tensor],
    lists: Tensor,
    excluded: Tensor | None,
    forced: int,
    step: int,
) -> None:
    """Fill ``lists`` for one query in ``step``: ``forced`` slots, then the best candidates."""
    q, k_cmp, lse = operands
    config = problem.config
    tuned = problem.tuned("choice")
    table = problem.geometry.programs(tuned.queries * step)
    chosen = lists.shape[-1] - forced
    per_block = config.block_size // config.compress_stride
    per_window = config.compress_block // config.compress_stride
    longest = max(problem.geometry.lengths)
    blocks = triton.cdiv(longest, config.block_size)
    top_p = config.top_p if excluded is None else None
    unforced = config.init_blocks + config.local_blocks
    taken = 0 if excluded is None else excluded.shape[-1] - unforced
    _choose[(len(table), problem.kv_heads)](
        q,
        problem.keys(k_cmp, tuned.launch["BN"]),
        lse,
        lists,
        lists if excluded is None else excluded,
        table,
        problem.scale2,
        q.stride(0),
        q.stride(1),
        problem.kv_heads,
        step,
        problem.tile,
        (1 << max(1, (blocks - 1).bit_length())) - 1,
        1.0 if top_p is None else top_p,
        config.min_blocks - private_size(config),
        **problem.shape,
        **tuned.launch,
        J=tuned.launch["BN"] // per_block,
        PB=per_block,
        PW=per_window,
        CB=config.compress_block,
        ST=config.compress_stride,
        BS=config.block_size,
        INIT=config.init_blocks,
        LOCAL=config.local_blocks,
        FORCED=forced,
        CHOSEN=chosen,
        FEW=_FEW,
        RUN=triton.next_power_of_2(max(1, chosen)),
        EXCLUDED=taken,
        LISTED=0 if excluded is None else excluded.shape[-1],
        WIDTH=triton.next_power_of_2(max(1, taken)),
        # All queries of a program are in one tile, as a rule: its list is looked at once.
        ONE_LIST=taken > 0 and problem.tile % tuned.queries == 0,
        # One head, one window a block: the logits rank as their probabilities do.
        RAW=problem.group == 1 and per_block == per_window == 1 and top_p is None,
        TOP_P=top_p is not None,
    )


@triton.jit
def _taken(run, key, best, low, LOWEST: tl.constexpr):
    """The best candidate of each row in place of the worst of its list, where it is better."""
    enters = (best > low)[:, None] & (run == low[:, None])
    return tl.where(enters, best[:, None], run), tl.where(key == best[:, None], LOWEST, key)


@triton.jit
def _choose(
    q,
    k_cmp,
    lse,
    lists,
    excluded,
    table,
    scale2,
    q_t,
    q_h,
    kv_heads,
    step,
    tile_tokens,
    index_mask,
    top_p,
    least,
    G: tl.constexpr,
    GP: tl.constexpr,
    D: tl.constexpr,
    TMA: tl.constexpr,
    BQ: tl.constexpr,
    BN: tl.constexpr,
    J: tl.constexpr,
    PB: tl.constexpr,
    PW: tl.constexpr,
    CB: tl.constexpr,
    ST: tl.constexpr,
    BS: tl.constexpr,
    INIT: tl.constexpr,
    LOCAL: tl.constexpr,
    FORCED: tl.constexpr,
    CHOSEN: tl.constexpr,
    RUN: tl.constexpr,
    FEW: tl.constexpr,
    EXCLUDED: tl.constexpr,
    LISTED: tl.constexpr,
    WIDTH: tl.constexpr,
    ONE_LIST: tl.constexpr,
    RAW: tl.constexpr,
    TOP_P: tl.constexpr,
):
    LOWEST: tl.constexpr = -2147483648
    last_first = tl.num_programs(0) - 1 - tl.program_id(0)
    row, start, end, _b, window, tile0, sequence = line_of(table, last_first)
    kv = tl.program_id(1)
    heads = kv_heads * G
    r = tl.arange(0, BQ * GP)
    token, head = row + (r // GP) * step, kv * G + r % GP
    live = (token < end) & (r % GP < G)
    tile = rows_of(q, token, head, live, q_t, q_h, D)
    seen = windows_seen(token - start, CB, ST)
    all_see = windows_seen(row - start, CB, ST)
    # A row that is padding or sees nothing gets +inf: its probabilities are 0.
    logs = tl.load(
        lse + token.to(tl.int64) * heads + head, mask=live & (seen > 0), other=float("inf")
    )

    query = row + tl.arange(0, BQ) * step
    some = query < end
    own = (query - start) // BS
    unit = (query - start) // tile_tokens + tile0
    # Candidates are complete blocks that are not forced: INIT ... own - LOCAL.
    stop = own - LOCAL + 1
    first_stop = (row - start) // BS - LOCAL + 1
    list_ = excluded + (unit * kv_heads + kv) * LISTED + INIT + LOCAL
    if ONE_LIST:
        e = tl.arange(0, WIDTH)
        taboo = excluded + ((row - start) // tile_tokens + tile0) * kv_heads * LISTED
        taboo = tl.load(taboo + kv * LISTED + INIT + LOCAL + e, mask=e < EXCLUDED, other=-1)
    last_own = (tl.minimum(row + (BQ - 1) * step, end - 1) - start) // BS
    width = kv_heads * D
    slot = tl.arange(0, RUN)
    run = tl.where(slot < CHOSEN, LOWEST + slot, 2147483647)[None, :] + tl.zeros([BQ, 1], tl.int32)
    carry = tl.zeros([BQ], tl.float32)
    weight = tl.zeros([BQ], tl.float32)
    ahead = tl.zeros([BQ], tl.float32)
    # Under top_p the forced blocks' importance counts as well.
    reach = last_own + 1 if TOP_P else last_own - LOCAL + 1
    last = windows_seen(tl.minimum(row + (BQ - 1) * step, end - 1) - start, CB, ST)
    for block in range(0, reach, J):
        first = block * PB
        k = keys_of(k_cmp, sequence, window, first, last - first, kv, width, D, BN, D, TMA)
        s = tl.dot(tile, tl.trans(k)) * scale2
        column = block + tl.arange(0, J)
        if RAW:
            score = tl.reshape(s, [BQ, J])
        else:
            p = tl.exp2(s - logs[:, None])
            if first + BN > all_see:
                p = tl.where((first + tl.arange(0, BN))[None, :] < seen[:, None], p, 0.0)
            p = tl.sum(tl.reshape(p, [BQ, GP, BN]), 1)
            if PB == 1:
                score = p
            else:
                # A window shares its strides with its own block and, at the end, with the next.
                within = tl.arange(0, PB)[None, None, :]
                mine = tl.minimum(PW, PB - within).to(tl.float32)
                parts = tl.reshape(p, [BQ, J, PB])
                score = tl.sum(parts * mine, 2)
                spill = tl.sum(parts * (PW - mine), 2)
                before = tl.maximum(tl.arange(0, J) - 1, 0)
                before = before[None, :] + tl.zeros([BQ, 1], tl.int32)
                moved = tl.gather(spill, before, 1)
                score += tl.where(tl.arange(0, J)[None, :] == 0, carry[:, None], moved)
                carry = tl.sum(tl.where(tl.arange(0, J)[None, :] == J - 1, spill, 0.0), 1)
        if TOP_P:
            complete = ((column + 1) * BS)[None, :] <= (query - start + 1)[:, None]
            forced = (column < INIT)[None, :] | (column[None, :] >= stop[:, None])
            weight += tl.sum(tl.where(complete, score, 0.0), 1)
            ahead += tl.sum(tl.where(complete & forced, score, 0.0), 1)
        fits = column >= INIT
        if ONE_LIST:
            fits &= tl.max((column[None, :] == taboo[:, None]).to(tl.int32), 0) == 0
        bits = score.to(tl.int32, bitcast=True)
        if RAW:
            bits = bits ^ ((bits >> 31) & 0x7FFFFFFF)
        key = tl.where(fits[None, :], (bits & ~index_mask) | (index_mask - column)[None, :], LOWEST)
        if block + J > first_stop:
            key = tl.where(column[None, :] < stop[:, None], key, LOWEST)
        if not ONE_LIST:
            for i in tl.static_range(EXCLUDED):
                other = tl.load(list_ + i, mask=some, other=-1)
                key = tl.where(column[None, :] == other[:, None], LOWEST, key)
        if CHOSEN <= FEW:
            # Unrolled: a loop inside of the loop would keep its loads from running ahead.
            for _ in tl.static_range(CHOSEN):
                run, key = _taken(run, key, tl.max(key, 1), tl.min(run, 1), LOWEST)
        else:
            best, low = tl.max(key, 1), tl.min(run, 1)
            while tl.max((best > low).to(tl.int32), 0) > 0:
                run, key = _taken(run, key, best, low, LOWEST)
                best, low = tl.max(key, 1), tl.min(run, 1)

    taken = (slot < CHOSEN)[None, :] & (run >= LOWEST + RUN)
    if TOP_P:
        run = tl.sort(tl.where(taken, run, LOWEST), descending=True)
        value = tl.where(run > LOWEST, (run & ~index_mask).to(tl.float32, bitcast=True), 0.0)
        some_weight = tl.where(weight > 0, weight, 1.0)[:, None]
        share = tl.where(weight[:, None] > 0, value / some_weight, 0.0)
        reached = tl.where(weight > 0, ahead / tl.where(weight > 0, weight, 1.0), 0.0)[:, None]
        reached = reached + tl.cumsum(share, 1) - share
        count = tl.minimum(own + 1, LOCAL) + tl.minimum(INIT, tl.maximum(stop, 0))
        kept = (reached < top_p) | (count[:, None] + slot[None, :] < least)
        taken = (run > LOWEST) & kept & (slot < CHOSEN)[None, :]
    result = tl.where(taken, index_mask - (run & index_mask), -1)
    line = unit if FORCED > 0 else query
    at = lists + (line.to(tl.int64) * kv_heads + kv)[:, None] * (FORCED + CHOSEN)
    tl.store(at + FORCED + slot[None, :], result, mask=some[:, None] & (slot < CHOSEN)[None, :])
    for i in tl.static_range(FORCED):
        if i < INIT:
            block = tl.where(i < stop, i, -1)
        else:
            block = tl.maximum(own - (i - INIT), -1)
        tl.store(at + i, block[:, None], mask=some[:, None])
