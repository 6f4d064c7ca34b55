"""Pairs of queries and blocks, ordered by block, so that a loaded block serves many queries.

A *unit* is what shares a list: one query, or a tile. Sorting is stable, so the order within a block
is that of the units, and every sum over it is reproducible. Blocks that many units chose are split
into *segments* of bounded length; no step needs a number from the device on the host.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from .geometry import VARYING

_BINS_IN_16_BITS = 1 << 16


@dataclass(frozen=True)
class Order:
    """Pairs (unit, slot) of lists [U, K, n], sorted by bin; empty slots last.

    A bin is one block and one head, and the units of one piece, or of a part of it where the piece
    has several: then all blocks of one part come before those of the next one.

    Attributes:
        unit: int32 [pairs], among all U.
        line: int32 [pairs], place of the pair among the [units, heads, n] of its piece.
        first: int32 [bins + 1], where each bin begins among the pairs.
        segment: int32 [bins + 1], where each bin begins among the segments.
        key: int32 [segments], the bin of each segment; the number of bins behind the last one.
        length: pairs in a segment, at most.
        spread: bins of one head.
    """

    unit: Tensor
    line: Tensor
    first: Tensor
    segment: Tensor
    key: Tensor
    length: int
    spread: int


@dataclass(frozen=True)
class Segments:
    """Partial dk and dv float32 [segments, block, D], and where each (head, block)'s begin."""

    dk: Tensor
    dv: Tensor
    bounds: Tensor


