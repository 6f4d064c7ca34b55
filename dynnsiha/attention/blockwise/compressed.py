"""Compressed branch: attention over the summaries that have ended, and the importance it yields."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from ..lists import private_list, private_size, shared_list, tile_lists
from .shapes import Problem, accumulation_dtype, product


def probabilities(
    problem: Problem, q: Tensor, k_cmp: Tensor, begin: int, end: int
) -> Tensor | None:
    """Probabilities of the queries [begin, end): [N, (end - begin) G, seen]; None if nobody sees any.

    Args:
        q: [N, T, G, D]; k_cmp: [N, windows, D].
    """
    c = problem.config
    first, seen = problem.windows_ended(begin), problem.windows_ended(end - 1)
    if seen == 0:
        return None
    logits = product(q[:, begin:end].flatten(1, 2), k_cmp[:, :seen].transpose(1, 2), problem.scale)
    last_token = (
        torch.arange(first, seen, device=q.device) * c.compress_stride + c.compress_block - 1
    )
    rows = torch.arange(begin, end, device=q.device).repeat_interleave(problem.group)
    future = last_token > rows[:, None]
    # Whatever the first query sees, all see; only the columns behind need a mask. A row that sees
    # nothing would be uniform over masked columns, hence the second fill.
    logits[..., first:].masked_fill_(future, torch.finfo(logits.dtype).min)
    p = torch.softmax(logits, -1, out=logits)
    if first == 0:
        p.masked_fill_(future, 0.0)
    return p


def importance(problem: Problem, p: Tensor, queries: int) -> Tensor:
    """Head sums of the probabilities on selection blocks: [N, queries, blocks seen] (NSA, equation 9)."""
    c = problem.config
    summed = p.unflatten(1, (queries, -1)).sum(2) if problem.group > 1 else p
    per_block, per_window = c.block_size // c.compress_stride, c.compress_block // c.compress_stride
    if per_block == per_window == 1:
        return summed
    # A stride of a block is covered by the windows that begin 0 ... per_window - 1 strides before it.
    blocks = -(-(p.shape[-1] + per_window - 1) // per_block)
    tail = blocks * per_block - p.shape[-1]
    padded = torch.nn.functional.pad(summed, (per_window - 1, tail))
    shifted = [padded[..., i : i + blocks * per_block] for i in range(per_window)]
    return sum(shifted[1:], shifted[0]).unflatten(-1, (blocks, per_block)).sum(-1)


def forward(
    problem: Problem, q: Tensor, k_cmp: Tensor, v_cmp: Tensor, begin: int, end: int, choose: bool
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """Output and block lists of the queries [begin, end).

    Args:
        q: [N, T, G, D]; k_cmp, v_cmp: [N, windows, D].
        choose: whether lists are wanted.

    Returns:
        o [N, C, G, D] in the accumulation dtype; shared lists [N, C / R, s] and private ones
        [N, C, m], or None.
    """
    wide = accumulation_dtype(q.dtype)
    outs, shared, private = [], [], []
    for lo, hi in _steps(problem, begin, end, q.shape[0]):
        p = probabilities(problem, q, k_cmp, lo, hi)
        if p is None:
            outs.append(torch.zeros(q[:, lo:hi].shape, dtype=wide, device=q.device))
            scores = torch.zeros(q.shape[0], hi - lo, 1, dtype=wide, device=q.device)
        else:
            out = product(p.to(v_cmp.dtype), v_cmp[:, : p.shape[-1]])
            outs.append(out.unflatten(1, (hi - lo, -1)))
            scores = importance(problem, p, hi - lo) if choose else p
        if choose:
            lists = _choose(problem, q, k_cmp, scores, lo, hi)
            shared.append(lists[0])
            private.append(lists[1])
    out = torch.cat(outs, 1)
    return (out, torch.cat(shared, 1), torch.cat(private, 1)) if choose else (out, None, None)


def backward(
    problem: Problem,
    q: Tensor,
    k_cmp: Tensor,
    v_cmp: Tensor,
    gate: Tensor,
    grad: Tensor,
    begin: int,
    end: int,
    dk_cmp: Tensor,
    dv_cmp: Tensor,
) -> tuple[Tensor, Tensor]:
    """Gradients of the queries [begin, end); adds to dk_cmp, dv_cmp [N, windows, D] in place.

    Args:
        q, grad: [N, T, G, D], grad of the layer's output; gate: [N, T, G] of this branch.

    Returns:
        dq [N, C, G, D] and dgate [N, C, G].
    """
    wide = accumulation_dtype(q.dtype)
    dq = torch.zeros(q[:, begin:end].shape, dtype=wide, device=q.device)
    dgate = torch.zeros(gate[:, begin:end].shape, dtype=wide, device=q.device)
    for lo, hi in _steps(problem, begin, end, q.shape[0]):
        p = probabilities(problem, q, k_cmp, lo, hi)
        if p is None:
            continue
        at, seen = slice(lo - begin, hi - begin), p.shape[-1]
        rows, row_grad = q[:, lo:hi].flatten(1, 2), grad[:, lo:hi].flatten(1, 2)
        dp = product(row_grad, v_cmp[:, :seen].transpose(1, 2))
        mean = (p * dp).sum(-1, keepdim=True)
        gated = p.mul_(gate[:, lo:hi].flatten(1)[..., None])
        ds = dp.sub_(mean).mul_(gated).to(q.dtype)
        dq[:, at] = product(ds, k_cmp[:, :seen], problem.scale).unflatten(1, (hi - lo, -1))
        dgate[:, at] = mean.unflatten(1, (hi - lo, -1)).squeeze(-1)
        dk_cmp[:, :seen] += product(ds.transpose(1, 2), rows, problem.scale)
        dv_cmp[:, :seen] += product(gated.to(q.dtype).transpose(1, 2), row_grad)
    return dq, dgate


def _choose(
    problem: Problem, q: Tensor, k_cmp: Tensor, scores: Tensor, begin: int, end: int
) -> tuple[Tensor, Tensor]:
    """Shared [N, C / R, s] and private [N, C, m] lists by the scores [N, C, blocks] of [begin, end)."""
    c, tile = problem.config, problem.tile
    positions = torch.arange(begin, end, device=q.device)
    leaders = (
        scores[:, ::tile]
        if c.tile_scoring == "leader"
        else _aggregated(problem, q, k_cmp, scores, begin)
    )
    shared = shared_list(leaders, positions[::tile], c)
    if not private_size(c):
        return shared, shared.new_empty(q.shape[0], end - begin, 0)
    return shared, private_list(scores, tile_lists(shared, tile, end - begin), positions, c)


def _aggregated(problem: Problem, q: Tensor, k_cmp: Tensor, scores: Tensor, begin: int) -> Tensor:
    """Scores summed over the R queries that end at each tile's leader: [N, C / R, blocks]."""
    tile, queries = problem.tile, scores.shape[1]
    before = torch.zeros_like(scores[:, :1]).expand(-1, tile - 1, -1)
    if begin >= tile > 1:
        p = probabilities(problem, q, k_cmp, begin - tile + 1, begin)
        if p is not None:
            earlier = importance(problem, p, tile - 1)
            before = torch.nn.functional.pad(earlier, (0, scores.shape[-1] - earlier.shape[-1]))
    window = torch.cat([before, scores], 1)[:, :queries]
    return window.unflatten(1, (-1, tile)).sum(2)


def _steps(problem: Problem, begin: int, end: int, heads: int) -> Iterator[tuple[int, int]]:
    """Steps whose logits stay within the budget; they shorten as later queries see more windows."""
    while begin < end:
        per_query = heads * problem.group * max(1, problem.windows_ended(begin))
        lo, hi = next(problem.steps(begin, end, per_query * problem.config.block_size))
        yield lo, hi
        begin = hi
