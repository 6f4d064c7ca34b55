"""Compressed branch: attention over the summaries that have ended, and the importance it yields."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from ..config import NSAConfig
from ..lists import private_list, private_size, shared_list, tile_lists
from ..stages import stage
from ..summaries import block_scores, window_scores
from .operands import Gradients, Operands, Problem, product


def forward(
    x: Operands, begin: int, end: int, choose: bool
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """Output of the queries [begin, end) and, if wanted, the block lists that they choose.

    Returns:
        o [N, C, G, D]; shared lists [N, C / R, s] and private ones [N, C, m], or None.
    """
    out = x.empty(begin, end)
    shared, private = [], []
    for lo, hi in _steps(x, begin, end):
        p = _probabilities(x, lo, hi)
        at = out[:, lo - begin : hi - begin]
        if p is None:
            at.zero_()
            scores = at.new_zeros(*at.shape[:2], 1)
        else:
            o = product(p.to(x.v_cmp.dtype), x.v_cmp[:, : p.shape[-1]])
            at.copy_(o.view(at.shape))
            scores = p
            if choose:
                with stage("choice"):
                    scores = _importance(x.problem, p, hi - lo)
        if choose:
            with stage("choice"):
                lists = _choose(x, scores, lo, hi)
            shared.append(lists[0])
            private.append(lists[1])
    return (out, torch.cat(shared, 1), torch.cat(private, 1)) if choose else (out, None, None)


@dataclass(frozen=True)
class ScoreGradients:
    """Gradients of the scores that chose the blocks of a chunk (``differentiable_topk``).

    ``lists`` and ``slots``, alike in shape: shared [N, C / R, s] and, if any, private [N, C, m].
    """

    lists: list[Tensor]
    slots: list[Tensor]
    begin: int

    def leaders(self, config: NSAConfig, lo: int, hi: int, blocks: int) -> Tensor:
        """Of the scores of the tiles in [lo, hi): [N, tiles, blocks]; forced blocks have none."""
        assert isinstance(config.query_tile, int)
        forced = config.init_blocks + config.local_blocks
        at = slice((lo - self.begin) // config.query_tile, (hi - self.begin) // config.query_tile)
        return _on_blocks(self.lists[0][:, at, forced:], self.slots[0][:, at, forced:], blocks)

    def queries(self, lo: int, hi: int, blocks: int) -> Tensor | None:
        """Of the queries' own scores, for private blocks: [N, C, blocks]; None without any."""
        if len(self.lists) == 1:
            return None
        at = slice(lo - self.begin, hi - self.begin)
        return _on_blocks(self.lists[1][:, at], self.slots[1][:, at], blocks)


def _on_blocks(lists: Tensor, slots: Tensor, blocks: int) -> Tensor:
    """What each slot says, at its block: [..., n] -> [..., blocks]; empty slots say nothing."""
    total = slots.new_zeros(*slots.shape[:-1], blocks)
    said = slots.masked_fill(lists < 0, 0.0)
    # Empty slots add their 0 to block 0; others meet no block twice, so the order is no matter.
    return total.scatter_add_(-1, lists.clamp(min=0).long(), said)


def backward(
    x: Operands, grads: Gradients, begin: int, end: int, scores: ScoreGradients | None
) -> None:
    """Add the branch's gradients with respect to the queries [begin, end), in a fixed order.

    ``scores`` adds what flows into the probabilities through the choice of blocks.
    """
    branch = "compressed" in x.problem.config.branches
    for lo, hi in _steps(x, begin, end):
        p = _probabilities(x, lo, hi)
        if p is None:
            continue
        dp_choice = None
        if scores is not None:
            dp_choice = _choice_backward(x, grads, scores, lo, hi, p.shape[-1])
        if not branch:
            if dp_choice is not None:
                _add(x, grads, lo, hi, _softmax_backward(p, dp_choice))
            continue
        ds_choice = None if dp_choice is None else _softmax_backward(p, dp_choice)
        row_grads = grads.out[:, lo:hi].flatten(1, 2)
        dp = product(row_grads, x.v_cmp[:, : p.shape[-1]].transpose(1, 2))
        mean = (p * dp).sum(-1, keepdim=True)
        gated = p.mul_(x.gate("compressed", lo, hi).reshape(mean.shape))
        ds = dp.sub_(mean).mul_(gated)
        _add(x, grads, lo, hi, ds if ds_choice is None else ds.add_(ds_choice))
        grads.gates[:, lo:hi, :, 0] += mean.unflatten(1, (hi - lo, -1)).squeeze(-1)
        dv = product(gated.to(x.q.dtype).transpose(1, 2), row_grads)
        grads.v_cmp[:, : dv.shape[1]] += dv


def _add(x: Operands, grads: Gradients, begin: int, end: int, ds: Tensor) -> None:
    """Add to dq and dk_cmp what the gradient of the logits [N, C G, seen] makes of them."""
    ds, scale = ds.to(x.q.dtype), x.problem.scale
    dq = product(ds, x.k_cmp[:, : ds.shape[-1]], scale)
    grads.q[:, begin:end] += dq.unflatten(1, (end - begin, -1))
    rows = x.q[:, begin:end].flatten(1, 2)
    grads.k_cmp[:, : ds.shape[-1]] += product(ds.transpose(1, 2), rows, scale)


