"""Selected branch, key-block outer: each block is read once for many queries that chose it.

A *unit* is what shares a list: R queries of a tile (or one query, for private lists) times G heads.
The (unit, block) pairs of a chunk are sorted by block and cut into groups of equal size, so that a
group is a dense product of many rows with one block. Every pair leaves a partial output and its
log-sum-exp in a slot of its own, and slots are merged in a fixed order: no atomics, the same bits
every time.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from ..stages import stage
from .operands import Gradients, Operands, Problem, Scratch, product

_GROUP_ROWS = 64
"""Rows of a group: enough to fill a matrix unit and to pay for reading the block."""


@dataclass(frozen=True)
class _Units:
    """The queries of a chunk, cut into units by lists [N, units, slots]."""

    x: Operands
    lists: Tensor
    begin: int  # the first query
    queries: int  # in a unit

    @property
    def position(self) -> int:
        """Position of the first query among the keys."""
        return self.begin + self.x.problem.first

    @classmethod
    def of(cls, x: Operands, lists: Tensor, begin: int, end: int) -> _Units:
        return cls(x, lists, begin, (end - begin) // lists.shape[1])

    @property
    def shape(self) -> tuple[int, int]:
        """Number of units, and rows in each: (N units, unit G)."""
        return self.lists.shape[0] * self.lists.shape[1], self.queries * self.x.problem.group

    def rows(self, tensor: Tensor) -> Tensor:
        """[N, T, G, ...] as the units' rows, [N units, unit G, ...]."""
        end = self.begin + self.lists.shape[1] * self.queries
        return tensor[:, self.begin : end].reshape(*self.shape, *tensor.shape[3:])

    def slots(self, scratch: Scratch) -> Tensor:
        """Room for every slot's partial result, and one more for padding: [slots + 1, unit G, D].

        Slots that no pair fills are 0, since they must not meet a weight of 0 as NaN.
        """
        x, pairs = self.x, self.lists.numel()
        part = scratch.empty(pairs + 1, self.shape[1], x.q.shape[-1], like=x.q, dtype=x.dtype)
        part[:-1][self.lists.flatten() < 0] = 0.0
        return part

    def by_unit(self, part: Tensor) -> Tensor:
        """[slots + 1, unit G, ...] without the padding: [N units, slots, unit G, ...]."""
        return part[:-1].view(self.shape[0], self.lists.shape[2], *part.shape[1:])


