"""Compressed branch: attention over the summaries that have ended, and the importance it yields."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from ..lists import private_list, private_size, shared_list, tile_lists
from ..stages import stage
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


def backward(x: Operands, grads: Gradients, begin: int, end: int) -> None:
    """Add the branch's gradients with respect to the queries [begin, end), in a fixed order."""
    scale = x.problem.scale
    for lo, hi in _steps(x, begin, end):
        p = _probabilities(x, lo, hi)
        if p is None:
            continue
        seen = p.shape[-1]
        rows, row_grads = x.q[:, lo:hi].flatten(1, 2), grads.out[:, lo:hi].flatten(1, 2)
        dp = product(row_grads, x.v_cmp[:, :seen].transpose(1, 2))
        mean = (p * dp).sum(-1, keepdim=True)
        gated = p.mul_(x.gate("compressed", lo, hi).reshape(mean.shape))
        ds = dp.sub_(mean).mul_(gated).to(x.q.dtype)
        grads.q[:, lo:hi] += product(ds, x.k_cmp[:, :seen], scale).unflatten(1, (hi - lo, -1))
        grads.gates[:, lo:hi, :, 0] += mean.unflatten(1, (hi - lo, -1)).squeeze(-1)
        grads.k_cmp[:, :seen] += product(ds.transpose(1, 2), rows, scale)
        grads.v_cmp[:, :seen] += product(gated.to(x.q.dtype).transpose(1, 2), row_grads)


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
    per_block, per_window = c.block_size // c.compress_stride, c.compress_block // c.compress_stride
    if per_block == per_window == 1:
        return summed
    # A stride is covered by the windows that begin 0 ... per_window - 1 strides before it.
    blocks = -(-(p.shape[-1] + per_window - 1) // per_block)
    tail = blocks * per_block - p.shape[-1]
    padded = torch.nn.functional.pad(summed, (per_window - 1, tail))
    shifted = [padded[..., i : i + blocks * per_block] for i in range(per_window)]
    return sum(shifted[1:], shifted[0]).unflatten(-1, (blocks, per_block)).sum(-1)


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