def _softmax_backward(p: Tensor, dp: Tensor) -> Tensor:
    return p * (dp - (p * dp).sum(-1, keepdim=True))


def _choice_backward(
    x: Operands, grads: Gradients, scores: ScoreGradients, begin: int, end: int, seen: int
) -> Tensor:
    """Gradient of the probabilities [N, C G, seen] of the queries [begin, end).

    Where a tile's scores are sums that reach back before ``begin``, adds that part to ``grads``.
    """
    problem, c, tile = x.problem, x.problem.config, x.problem.tile
    blocks = problem.blocks_of_windows(seen)
    leaders, own = scores.leaders(c, begin, end, blocks), scores.queries(begin, end, blocks)
    if c.tile_scoring == "leader":
        per_query = leaders.new_zeros(len(leaders), end - begin, blocks)
        per_query[:, ::tile] = leaders
    else:
        summed = leaders.repeat_interleave(tile, 1)  # the queries (leader - R, leader]
        per_query = torch.nn.functional.pad(summed[:, tile - 1 :], (0, 0, 0, tile - 1))
        p = _probabilities(x, begin - tile + 1, begin) if begin >= tile > 1 else None
        if p is not None:
            dp = _on_windows(problem, summed[:, : tile - 1], p.shape[-1])
            _add(x, grads, begin - tile + 1, begin, _softmax_backward(p, dp))
    return _on_windows(problem, per_query if own is None else per_query.add_(own), seen)


def _on_windows(problem: Problem, dscores: Tensor, seen: int) -> Tensor:
    """The transpose of ``_importance``: [N, C, blocks] -> [N, C G, seen]."""
    c = problem.config
    per_window = window_scores(dscores, seen, c.block_size, c.compress_block, c.compress_stride)
    return per_window.repeat_interleave(problem.group, 1)


def _probabilities(x: Operands, begin: int, end: int) -> Tensor | None:
    """Probabilities of the queries [begin, end): [N, C G, seen]; None if nobody sees any window."""
    problem, c = x.problem, x.problem.config
    first, seen = problem.windows_ended(begin), problem.windows_ended(end - 1)
    if seen == 0:
        return None
    keys = x.k_cmp[:, :seen].transpose(1, 2)
    logits = product(x.q[:, begin:end].flatten(1, 2), keys, problem.scale)
    windows = torch.arange(first, seen, device=x.q.device)
    rows = torch.arange(begin, end, device=x.q.device).repeat_interleave(problem.group)
    future = windows * c.compress_stride + c.compress_block - 1 > rows[:, None]
    # Whatever the first query sees, all see; only the columns behind need a mask. A row that sees
    # nothing would be uniform over masked columns, hence the second fill.
    logits[..., first:].masked_fill_(future, torch.finfo(logits.dtype).min)
    p = torch.softmax(logits, -1, out=logits)
    if first == 0:
        p.masked_fill_(future, 0.0)
    return p


def _importance(problem: Problem, p: Tensor, queries: int) -> Tensor:
    """Head sums of the probabilities on selection blocks: [N, queries, blocks] (NSA, eq. 9)."""
    c = problem.config
    summed = p.unflatten(1, (queries, -1)).sum(2) if problem.group > 1 else p
    return block_scores(summed, c.block_size, c.compress_block, c.compress_stride)


def _choose(x: Operands, scores: Tensor, begin: int, end: int) -> tuple[Tensor, Tensor]:
    """Shared [N, C / R, s] and private [N, C, m] lists by the scores [N, C, blocks]."""
    c, tile = x.problem.config, x.problem.tile
    positions = torch.arange(begin, end, device=x.q.device)
    alone = c.tile_scoring == "leader"
    # Choosing overwrites scores: of a tile's leader a copy, unless nobody needs them any more.
    leaders = scores[:, ::tile].contiguous() if alone else _aggregated(x, scores, begin)
    shared = shared_list(leaders, positions[::tile], c, begin)
    if not private_size(c):
        return shared, shared.new_empty(len(scores), end - begin, 0)
    lists = tile_lists(shared, tile, end - begin)
    return shared, private_list(scores, lists, positions, c, begin)


def _aggregated(x: Operands, scores: Tensor, begin: int) -> Tensor:
    """Scores summed over the R queries that end at each tile's leader: [N, C / R, blocks]."""
    tile, queries = x.problem.tile, scores.shape[1]
    before = torch.zeros_like(scores[:, :1]).expand(-1, tile - 1, -1)
    p = _probabilities(x, begin - tile + 1, begin) if begin >= tile > 1 else None
    if p is not None:
        earlier = _importance(x.problem, p, tile - 1)
        before = torch.nn.functional.pad(earlier, (0, scores.shape[-1] - earlier.shape[-1]))
    window = torch.cat([before, scores], 1)[:, :queries]
    return window.unflatten(1, (-1, tile)).sum(2)


def _steps(x: Operands, begin: int, end: int) -> Iterator[tuple[int, int]]:
    """Steps of whole blocks whose logits, as wide as the last query needs, stay in the budget."""
    problem, size = x.problem, x.problem.config.block_size
    rows = len(x.q) * problem.group
    while begin < end:
        stop = end
        while stop - begin > size and (
            rows * (stop - begin) * problem.windows_ended(stop - 1) > problem.step_elements
        ):
            stop = begin + max(size, (stop - begin) // 2 // size * size)
        yield begin, stop
        begin = stop