def by_block(
    lists: Tensor,
    first_block: Tensor,
    blocks: int,
    length: int,
    piece_heads: int,
    sizes: tuple[int, ...],
    parts: int = 1,
) -> list[Order]:
    """Order the pairs of ``lists`` int32 [U, K, n]: an order a piece, heads outer.

    Args:
        first_block: int32 [U], first block of each unit's sequence among all ``blocks``.
        length: pairs in a segment, at most.
        piece_heads: heads of a piece; the last one may have fewer.
        sizes: units of each piece.
        parts: of each piece; fewer are made where that halves the work of sorting.
    """
    _, heads, slots = lists.shape
    pieces = len(sizes) * triton.cdiv(heads, piece_heads)
    bins = piece_heads * blocks
    if pieces * bins < _BINS_IN_16_BITS:
        parts = min(parts, (_BINS_IN_16_BITS - 1) // (pieces * bins))
    bins *= parts
    device = lists.device
    # A radix sort takes half of the passes over 16 bits.
    narrow = pieces * bins < _BINS_IN_16_BITS
    lowest = -_BINS_IN_16_BITS // 2 if narrow else 0
    dtype = torch.int16 if narrow else torch.int32
    keys = torch.empty(lists.numel(), dtype=dtype, device=device)
    part_of_unit, first_unit = _parts_of_units(sizes, parts, device)
    size = 1024
    grid = (triton.cdiv(lists.numel(), size),)
    pair_keys[grid](
        lists,
        first_block,
        part_of_unit,
        keys,
        lists.numel(),
        lists.stride(0),
        lists.stride(1),
        first_block.stride(0),
        blocks,
        heads,
        slots,
        piece_heads,
        len(sizes),
        parts,
        pieces * bins,
        lowest,
        SIZE=size,
    )
    order = keys.sort(stable=True)
    unit, line = (torch.empty(lists.numel(), dtype=torch.int32, device=device) for _ in range(2))
    pair_places[grid](
        order.indices,
        part_of_unit,
        first_unit,
        unit,
        line,
        lists.numel(),
        heads,
        slots,
        piece_heads,
        parts,
        SIZE=size,
    )
    every = _numbers(pieces * bins + 1, device, lowest, dtype)
    first = torch.searchsorted(order.values, every, out_int32=True)
    count = first.diff().view(pieces, bins)
    ends = torch.cumsum((count + (length - 1)) // length, 1, dtype=torch.int32)
    segment = torch.nn.functional.pad(ends, (1, 0))
    most = bins + piece_heads * slots * max(sizes) // length
    number = _numbers(most, device).repeat(pieces, 1)
    key = torch.searchsorted(ends, number, right=True, out_int32=True)
    bounds = [first[i * bins : (i + 1) * bins + 1] for i in range(pieces)]
    return [
        Order(unit, line, bounds[i], segment[i], key[i], length, parts * blocks)
        for i in range(pieces)
    ]


@functools.lru_cache(maxsize=64)
def _parts_of_units(
    sizes: tuple[int, ...], parts: int, device: torch.device
) -> tuple[Tensor, Tensor]:
    """The part of every unit, counted over all pieces, and the first unit of every piece: int32."""
    count = torch.tensor(sizes)
    part = [i * parts + torch.arange(size) * parts // size for i, size in enumerate(sizes)]
    return torch.cat(part).int().to(device), (count.cumsum(0) - count).int().to(device)


@functools.lru_cache(maxsize=64)
def _numbers(
    count: int, device: torch.device, lowest: int = 0, dtype: torch.dtype = torch.int32
) -> Tensor:
    """``count`` numbers from ``lowest`` on, kept: they depend on sizes alone."""
    return torch.arange(lowest, lowest + count, dtype=dtype, device=device)


@triton.jit(do_not_specialize=VARYING)
def pair_keys(
    lists,
    first_block,
    part_of_unit,
    keys,
    count,
    unit_stride,
    head_stride,
    block_stride,
    blocks,
    heads,
    slots,
    piece_heads,
    unit_pieces,
    parts,
    bins,
    lowest,
    SIZE: tl.constexpr,
):
    """The bin of every pair, counted from ``lowest``; behind all bins where its slot is empty."""
    pair = tl.program_id(0) * SIZE + tl.arange(0, SIZE)
    inside = pair < count
    slot, head, unit = pair % slots, pair // slots % heads, pair // (slots * heads)
    at = unit.to(tl.int64) * unit_stride + head * head_stride + slot
    block = tl.load(lists + at, mask=inside, other=-1)
    offset = tl.load(first_block + unit * block_stride, mask=inside, other=0)
    part = tl.load(part_of_unit + unit, mask=inside, other=0)
    piece = head // piece_heads * unit_pieces + part // parts
    bin_ = (piece * piece_heads + head % piece_heads) * parts + part % parts
    bin_ = bin_ * blocks + offset + block
    key = tl.where(block >= 0, bin_, bins) + lowest
    tl.store(keys + pair, key.to(keys.dtype.element_ty), mask=inside)


@triton.jit(do_not_specialize=VARYING)
def pair_places(
    pair, part_of_unit, first_unit, unit_of_pair, line_of_pair, count, heads, slots, piece_heads,
    parts, SIZE: tl.constexpr,
):  # fmt: skip
    """Unit and line of every pair: once here, so that no kernel behind divides by variables."""
    at = tl.program_id(0) * SIZE + tl.arange(0, SIZE)
    inside = at < count
    number = tl.load(pair + at, mask=inside, other=0).to(tl.int32)
    slot, head, unit = number % slots, number // slots % heads, number // (slots * heads)
    first_head = head // piece_heads * piece_heads
    local = unit - tl.load(first_unit + tl.load(part_of_unit + unit) // parts)
    line = local * tl.minimum(piece_heads, heads - first_head) + head - first_head
    tl.store(unit_of_pair + at, unit, mask=inside)
    tl.store(line_of_pair + at, line * slots + slot, mask=inside)


@triton.jit
def segment_of(key, first, segment, number, length, bins):
    """Bounds of a segment among the pairs, and its (head, block); empty behind the last one."""
    bin_ = tl.load(key + number)
    used = bin_ < bins
    safe = tl.minimum(bin_, bins - 1)
    begin = tl.load(first + safe) + (number - tl.load(segment + safe)) * length
    end = tl.minimum(begin + length, tl.load(first + safe + 1))
    return tl.where(used, begin, 0), tl.where(used, end, 0), safe
