"""Pairs of queries and blocks, ordered by block, so that a loaded block serves many queries.

A *unit* is what shares a list: one query, or a tile. Sorting is stable, so the order within a block
is that of the units, and every sum over it is reproducible. Blocks that many units chose are split
into *segments* of bounded length; no step needs a number from the device on the host.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor


@dataclass(frozen=True)
class Order:
    """Pairs (unit u, slot s) of lists [U, K, n], as numbers (u K + h) n + s, sorted by block.

    Attributes:
        pair: int64 [pairs], sorted by (head, block); empty slots last.
        first: int32 [K blocks + 1], where each (head, block) begins in ``pair``.
        segment: int32 [K blocks + 1], where each (head, block) begins among the segments.
        key: int32 [segments], the (head, block) of each segment; K blocks behind the last one.
        length: pairs in a segment, at most.
    """

    pair: Tensor
    first: Tensor
    segment: Tensor
    key: Tensor
    length: int


@dataclass(frozen=True)
class Segments:
    """Partial dk and dv float32 [segments, block, D], and where each (head, block)'s begin."""

    dk: Tensor
    dv: Tensor
    bounds: Tensor


def by_block(lists: Tensor, first_block: Tensor, blocks: int, length: int) -> Order:
    """Order the pairs of ``lists`` int32 [U, K, n].

    Args:
        first_block: int32 [U], first block of each unit's sequence among all ``blocks``.
        length: pairs in a segment, at most.
    """
    units, heads, slots = lists.shape
    keys = torch.empty(lists.numel(), dtype=torch.int32, device=lists.device)
    size = 1024
    _keys[(triton.cdiv(lists.numel(), size),)](
        lists,
        first_block,
        keys,
        lists.numel(),
        lists.stride(0),
        lists.stride(1),
        first_block.stride(0),
        blocks,
        heads,
        slots,
        SIZE=size,
    )
    order = keys.sort(stable=True)
    number = torch.arange(heads * blocks + 1, dtype=torch.int32, device=lists.device)
    first = torch.searchsorted(order.values, number, out_int32=True)
    count = first.diff()
    segment = torch.zeros_like(first)
    torch.cumsum((count + (length - 1)) // length, 0, dtype=torch.int32, out=segment[1:])
    most = heads * blocks + lists.numel() // length
    number = torch.arange(most, dtype=torch.int32, device=lists.device)
    key = torch.searchsorted(segment[1:], number, right=True, out_int32=True)
    return Order(order.indices, first, segment, key, length)


@triton.jit
def _keys(
    lists,
    first_block,
    keys,
    count,
    unit_stride,
    head_stride,
    block_stride,
    blocks,
    heads,
    slots,
    SIZE: tl.constexpr,
):
    pair = tl.program_id(0) * SIZE + tl.arange(0, SIZE)
    inside = pair < count
    slot, head, unit = pair % slots, pair // slots % heads, pair // (slots * heads)
    at = unit.to(tl.int64) * unit_stride + head * head_stride + slot
    block = tl.load(lists + at, mask=inside, other=-1)
    offset = tl.load(first_block + unit * block_stride, mask=inside, other=0)
    key = tl.where(block >= 0, head * blocks + offset + block, heads * blocks)
    tl.store(keys + pair, key, mask=inside)


@triton.jit
def segment_of(key, first, segment, number, length, bins):
    """Bounds of a segment in ``pair``, and its (head, block); empty behind the last one."""
    bin_ = tl.load(key + number)
    used = bin_ < bins
    safe = tl.minimum(bin_, bins - 1)
    begin = tl.load(first + safe) + (number - tl.load(segment + safe)) * length
    end = tl.minimum(begin + length, tl.load(first + safe + 1))
    return tl.where(used, begin, 0), tl.where(used, end, 0), safe
