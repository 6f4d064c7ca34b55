"""Where sequences, blocks, windows and tiles lie: tables that the kernels read.

A batch is one row of tokens with a boundary every T tokens, so packed and batched input take the
same path. Each program of a kernel covers ``span`` tokens of one sequence, and reads one line of a
table: where its tokens begin, and the bounds and first block, window and tile of its sequence.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..summaries import window_count

COLUMNS = 7  # row, start, end (tokens), first block, window, tile of the sequence, its number

VARYING = [
    *("tokens", "blocks", "windows", "count", "bins", "spread", "length", "index_mask"),
    *("unit_pieces", "parts", "first_block", "piece_heads", "first_head", "first_row"),
]
"""Arguments that follow from the length, or differ from piece to piece: no kernel is compiled anew
for their values, for instance because they happen to be multiples of 16."""


@dataclass(frozen=True)
class Geometry:
    """Sequences at ``bounds``; blocks, windows and tiles count from each one's own start.

    Equal geometries are made only once (``geometry_of``), and so is what follows from them.
    """

    bounds: tuple[int, ...]
    block_size: int
    compress_block: int
    compress_stride: int
    query_tile: int
    device: torch.device

    @property
    def tokens(self) -> int:
        """Tokens of all sequences."""
        return self.bounds[-1]

    @cached_property
    def lengths(self) -> list[int]:
        """Tokens of each sequence."""
        return [end - begin for begin, end in pairwise(self.bounds)]

    @cached_property
    def uniform(self) -> bool:
        """Whether all sequences are equally long."""
        return len(set(self.lengths)) == 1

    @cached_property
    def blocks(self) -> int:
        """Selection blocks of all sequences."""
        return sum(triton.cdiv(n, self.block_size) for n in self.lengths)

    @cached_property
    def tiles(self) -> int:
        """Query tiles of all sequences."""
        return sum(triton.cdiv(n, self.query_tile) for n in self.lengths)

    @cached_property
    def windows(self) -> int:
        """Complete summary windows of all sequences."""
        return sum(self._windows_of(n) for n in self.lengths)

    @cached_property
    def first_rows(self) -> list[int]:
        """First token of every block, and the number of tokens."""
        size = self.block_size
        rows = [row for a, b in pairwise(self.bounds) for row in range(a, b, size)]
        return [*rows, self.tokens]

    def programs(self, span: int, most: int | None = None) -> Tensor:
        """A line for every ``span`` tokens of each sequence: int32 [programs, COLUMNS].

        ``most`` cuts sequences to so many tokens.
        """
        return _programs(self, span, most)

    def tile_of_token(self) -> Tensor:
        """The tile of every token: int64 [tokens]."""
        return _tile_of_token(self)

    def window_rows(self) -> Tensor:
        """First token of every window: int32 [windows]."""
        return _window_rows(self)

    def window_programs(self, span: int) -> Tensor:
        """A line for every ``span`` windows: int32 [programs, COLUMNS], windows in place of tokens.

        The first column is the first window of the program, counted in its sequence.
        """
        return _window_programs(self, span)

    def _windows_of(self, length: int) -> int:
        return window_count(length, self.compress_block, self.compress_stride)

    def _sequences(self) -> list[tuple[int, ...]]:
        """Start, end, first block, first window, first tile and number of each sequence."""
        lines: list[tuple[int, ...]] = []
        block = window = tile = 0
        for number, (begin, end) in enumerate(pairwise(self.bounds)):
            lines.append((begin, end, block, window, tile, number))
            block += triton.cdiv(end - begin, self.block_size)
            window += self._windows_of(end - begin)
            tile += triton.cdiv(end - begin, self.query_tile)
        return lines


@functools.lru_cache(maxsize=256)
def geometry_of(
    bounds: tuple[int, ...],
    block_size: int,
    compress_block: int,
    compress_stride: int,
    query_tile: int,
    device: torch.device,
) -> Geometry:
    """The geometry of these sequences."""
    return Geometry(bounds, block_size, compress_block, compress_stride, query_tile, device)


@functools.lru_cache(maxsize=256)
def _programs(geometry: Geometry, span: int, most: int | None) -> Tensor:
    parts = []
    for line in geometry._sequences():
        stop = line[1] if most is None else min(line[1], line[0] + most)
        rows = torch.arange(line[0], stop, span)
        parts.append(torch.cat([rows[:, None], torch.tensor(line).expand(len(rows), -1)], 1))
    return torch.cat(parts).int().to(geometry.device)


@functools.lru_cache(maxsize=256)
def _tile_of_token(geometry: Geometry) -> Tensor:
    parts = [
        tile + torch.arange(end - begin) // geometry.query_tile
        for begin, end, _, _, tile, _ in geometry._sequences()
    ]
    return torch.cat(parts).to(geometry.device)


@functools.lru_cache(maxsize=256)
def _window_rows(geometry: Geometry) -> Tensor:
    stride = geometry.compress_stride
    parts = [
        begin + stride * torch.arange(geometry._windows_of(end - begin))
        for begin, end in pairwise(geometry.bounds)
    ]
    return torch.cat(parts).int().to(geometry.device)


@functools.lru_cache(maxsize=256)
def _window_programs(geometry: Geometry, span: int) -> Tensor:
    parts = []
    for line in geometry._sequences():
        first = torch.arange(0, geometry._windows_of(line[1] - line[0]), span)
        parts.append(torch.cat([first[:, None], torch.tensor(line).expand(len(first), -1)], 1))
    return torch.cat(parts).int().to(geometry.device)


@triton.jit
def line_of(table, index):
    """One line of a table: as many numbers as ``COLUMNS``."""
    at = table + index * 7
    row, start, end, block = tl.load(at), tl.load(at + 1), tl.load(at + 2), tl.load(at + 3)
    return row, start, end, block, tl.load(at + 4), tl.load(at + 5), tl.load(at + 6)


@triton.jit
def windows_seen(position, CB: tl.constexpr, ST: tl.constexpr):
    """Windows that have ended at a position of the sequence."""
    return tl.where(position >= CB - 1, (position - CB + 1) // ST + 1, 0)
