"""Choice of blocks: importance of the compressed branch and a running top-n, in one pass.

Scores live in registers only. A candidate is one 32-bit key, its score above and its block below,
so that the best ones are found by integer maxima and ties fall to the lower block. The index takes
the lowest bits of the score: with 2048 blocks 12 bits of the mantissa stay.

With several heads the product is taken with the windows as its rows: the heads of a query then lie
side by side in the registers of four threads, and are added with a third of the shuffles.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..lists import private_size, shared_size
from .geometry import VARYING, line_of, windows_seen
from .problem import Problem
from .ranking import best_first, blocks_of, candidates, merged, nothing_ranked, ranked, taken_before
from .softmax import rows_of
from .sources import keys_of

LEVELS = 1 << 14  # candidates that the places of a tile keep, in the registers of a program
CHUNK = 32  # tiles whose taken blocks fit the bits of one integer


def choose(problem: Problem, q: Tensor, k_cmp: Tensor, lse: Tensor) -> tuple[Tensor, Tensor]:
    """Shared lists int32 [tiles, K, s] and private ones [tokens, K, m] (docs/architecture.md).

    ``lse`` [tokens, H] in base 2 is the compressed branch's.
    """
    shared, private = choose_shared(problem, q, k_cmp, lse), private_lists(problem, q.device)
    if private.shape[-1]:
        _launch(problem, (q, k_cmp, lse), private, shared, 0, 1)
    return shared, private


def choose_shared(problem: Problem, q: Tensor, k_cmp: Tensor, lse: Tensor | None = None) -> Tensor:
    """The shared lists alone; ``lse`` may be missing where logits rank as probabilities do."""
    config, geometry = problem.config, problem.geometry
    shape = (geometry.tiles, problem.kv_heads, shared_size(config))
    shared = torch.empty(shape, dtype=torch.int32, device=q.device)
    forced = config.init_blocks + config.local_blocks
    _launch(problem, (q, k_cmp, q if lse is None else lse), shared, None, forced, problem.tile)
    return shared


def private_lists(problem: Problem, device: torch.device) -> Tensor:
    """Room for the private lists: int32 [tokens, K, m]."""
    shape = (problem.geometry.tokens, problem.kv_heads, private_size(problem.config))
    return torch.empty(shape, dtype=torch.int32, device=device)


def index_mask(problem: Problem) -> int:
    """The bits of a candidate's key that hold its block."""
    blocks = triton.cdiv(max(problem.geometry.lengths), problem.config.block_size)
    return (1 << max(1, (blocks - 1).bit_length())) - 1


def logits_rank(problem: Problem) -> bool:
    """Whether logits rank blocks as probabilities do: one head, one window a block."""
    config = problem.config
    sizes = {config.block_size, config.compress_block, config.compress_stride}
    return problem.group == 1 and len(sizes) == 1


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
    top_p = config.top_p if excluded is None else None
    unforced = config.init_blocks + config.local_blocks
    taken = 0 if excluded is None else excluded.shape[-1] - unforced
    # Whether candidates, complete blocks before the local ones, touch windows that have ended only.
    overhang = config.compress_block - config.compress_stride - 1
    all_seen = top_p is None and overhang <= (config.local_blocks - 1) * config.block_size
    # Each place of a tile may keep its own best candidates until the end, if they are few.
    levels = chosen if chosen * tuned.queries * tuned.launch["BN"] <= LEVELS else 0
    # Bulk copies take the windows of whole blocks only.
    bulk = problem.bulk and (all_seen or per_block == 1)
    choose_blocks[(len(table), problem.kv_heads)](
        q,
        problem.keys(k_cmp, tuned.launch["BN"], per_block) if bulk else k_cmp,
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
        index_mask(problem),
        1.0 if top_p is None else top_p,
        config.min_blocks - private_size(config),
        **(problem.shape | {"TMA": bulk}),
        **tuned.launch,
        PB=per_block,
        PW=per_window,
        CB=config.compress_block,
        ST=config.compress_stride,
        BS=config.block_size,
        INIT=config.init_blocks,
        LOCAL=config.local_blocks,
        FORCED=forced,
        CHOSEN=chosen,
        LEVELS=levels,
        CHUNK=CHUNK if taken else 1 << 16,
        # Triton 3.6 fails on running sums over fewer than four.
        RUN=triton.next_power_of_2(max(1 if top_p is None else 4, chosen)),
        EXCLUDED=taken,
        LISTED=0 if excluded is None else excluded.shape[-1],
        # All queries of a program are in one tile, as a rule: its list is looked at once.
        ONE_LIST=taken > 0 and problem.tile % tuned.queries == 0,
        RAW=top_p is None and logits_rank(problem),
        TOP_P=top_p is not None,
        ALL_SEEN=all_seen,
    )