@dataclass(frozen=True)
class _Step:
    """Some groups of P pairs with one block each, and all that their products need."""

    units: _Units
    block: Tensor  # [groups], among the blocks of all heads
    pair: Tensor  # [groups P], slots; padding points at the slot behind the last
    diagonal: bool  # pairs of a unit with its own block, which alone need a causal mask

    @property
    def unit(self) -> Tensor:
        """Unit of each pair, any unit for padding: [groups P]."""
        slots, units = self.units.lists.shape[2], self.units.shape[0]
        return (self.pair // slots).clamp(max=units - 1)

    @property
    def padding(self) -> Tensor:
        """Rows that belong to no pair: [groups, P unit G, 1]."""
        unused = (self.pair == self.units.lists.numel()).repeat_interleave(self.units.shape[1])
        return unused.view(len(self.block), -1, 1)

    def gather(self, rows: Tensor) -> Tensor:
        """[N units, unit G, ...] as the rows of each group, [groups, P unit G, ...]."""
        return rows.index_select(0, self.unit).view(len(self.block), -1, *rows.shape[2:])

    def blocks(self, keys: Tensor) -> Tensor:
        """The block of each group, of keys [N, T, D]: [groups, block, D]."""
        return _blocks(self.units.x.problem, keys).index_select(0, self.block)

    def logits(self, queries: Tensor, keys: Tensor) -> Tensor:
        """Scaled logits [groups, P unit G, block], the future masked."""
        problem, units = self.units.x.problem, self.units
        logits = product(queries, keys.transpose(1, 2), problem.scale)
        if self.diagonal:
            size = problem.config.block_size
            first = (units.position + self.unit % units.lists.shape[1] * units.queries) % size
            offset = first[:, None] + torch.arange(units.queries, device=first.device)
            offset = offset.repeat_interleave(problem.group, 1).view(len(logits), -1, 1)
            future = torch.arange(size, device=first.device) > offset
            logits.masked_fill_(future, torch.finfo(logits.dtype).min)
        return logits


def forward(
    x: Operands, lists: list[Tensor], begin: int, end: int, scratch: Scratch
) -> tuple[Tensor, Tensor]:
    """Output [N, C, G, D] and lse [N, C, G] of the queries [begin, end).

    ``lists`` are the shared ones [N, C / R, s] and, if there are any, the private ones [N, C, m].
    """
    parts = [_forward(_Units.of(x, index, begin, end), scratch) for index in lists]
    with stage("merge"):
        out, lse = parts[0] if len(parts) == 1 else _joined(*parts)
    shape = x.q[:, begin:end].shape
    return out.view(shape), lse.view(shape[:-1])


def _forward(units: _Units, scratch: Scratch) -> tuple[Tensor, Tensor]:
    """Output [rows, D] and lse [rows] of one kind of list."""
    x = units.x
    rows = units.rows(x.q)
    part = units.slots(scratch)
    part_lse = torch.full(part.shape[:-1], float("-inf"), dtype=part.dtype, device=part.device)
    for step in _steps(units):
        logits = step.logits(step.gather(rows), step.blocks(x.k))
        top = logits.amax(-1)
        p = torch.softmax(logits, -1, out=logits)
        # The largest probability is exp(0) over the sum, so the sum needs no pass of its own.
        lse = top - p.amax(-1).log()
        out = product(p.to(x.v.dtype), step.blocks(x.v))
        part.index_copy_(0, step.pair, out.view(-1, *part.shape[1:]))
        part_lse.index_copy_(0, step.pair, lse.view(-1, part_lse.shape[1]))
    with stage("merge"):
        out, lse = _merge(units.by_unit(part), units.by_unit(part_lse))
    return out.view(-1, out.shape[-1]), lse.view(-1)


def backward(
    x: Operands,
    grads: Gradients,
    out: Tensor,
    lse: Tensor,
    lists: list[Tensor],
    begin: int,
    end: int,
    scratch: Scratch,
) -> list[Tensor]:
    """Add the branch's gradients with respect to the queries [begin, end), in a fixed order.

    ``out`` [N, T, G, D] and ``lse`` [N, T, G] are what the forward pass returned.

    Returns:
        For each of ``lists``, the gradient of a weight on every slot's tokens, in its shape
        (``differentiable_topk``; else empty).
    """
    chunk = slice(begin, end)
    delta = torch.zeros_like(lse)
    delta[:, chunk] = (grads.out[:, chunk].to(x.dtype) * out[:, chunk]).sum(-1)
    grads.gates[:, chunk, :, 1] += delta[:, chunk]
    scalars = torch.stack([lse, delta, x.gates[..., 1]], -1)
    weights = []
    for index in lists:
        weight = None
        if x.problem.config.differentiable_topk:
            weight = x.gates.new_zeros(index.numel() + 1)
            weights.append(weight[:-1].view(index.shape))
        dq = _backward(_Units.of(x, index, begin, end), grads, scalars, weight, scratch)
        grads.q[:, chunk] += dq.view(grads.q[:, chunk].shape)
    return weights


def _backward(
    units: _Units, grads: Gradients, scalars: Tensor, weight: Tensor | None, scratch: Scratch
) -> Tensor:
    """dq [N units, unit G, D] of one kind of list; adds to dk, dv and ``weight`` [slots + 1]."""
    x, scale = units.x, units.x.problem.scale
    rows, row_grads, row_scalars = (units.rows(y) for y in (x.q, grads.out, scalars))
    part = units.slots(scratch)
    dk, dv = (_blocks(x.problem, y) for y in (grads.k, grads.v))
    for step in _steps(units):
        queries, keys, out_grads = step.gather(rows), step.blocks(x.k), step.gather(row_grads)
        lse, delta, gate = step.gather(row_scalars).unsqueeze(-2).unbind(-1)
        p = step.logits(queries, keys).sub_(lse.masked_fill(step.padding, float("inf"))).exp_()
        dp = product(out_grads, step.blocks(x.v).transpose(1, 2))
        gated = p.mul_(gate)
        ds = dp.sub_(delta).mul_(gated)
        if weight is not None:
            weight.index_copy_(0, step.pair, ds.view(len(step.pair), -1).sum(-1))
        ds = ds.to(x.q.dtype)
        part.index_copy_(0, step.pair, product(ds, keys, scale).view(-1, *part.shape[1:]))
        # index_put_ sorts before it accumulates, so the order of the sum is fixed on a GPU too.
        dk_part = product(ds.transpose(1, 2), queries, scale)
        dk.index_put_((step.block,), dk_part, accumulate=True)
        dv_part = product(gated.to(x.q.dtype).transpose(1, 2), out_grads)
        dv.index_put_((step.block,), dv_part, accumulate=True)
    return units.by_unit(part).sum(1)


def _steps(units: _Units) -> Iterator[_Step]:
    """All pairs of the lists, grouped by block, in steps within the element budget."""
    problem, lists = units.x.problem, units.lists
    start = units.position + torch.arange(lists.shape[1], device=lists.device) * units.queries
    own = (start // problem.config.block_size)[:, None]
    keys = len(units.x.k)  # rows of heads; several rows of lists may share one
    head = torch.arange(len(lists), device=lists.device)[:, None, None] // (len(lists) // keys)
    block = (head * problem.blocks + lists).flatten()
    size = max(1, _GROUP_ROWS // units.shape[1])
    per_group = size * units.shape[1] * problem.config.block_size
    length = max(1, problem.step_elements // per_group)
    for diagonal in (False, True):
        chosen = (lists == own) if diagonal else (lists >= 0) & (lists != own)
        with stage("lists"):
            groups, pair = _grouped(block, chosen.flatten(), size, keys * problem.blocks)
        for first in range(0, len(groups), length):
            at = slice(first, first + length)
            yield _Step(units, groups[at], pair[at].flatten(), diagonal)


def _grouped(block: Tensor, chosen: Tensor, size: int, blocks: int) -> tuple[Tensor, Tensor]:
    """Chosen pairs by block, [groups] and [groups, size], padded with a slot behind the last."""
    pairs = chosen.nonzero().squeeze(1)
    key, order = block[pairs].sort(stable=True)
    pairs = torch.cat([pairs[order], pairs.new_full((1,), len(block))])
    count = torch.bincount(key, minlength=blocks)
    groups = (count + size - 1) // size
    of_group = torch.repeat_interleave(torch.arange(blocks, device=block.device), groups)
    group = torch.arange(len(of_group), device=block.device) - (groups.cumsum(0) - groups)[of_group]
    within = group[:, None] * size + torch.arange(size, device=block.device)
    first = (count.cumsum(0) - count)[of_group, None]
    index = torch.where(within < count[of_group, None], first + within, len(pairs) - 1)
    return of_group, pairs[index]


def _blocks(problem: Problem, keys: Tensor) -> Tensor:
    """[N, T, D] as the blocks of all heads, [N blocks, block, D]."""
    return keys.view(-1, problem.config.block_size, keys.shape[-1])


def _merge(out: Tensor, lse: Tensor) -> tuple[Tensor, Tensor]:
    """Slots [units, slots, rows, D] of normalised outputs, joined by lse [units, slots, rows].

    A unit without filled slots gets 0 and -inf.
    """
    top = lse.amax(1, keepdim=True)
    weight = (lse - top.masked_fill(top == float("-inf"), 0.0)).exp_()
    total = weight.sum(1)
    weight /= total.masked_fill(total == 0, 1.0)[:, None]
    merged = out[:, 0] * weight[:, 0, :, None]
    for slot in range(1, out.shape[1]):
        merged.addcmul_(out[:, slot], weight[:, slot, :, None])
    return merged, top.squeeze(1) + total.log()


def _joined(a: tuple[Tensor, Tensor], b: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    """Outputs [rows, D] of two kinds of list, joined by their lse [rows]."""
    share = torch.sigmoid(b[1] - a[1]).nan_to_num_(0.0)  # NaN where both are empty, and both 0
    return torch.lerp(a[0], b[0], share[:, None]), torch.logaddexp(a[1], b[1])
