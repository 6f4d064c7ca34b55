"""Block lists of a sparse provider: are they allowed, are they the best, what do they leave out.

Lists have the form of the public interface: exact ones int32 [B, T, K, n], hybrid ones a pair of
shared [B, ceil(T / R), K, s] (forced blocks included) and private [B, T, K, m]; -1 is empty.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from dynbench.suites.rows import Lists, Slice
from dynnsiha.attention.config import NSAConfig
from dynnsiha.attention.reference import reference_rows

SCORE_TOLERANCE = 0.02
"""How far a chosen score may be from the one due, as a share of the row's n-th score."""

_CHUNK_ELEMENTS = 2**24
"""Comparisons of list entries at a time."""


def shape_problem(lists: object, config: NSAConfig, batch: int, seq_len: int, kv_heads: int) -> str:
    """Why these are no lists of the public interface; empty if they are."""
    tile = int(config.query_tile)
    if tile == 1:
        parts, steps = [lists], [1]
    else:
        if not isinstance(lists, (tuple, list)) or len(lists) != 2:
            return f"lists: must be a pair (shared, private) for query_tile={tile}"
        parts, steps = list(lists), [tile, 1]
    for part, step in zip(parts, steps, strict=True):
        wanted = (batch, -(-seq_len // step), kv_heads)
        if not isinstance(part, Tensor) or part.is_floating_point():
            return "lists: must be integer tensors"
        if part.dim() != 4 or tuple(part.shape[:3]) != wanted:
            return f"lists: shape {list(part.shape)}, expected {[*wanted, 'n']}"
    return ""


def per_query(lists: Lists, config: NSAConfig, rows: Tensor) -> Tensor:
    """Blocks of the queries at ``rows`` (int64 [N]): [B, N, K, n], shared before private ones."""
    if isinstance(lists, Tensor):
        return lists[:, rows]
    shared, private = lists
    return torch.cat([shared[:, rows // int(config.query_tile)], private[:, rows]], -1)


def list_problem(part: Slice, rows: Tensor) -> str:
    """The first broken rule in the lists of a slice at ``rows``; empty if there is none.

    Rules: no block of the future, none twice, all forced blocks, min(top_n, blocks so far) in all;
    and the scores of the shared choice (by the tile's first query) and of the private one (by the
    query itself, of what is left) match the best possible within SCORE_TOLERANCE.
    """
    config = part.config
    assert config is not None
    assert part.lists is not None
    listed = per_query(part.lists, config, rows)[0, :, 0].long()
    own = rows // config.block_size
    blocks = -(-part.seq_len // config.block_size)

    def first(bad: Tensor) -> int:
        return int(rows[bad.nonzero()[0, 0]])

    future = ((listed > own[:, None]) | (listed < -1)).any(-1)
    if future.any():
        return f"list of query {first(future)} names a future block or none that exists"
    chosen = _mask(listed, blocks)
    twice = (listed >= 0).sum(-1) != chosen.sum(-1)
    if twice.any():
        return f"list of query {first(twice)} names a block twice"
    forced = _forced(own, blocks, config)
    lacking = (forced & ~chosen).any(-1)
    if lacking.any():
        return f"list of query {first(lacking)} lacks a forced block"
    short = chosen.sum(-1) != torch.clamp(own + 1, max=config.top_n)
    if short.any():
        return f"list of query {first(short)} has {int(chosen.sum(-1)[short][0])} blocks, not top_n"
    return _score_problem(part, rows, listed, forced)


def _score_problem(part: Slice, rows: Tensor, listed: Tensor, forced: Tensor) -> str:
    config = part.config
    assert config is not None
    tile = int(config.query_tile)
    private = config.private_blocks if tile > 1 else 0
    blocks = forced.shape[1]
    candidates = ~forced & (
        torch.arange(blocks, device=rows.device) < (rows // config.block_size)[:, None]
    )
    shared = _mask(listed[:, : listed.shape[1] - private], blocks) & candidates
    leaders = rows // tile * tile
    free = config.top_n - config.init_blocks - config.local_blocks - private
    bad = _beyond(_importance(part, leaders), candidates, shared, free)
    if bad.any():
        row = int(rows[bad.nonzero()[0, 0]])
        return f"list of query {row}: its blocks are not the best ones by importance"
    if private:
        own_choice = _mask(listed[:, -private:], blocks) & candidates
        bad = _beyond(_importance(part, rows), candidates & ~shared, own_choice, private)
        if bad.any():
            row = int(rows[bad.nonzero()[0, 0]])
            return f"list of query {row}: its private blocks are not the best of the rest"
    return ""


def _beyond(importance: Tensor, candidates: Tensor, chosen: Tensor, count: int) -> Tensor:
    """Rows [N] whose chosen scores, sorted, are not the ``count`` best ones of the candidates."""
    count = min(count, importance.shape[1])
    if count == 0:
        return chosen.any(-1)
    best = importance.masked_fill(~candidates, -1.0).topk(count, -1).values
    found = importance.masked_fill(~chosen, -1.0).topk(count, -1).values
    last = best.masked_fill(best < 0, float("inf")).amin(-1, keepdim=True)
    slack = torch.where(last.isfinite(), SCORE_TOLERANCE * last, 0.0)
    return ((best - found).abs() > slack).any(-1) | (chosen.sum(-1) > count)


def _importance(part: Slice, rows: Tensor) -> Tensor:
    """What the blocks of each row's query are chosen by: [N, blocks], by the reference."""
    assert part.gates is not None
    assert part.config is not None
    unique, back = rows.unique(return_inverse=True)
    scores = []
    with torch.no_grad():
        for chunk in part.chunks(unique):
            result = reference_rows(
                part.q,
                part.k,
                part.v,
                part.gates,
                part.config,
                chunk,
                block_indices=part.lists,
                return_importance=True,
            )
            scores.append(result[1][0, :, 0])
    return torch.cat(scores)[back]


def _mask(listed: Tensor, blocks: int) -> Tensor:
    """Which blocks the lists [N, n] name: bool [N, blocks]."""
    table = torch.zeros(len(listed), blocks + 1, dtype=torch.bool, device=listed.device)
    table.scatter_(1, torch.where(listed >= 0, listed, blocks), True)
    return table[:, :blocks]


def _forced(own: Tensor, blocks: int, config: NSAConfig) -> Tensor:
    """Forced blocks of queries in the blocks ``own`` [N]: bool [N, blocks]."""
    block = torch.arange(blocks, device=own.device)
    initial = block < config.init_blocks
    local = block > own[:, None] - config.local_blocks
    return (initial | local) & (block <= own[:, None])


def list_facts(lists: Lists, config: NSAConfig, seq_len: int) -> dict[str, float | None]:
    """The sparsity columns of a row, over every query of every head.

    attended_share: pairs in the union of selected blocks and window (none where that branch is left
    out), over causal pairs; sparsity is the rest. list_overlap: share of a query's blocks that its
    predecessor lists too.
    hottest_block_share: of the unforced blocks, the one that most queries of a head chose, over all
    queries; None where no query had a choice.
    """
    attended = blocks = repeated = repeatable = queries = 0
    table = lists if isinstance(lists, Tensor) else lists[1]
    batch, kv_heads = table.shape[0], table.shape[2]
    count = -(-seq_len // config.block_size)
    chosen = torch.zeros(batch, kv_heads, count + 1, dtype=torch.int64, device=table.device)
    slots = sum(x.shape[-1] for x in ((lists,) if isinstance(lists, Tensor) else lists))
    per_row = batch * kv_heads * max(1, slots) ** 2  # comparing two queries' lists
    for rows in _row_chunks(seq_len, table.device, max(1, _CHUNK_ELEMENTS // per_row)):
        listed = per_query(lists, config, rows).long()
        attended += _attended(listed, rows, config)
        blocks += int((listed >= 0).sum())
        queries += batch * kv_heads * len(rows)
        _count_free(chosen, listed, rows, config)
        later = rows[rows > 0]
        now, before = (per_query(lists, config, r).long() for r in (later, later - 1))
        kept = (now[..., :, None] == before[..., None, :]).any(-1) & (now >= 0)
        repeated += int(kept.sum())
        repeatable += int((now >= 0).sum())
    share = attended / (batch * kv_heads * seq_len * (seq_len + 1) // 2)
    hottest = int(chosen[..., :count].max())
    return {
        "attended_share": share,
        "sparsity": 1 - share,
        "mean_blocks": blocks / queries,
        "list_overlap": repeated / repeatable if repeatable else None,
        "hottest_block_share": hottest / seq_len if hottest else None,
    }


def next_query_facts(lists: Tensor, config: NSAConfig, before: int) -> dict[str, float]:
    """The sparsity columns of one query after ``before`` tokens, by its lists [B, 1, K, n].

    Shares are of the ``before`` + 1 keys that it may see.
    """
    listed = lists.long()
    queries = listed.shape[0] * listed.shape[2]
    attended = _attended(listed, torch.tensor([before], device=lists.device), config)
    share = attended / (queries * (before + 1))
    return {
        "attended_share": share,
        "sparsity": 1 - share,
        "mean_blocks": int((listed >= 0).sum()) / queries,
    }


def _row_chunks(seq_len: int, device: torch.device, rows: int) -> Iterator[Tensor]:
    yield from torch.arange(seq_len, device=device).split(rows)


def _attended(listed: Tensor, rows: Tensor, config: NSAConfig) -> int:
    """Keys in the union of blocks [B, N, K, n] and window, summed over all queries."""
    keys = config.window if "sliding" in config.branches else 0
    end_of_query = rows[:, None, None] + 1
    window_start = (end_of_query - keys).clamp(min=0)
    start = listed * config.block_size
    end = torch.minimum(start + config.block_size, end_of_query)
    in_window = (end - torch.maximum(start, window_start)).clamp(min=0)
    outside = torch.where(listed >= 0, end - start - in_window, 0)
    window = (end_of_query - window_start).sum() * listed.shape[0] * listed.shape[2]
    return int(outside.sum() + window)


def _count_free(chosen: Tensor, listed: Tensor, rows: Tensor, config: NSAConfig) -> None:
    """Add to ``chosen`` [B, K, blocks + 1] how often each block is listed without being forced."""
    own = (rows // config.block_size)[:, None, None]
    free = (listed >= config.init_blocks) & (listed <= own - config.local_blocks)
    index = torch.where(free, listed, chosen.shape[-1] - 1).transpose(1, 2).flatten(2)
    chosen.scatter_add_(-1, index, torch.ones_like(index))