@triton.jit
def _probabilities(
    tile, k, logs, scale2, seen, window, all_see,
    GP: tl.constexpr, J: tl.constexpr, PB: tl.constexpr, RAW: tl.constexpr,
    ALL_SEEN: tl.constexpr,
):  # fmt: skip
    """Probabilities of J windows, every PB-th from ``window`` on: [J, BQ GP]; if RAW, logits.

    Where ALL_SEEN, those of windows that a query does not see may be anything.
    """
    if GP == 1:
        p = tl.trans(tl.dot(tile, tl.trans(k)))
    else:
        p = tl.dot(k, tl.trans(tile))
    if not RAW:
        p = tl.exp2(p * scale2 - logs[None, :])
        if not ALL_SEEN and window + J * PB > all_see:
            p = tl.where((window + tl.arange(0, J) * PB)[:, None] < seen[None, :], p, 0.0)
    return p


@triton.jit
def _of_queries(p, GP: tl.constexpr, BQ: tl.constexpr, J: tl.constexpr):
    """[J, BQ GP] summed over the heads: [J, BQ]."""
    return p if GP == 1 else tl.sum(tl.reshape(p, [J, BQ, GP]), 2)


@triton.jit
def _joined(
    score, spill, held,
    PW: tl.constexpr, GP: tl.constexpr, BQ: tl.constexpr, J: tl.constexpr, SPREAD: tl.constexpr,
):  # fmt: skip
    """Scores of J blocks summed over the heads, with what each one's predecessor spilled over.

    ``held`` [J, BQ] has in its first place what the last of the J blocks before spilled over.
    SPREAD leaves each score to one thread alone.
    """
    score = _of_queries(score, GP, BQ, J)
    place = tl.arange(0, J)[:, None] + tl.zeros([1, BQ], tl.int32)
    if PW > 1:
        moved = tl.gather(_of_queries(spill, GP, BQ, J), (place + J - 1) % J, 0)
        score += tl.where(place == 0, held, moved)
        held = moved
    elif SPREAD:
        score = tl.gather(score, place, 0)
    return score, held


