"""Compressed branch and choice of private blocks in one pass over the summaries.

With one query head a key/value head and one window a block, logits rank blocks as importance does,
and so nothing of the compressed branch is needed to choose: its own products are ranked on the way.
The shared lists, a leader's in so many queries, are chosen before.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..lists import private_size
from . import choice
from .compressed import over_windows
from .geometry import VARYING, line_of, windows_seen
from .problem import Problem
from .ranking import best_first, blocks_of, candidates, nothing_ranked, ranked, taken_before
from .softmax import absorb, finished, fresh, overflown, rows_of, store_rows
from .sources import keys_of


def serves(problem: Problem) -> bool:
    """Whether private blocks can be chosen on the way through the summaries."""
    config = problem.config
    launch = problem.tuned("compressed choice").launch
    candidates_kept = private_size(config) * launch["BQ"] * launch["BN"]
    return (
        choice.logits_rank(problem)
        and config.top_p is None
        and "compressed" in config.branches
        and 0 < candidates_kept <= choice.LEVELS
    )


def forward(
    problem: Problem, q: Tensor, k_cmp: Tensor, v_cmp: Tensor, shared: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """As ``compressed.forward``, and the private lists int32 [tokens, K, m] beside ``shared``."""
    config = problem.config
    out = torch.empty(q.shape, dtype=q.dtype, device=q.device)
    lse = torch.empty(q.shape[:2], dtype=torch.float32, device=q.device)
    private = choice.private_lists(problem, q.device)
    tuned = problem.tuned("compressed choice")
    table = problem.geometry.programs(tuned.queries)
    chosen, taken = private.shape[-1], shared.shape[-1] - config.init_blocks - config.local_blocks
    compressed_choice_forward[(len(table), problem.kv_heads)](
        q,
        problem.keys(k_cmp, tuned.launch["BN"]),
        problem.keys(v_cmp, tuned.launch["BN"]),
        out,
        lse,
        shared,
        private,
        table,
        problem.scale2,
        q.stride(0),
        q.stride(1),
        problem.kv_heads,
        problem.tile,
        choice.index_mask(problem),
        D=problem.head_dim,
        TMA=problem.bulk,
        **tuned.launch,
        BS=config.block_size,
        INIT=config.init_blocks,
        LOCAL=config.local_blocks,
        CHOSEN=chosen,
        RUN=triton.next_power_of_2(chosen),
        CHUNK=choice.CHUNK,
        EXCLUDED=taken,
        ONE_LIST=problem.tile % tuned.queries == 0,
    )
    return out, lse, private


@triton.jit(do_not_specialize=VARYING)
def compressed_choice_forward(
    q,
    k_cmp,
    v_cmp,
    out,
    lse,
    shared,
    private,
    table,
    scale2,
    q_t,
    q_h,
    kv_heads,
    tile_tokens,
    index_mask,
    D: tl.constexpr,
    TMA: tl.constexpr,
    BQ: tl.constexpr,
    BN: tl.constexpr,
    BS: tl.constexpr,
    INIT: tl.constexpr,
    LOCAL: tl.constexpr,
    CHOSEN: tl.constexpr,
    RUN: tl.constexpr,
    CHUNK: tl.constexpr,
    EXCLUDED: tl.constexpr,
    ONE_LIST: tl.constexpr,
):
    """Output, log-sum-exp and private blocks of BQ queries of one head."""
    # The last tiles see most summaries: they start first.
    last_first = tl.num_programs(0) - 1 - tl.program_id(0)
    row, start, end, _b, window, tile0, sequence = line_of(table, last_first)
    head = tl.program_id(1)
    token = row + tl.arange(0, BQ)
    live = token < end
    heads = head + tl.zeros([BQ], tl.int32)
    tile = rows_of(q, token, heads, live, q_t, q_h, D)
    seen = windows_seen(token - start, BS, BS)
    all_see = windows_seen(row - start, BS, BS)
    last = windows_seen(tl.minimum(row + BQ, end) - 1 - start, BS, BS)
    width = kv_heads * D

    # Candidates are complete blocks that are not forced: INIT ... own - LOCAL.
    stop = (token - start) // BS - LOCAL + 1
    first_stop = (row - start) // BS - LOCAL + 1
    if ONE_LIST:
        unit = (row - start) // tile_tokens + tile0
    else:
        unit = (token - start) // tile_tokens + tile0
    list_ = shared + ((unit * kv_heads + head) * (INIT + LOCAL + EXCLUDED) + INIT + LOCAL)
    run, levels = nothing_ranked(BQ, BN, CHOSEN, RUN, CHOSEN)
    top, total, acc = fresh(BQ, D, False)
    for base in range(0, last, CHUNK * BN):
        taken = taken_before(list_, base, live, BN, EXCLUDED, CHUNK, ONE_LIST)
        for first in range(base, tl.minimum(last, base + CHUNK * BN), BN):
            k = keys_of(k_cmp, sequence, window, first, last - first, head, width, D, BN, D, TMA)
            v = keys_of(v_cmp, sequence, window, first, last - first, head, width, D, BN, D, TMA)
            s = tl.dot(tile, tl.trans(k))
            key = candidates(
                tl.trans(s), first + tl.arange(0, BN), taken, (first - base) // BN, stop,
                first + BN > first_stop, index_mask, INIT, EXCLUDED, True,
            )  # fmt: skip
            levels = ranked(levels, key)
            if first + BN > all_see:
                s = tl.where((first + tl.arange(0, BN))[None, :] < seen[:, None], s, float("-inf"))
            top, total, acc = absorb(s, v, scale2, top, total, acc, False)
    run = best_first(run, levels, CHOSEN, RUN)
    slot = tl.arange(0, RUN)
    at = private + (token.to(tl.int64) * kv_heads + head)[:, None] * CHOSEN + slot[None, :]
    tl.store(at, blocks_of(run, index_mask), mask=live[:, None] & (slot < CHOSEN)[None, :])

    if overflown(total, live & (seen > 0), tile.dtype):
        top, total, acc = over_windows(
            tile, k_cmp, v_cmp, sequence, window, last, head, width, scale2, seen, all_see,
            D, TMA, BN, True,
        )  # fmt: skip
    o, logs = finished(top, total, acc)
    store_rows(out, o, token, heads, live, kv_heads * D, D, D)
    tl.store(lse + token.to(tl.int64) * kv_heads + head, logs, mask=live)
