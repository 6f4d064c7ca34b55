"""Selected branch, key-block outer: each block is read once for many queries that chose it.

A *unit* is what shares a list: R queries of a tile (or one query, for private lists) times G heads. The
(unit, block) pairs of a chunk are sorted by block and cut into groups of equal size, so that a group
is a dense product of many rows with one block. Every pair leaves a partial output and its log-sum-exp
in a slot of its own, and slots are merged in a fixed order: no atomics, the same bits every time.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from .shapes import Problem, accumulation_dtype, product

_GROUP_ROWS = 64
"""Rows of a group: enough to fill a matrix unit and to pay for reading the block."""


@dataclass(frozen=True)
class Plan:
    """The pairs of one chunk and one kind of list, grouped by block.

    ``block`` [groups] indexes blocks of all heads, ``pair`` [groups, P] slots of the flattened lists;
    padding points at the slot behind the last. ``diagonal`` pairs are those of a unit's own block,
    which alone need a causal mask.
    """

    block: Tensor
    pair: Tensor
    diagonal: bool


def plans(problem: Problem, lists: Tensor, unit: int, begin: int) -> list[Plan]:
    """Plans of a chunk's lists [N, units, n], of ``unit`` queries each, from position ``begin`` on."""
    heads, units, slots = lists.shape
    start = begin + torch.arange(units, device=lists.device) * unit
    own = (start // problem.config.block_size)[:, None]
    head = torch.arange(heads, device=lists.device)[:, None, None]
    block = (head * problem.blocks + lists).flatten()
    kinds = (((lists >= 0) & (lists != own), False), (lists == own, True))
    size = max(1, _GROUP_ROWS // (unit * problem.group))
    made = (
        _plan(block, chosen.flatten(), size, heads * problem.blocks, diagonal)
        for chosen, diagonal in kinds
    )
    return [plan for plan in made if len(plan.block)]


def _plan(block: Tensor, chosen: Tensor, size: int, blocks: int, diagonal: bool) -> Plan:
    pairs = chosen.nonzero().squeeze(1)
    key, order = block[pairs].sort(stable=True)
    pairs = pairs[order]
    count = torch.bincount(key, minlength=blocks)
    groups = (count + size - 1) // size
    of_group = torch.repeat_interleave(torch.arange(blocks, device=block.device), groups)
    within = (
        torch.arange(len(of_group), device=block.device) - (groups.cumsum(0) - groups)[of_group]
    )
    row = within[:, None] * size + torch.arange(size, device=block.device)
    valid = row < count[of_group, None]
    index = (count.cumsum(0) - count)[of_group, None] + row
    pair = torch.where(valid, pairs[index.clamp(max=max(len(pairs) - 1, 0))], len(block))
    return Plan(of_group, pair, diagonal)


def forward(
    problem: Problem, q: Tensor, k: Tensor, v: Tensor, lists: list[Tensor], begin: int
) -> tuple[Tensor, Tensor]:
    """Output [N, C, G, D] and lse [N, C, G] of a chunk of queries, in the accumulation dtype.

    Args:
        q: [N, C, G, D], the queries [begin, begin + C); k, v: [N, T, D].
        lists: shared [N, C / R, s] and, if not empty, private [N, C, m].
    """
    parts = [_forward(problem, q, k, v, index, begin) for index in lists]
    if len(parts) == 1:
        return parts[0]
    out = torch.stack([o for o, _ in parts])
    lse = torch.stack([x for _, x in parts])
    return _merge(out, lse, 0)


def _forward(
    problem: Problem, q: Tensor, k: Tensor, v: Tensor, lists: Tensor, begin: int
) -> tuple[Tensor, Tensor]:
    heads, units, slots = lists.shape
    unit = q.shape[1] // units
    rows = q.view(heads * units, unit * problem.group, -1)
    wide = accumulation_dtype(q.dtype)
    pairs = lists.numel()
    part = torch.empty(pairs + 1, *rows.shape[1:], dtype=wide, device=q.device)
    part_lse = torch.full((pairs + 1, rows.shape[1]), float("-inf"), dtype=wide, device=q.device)
    part[:-1][lists.flatten() < 0] = 0.0  # slots that no pair fills must not meet a weight as NaN
    for plan in plans(problem, lists, unit, begin):
        for step in _steps(problem, plan, rows.shape[1]):
            pair, queries, keys = _operands(problem, plan, step, rows, k, slots)
            logits = _logits(problem, plan, step, queries, keys, unit, pair, units, slots, begin)
            top = logits.amax(-1)
            p = torch.softmax(logits, -1, out=logits)
            values = v.view(-1, problem.config.block_size, v.shape[-1])[plan.block[step]]
            out = product(p.to(v.dtype), values)
            # The largest probability is exp(0) over the sum, so the sum needs no pass of its own.
            lse = top - p.amax(-1).log()
            part.index_copy_(0, pair, out.view(len(pair), *rows.shape[1:]))
            part_lse.index_copy_(0, pair, lse.view(len(pair), -1))
    out, lse = _merge(
        part[:-1].view(heads * units, slots, *rows.shape[1:]),
        part_lse[:-1].view(heads * units, slots, -1),
        1,
    )
    return out.view(q.shape), lse.view(q.shape[:-1])


def backward(
    problem: Problem,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    grad: Tensor,
    lse: Tensor,
    delta: Tensor,
    gate: Tensor,
    lists: list[Tensor],
    begin: int,
    dk: Tensor,
    dv: Tensor,
) -> Tensor:
    """dq [N, C, G, D] of a chunk; adds to dk, dv [N, T, D] in place.

    Args:
        grad: [N, C, G, D] of the layer's output; gate, lse, delta: [N, C, G] of this branch, where
            delta = grad . o, before the gate.
    """
    # A row without blocks has no pair; +inf makes the padding's recomputed probabilities 0 as well.
    lse = lse.masked_fill(lse == float("-inf"), float("inf"))
    parts = [
        _backward(problem, q, k, v, grad, lse, delta, gate, index, begin, dk, dv) for index in lists
    ]
    return sum(parts[1:], parts[0])


def _backward(
    problem: Problem,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    grad: Tensor,
    lse: Tensor,
    delta: Tensor,
    gate: Tensor,
    lists: Tensor,
    begin: int,
    dk: Tensor,
    dv: Tensor,
) -> Tensor:
    heads, units, slots = lists.shape
    unit = q.shape[1] // units
    shape = (heads * units, unit * problem.group)
    rows, row_grad = q.view(*shape, -1), grad.view(*shape, -1)
    scalars = torch.stack([lse.reshape(shape), delta.reshape(shape), gate.reshape(shape)])
    pairs = lists.numel()
    part = torch.zeros(
        pairs + 1, *rows.shape[1:], dtype=accumulation_dtype(q.dtype), device=q.device
    )
    size = problem.config.block_size
    dk_blocks, dv_blocks = (x.view(-1, size, x.shape[-1]) for x in (dk, dv))
    for plan in plans(problem, lists, unit, begin):
        for step in _steps(problem, plan, rows.shape[1]):
            pair, queries, keys = _operands(problem, plan, step, rows, k, slots)
            logits = _logits(problem, plan, step, queries, keys, unit, pair, units, slots, begin)
            source = (pair // slots).clamp(max=len(rows) - 1)
            grads = row_grad[source].view(queries.shape)
            row_lse, row_delta, row_gate = scalars[:, source].view(3, *queries.shape[:2], 1)
            unused = (pair == pairs).view(len(logits), -1).repeat_interleave(rows.shape[1], 1)
            p = logits.sub_(row_lse.masked_fill(unused[..., None], float("inf"))).exp_()
            values = v.view(-1, size, v.shape[-1])[plan.block[step]]
            dp = product(grads, values.transpose(1, 2))
            gated = p.mul_(row_gate)
            ds = dp.sub_(row_delta).mul_(gated).to(q.dtype)
            part.index_copy_(
                0, pair, product(ds, keys, problem.scale).view(len(pair), *rows.shape[1:])
            )
            dk_part = product(ds.transpose(1, 2), queries, problem.scale)
            dv_part = product(gated.to(q.dtype).transpose(1, 2), grads)
            # index_put_ sorts before it accumulates, so the order of the sum is fixed on a GPU too.
            dk_blocks.index_put_((plan.block[step],), dk_part, accumulate=True)
            dv_blocks.index_put_((plan.block[step],), dv_part, accumulate=True)
    return part[:-1].view(heads * units, slots, *rows.shape[1:]).sum(1).view(q.shape)


def _steps(problem: Problem, plan: Plan, unit_rows: int) -> Iterator[slice]:
    per_group = plan.pair.shape[1] * unit_rows * problem.config.block_size
    length = max(1, problem.step_elements // per_group)
    for first in range(0, len(plan.block), length):
        yield slice(first, first + length)


def _operands(
    problem: Problem, plan: Plan, step: slice, rows: Tensor, k: Tensor, slots: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Slots [groups P], query rows [groups, P unit G, D] and keys [groups, block, D] of a step."""
    pair = plan.pair[step].flatten()
    source = (pair // slots).clamp(max=len(rows) - 1)
    queries = rows.index_select(0, source).view(
        -1, plan.pair.shape[1] * rows.shape[1], rows.shape[-1]
    )
    keys = k.view(-1, problem.config.block_size, k.shape[-1]).index_select(0, plan.block[step])
    return pair, queries, keys


def _logits(
    problem: Problem,
    plan: Plan,
    step: slice,
    queries: Tensor,
    keys: Tensor,
    unit: int,
    pair: Tensor,
    units: int,
    slots: int,
    begin: int,
) -> Tensor:
    """Scaled logits [groups, P unit G, block], the future masked where a pair is diagonal."""
    logits = product(queries, keys.transpose(1, 2), problem.scale)
    if plan.diagonal:
        size = problem.config.block_size
        first = (begin + pair // slots % units * unit) % size
        offset = first[:, None] + torch.arange(unit, device=pair.device)
        offset = offset.repeat_interleave(problem.group, 1).view(len(logits), -1, 1)
        logits.masked_fill_(
            torch.arange(size, device=pair.device) > offset, torch.finfo(logits.dtype).min
        )
    return logits


def _merge(out: Tensor, lse: Tensor, dim: int) -> tuple[Tensor, Tensor]:
    """Merge normalised partial outputs along ``dim`` by their log-sum-exps; empty ones weigh nothing.

    ``out`` has one more dimension than ``lse`` and is overwritten.
    """
    top = lse.amax(dim, keepdim=True)
    weight = (lse - top.masked_fill(top == float("-inf"), 0.0)).exp_()
    total = weight.sum(dim)
    merged = out.mul_(weight[..., None]).sum(dim)
    merged /= total.masked_fill(total == 0, 1.0)[..., None]
    return merged, top.squeeze(dim) + total.log()