@triton.jit(do_not_specialize=VARYING)
def choose_blocks(
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
    LEVELS: tl.constexpr,
    CHUNK: tl.constexpr,
    EXCLUDED: tl.constexpr,
    LISTED: tl.constexpr,
    ONE_LIST: tl.constexpr,
    RAW: tl.constexpr,
    TOP_P: tl.constexpr,
    ALL_SEEN: tl.constexpr,
):
    """The lists of BQ queries, every ``step``-th, of one key/value head."""
    LOWEST: tl.constexpr = -2147483648
    J: tl.constexpr = BN
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
    if ONE_LIST:
        list_ = (row - start) // tile_tokens + tile0
    else:
        list_ = unit
    list_ = excluded + ((list_ * kv_heads + kv) * LISTED + INIT + LOCAL)
    last_own = (tl.minimum(row + (BQ - 1) * step, end - 1) - start) // BS
    width = kv_heads * D
    place, slot = tl.arange(0, J), tl.arange(0, RUN)
    run, levels = nothing_ranked(BQ, J, CHOSEN, RUN, LEVELS)
    score = tl.zeros([J, BQ * GP], tl.float32)
    spill = tl.zeros([J, BQ * GP], tl.float32)
    held = tl.zeros([J, BQ], tl.float32)
    weight = tl.zeros([BQ], tl.float32)
    forced_weight = tl.zeros([BQ], tl.float32)
    # Under top_p the forced blocks' importance counts as well.
    reach = last_own + 1 if TOP_P else last_own - LOCAL + 1
    last = windows_seen(tl.minimum(row + (BQ - 1) * step, end - 1) - start, CB, ST)
    for base in range(0, reach, CHUNK * J):
        taken = taken_before(list_, base, some, J, EXCLUDED, CHUNK, ONE_LIST)
        steps = tl.cdiv(tl.minimum(reach - base, CHUNK * J), J) * PB
        for step_ in range(steps):
            # The i-th windows of J blocks are one product: a block's windows are added in place.
            i, block = step_ % PB, base + step_ // PB * J
            from_ = k_cmp if TMA else k_cmp + (window + i) * tl.cast(width, tl.int64)
            left = (last - i + PB - 1) // PB - block
            k = keys_of(from_, sequence, 0, block, left, kv, PB * width, D, J, D, TMA, i * width)
            p = _probabilities(
                tile, k, logs, scale2, seen, block * PB + i, all_see, GP, J, PB, RAW, ALL_SEEN
            )
            # The last windows of a block share some of their PW strides with the next block.
            if PB == 1:
                score = p
            elif PW == 1:
                score += p
            else:
                mine = tl.minimum(PW, PB - i).to(tl.float32)
                score += p * mine
                if PW == 2:
                    spill = p  # the last window's alone
                else:
                    spill += p * (PW - mine)
            if i == PB - 1:
                scores, held = _joined(score, spill, held, PW, GP, BQ, J, LEVELS > 2)
                column = block + place
                if TOP_P:
                    complete = ((column + 1) * BS)[:, None] <= (query - start + 1)[None, :]
                    forced = (column < INIT)[:, None] | (column[:, None] >= stop[None, :])
                    weight += tl.sum(tl.where(complete, scores, 0.0), 0)
                    forced_weight += tl.sum(tl.where(complete & forced, scores, 0.0), 0)
                key = candidates(
                    scores, column, taken, step_ // PB, stop, block + J > first_stop, index_mask,
                    INIT, EXCLUDED, RAW,
                )  # fmt: skip
                if LEVELS > 0:
                    levels = ranked(levels, key)
                else:
                    run = merged(run, tl.trans(key))
                if PB > 1:
                    score = tl.zeros([J, BQ * GP], tl.float32)
                    if PW != 2:
                        spill = tl.zeros([J, BQ * GP], tl.float32)
    run = best_first(run, levels, CHOSEN, RUN)
    result = blocks_of(run, index_mask)
    if TOP_P:
        value = tl.where(run > LOWEST, (run & ~index_mask).to(tl.float32, bitcast=True), 0.0)
        some_weight = tl.where(weight > 0, weight, 1.0)[:, None]
        share = tl.where(weight[:, None] > 0, value / some_weight, 0.0)
        reached = tl.where(weight > 0, forced_weight / tl.where(weight > 0, weight, 1.0), 0.0)[
            :, None
        ]
        reached = reached + tl.cumsum(share, 1) - share
        count = tl.minimum(own + 1, LOCAL) + tl.minimum(INIT, tl.maximum(stop, 0))
        kept = (reached < top_p) | (count[:, None] + slot[None, :] < least)
        result = tl.where(kept, result, -1)
    line = unit if FORCED > 0 else query
    at = lists + (line.to(tl.int64) * kv_heads + kv)[:, None] * (FORCED + CHOSEN)
    tl.store(at + FORCED + slot[None, :], result, mask=some[:, None] & (slot < CHOSEN)[None, :])
    for i in tl.static_range(FORCED):
        if i < INIT:
            block = tl.where(i < stop, i, -1)
        else:
            block = tl.maximum(own - (i - INIT), -1)
        tl.store(at + i, block[:, None], mask=some[:, None])
