"""Where sequences, blocks, windows and tiles lie: tables that the kernels read.

A batch is one row of tokens with a boundary every T tokens, so packed and batched input take the
same path. Each program of a kernel covers ``span`` tokens of one sequence, and reads one line of a
table: where its tokens begin, and the bounds and first block, window and tile of its sequence.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from functools import cached_property

import torch
import triton
import triton.language as tl
from torch import Tensor

COLUMNS = 7  # row, start, end (tokens), first block, window, tile of the sequence, its number

_HOST = torch.device("cpu")  # tables are made there, whatever torch's default device is

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
        lengths: list[int] = self._lengths.tolist()
        return lengths

    @cached_property
    def uniform(self) -> bool:
        """Whether all sequences are equally long."""
        return len(set(self.lengths)) == 1

    @cached_property
    def blocks(self) -> int:
        """Selection blocks of all sequences."""
        return int(self._counts[0].sum())

    @cached_property
    def windows(self) -> int:
        """Complete summary windows of all sequences."""
        return int(self._counts[1].sum())

    @cached_property
    def tiles(self) -> int:
        """Query tiles of all sequences."""
        return int(self._counts[2].sum())

    @cached_property
    def first_rows(self) -> list[int]:
        """First token of every block, and the number of tokens."""
        size = self.block_size
        rows = _every(size, self._starts, self._starts + self._lengths)
        return [*rows.tolist(), self.tokens]

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

    @cached_property
    def _starts(self) -> Tensor:
        """First token of each sequence."""
        return torch.tensor(self.bounds[:-1], device=_HOST)

    @cached_property
    def _lengths(self) -> Tensor:
        return torch.tensor(self.bounds, device=_HOST).diff()

    @cached_property
    def _counts(self) -> Tensor:
        """Blocks, windows and tiles of each sequence: [3, sequences]."""
        n = self._lengths
        windows = (n - self.compress_block).div(self.compress_stride, rounding_mode="floor") + 1
        tiles = _ceil(n, self.query_tile)
        return torch.stack([_ceil(n, self.block_size), windows.clamp(min=0), tiles])

    @cached_property
    def _sequences(self) -> Tensor:
        """Start, end, first block, first window, first tile and number: [sequences, 6]."""
        n = self._lengths
        first = self._counts.cumsum(1) - self._counts
        number = torch.arange(len(n), device=_HOST)
        return torch.stack([self._starts, self._starts + n, *first, number], 1)

    def _lines(self, span: int, begin: Tensor, end: Tensor) -> Tensor:
        """A line for every ``span`` from ``begin`` to ``end`` of each sequence."""
        sequences = self._sequences.repeat_interleave(_ceil(end - begin, span), 0)
        lines = torch.cat([_every(span, begin, end)[:, None], sequences], 1)
        return lines.int().to(self.device)


def _ceil(x: Tensor, by: int) -> Tensor:
    return (x + by - 1) // by


def _every(span: int, begin: Tensor, end: Tensor) -> Tensor:
    """All of range(begin, end, span) of each sequence, one after the other."""
    counts = _ceil(end - begin, span)
    before = counts.cumsum(0) - counts
    return torch.repeat_interleave(begin - span * before, counts).add_(
        span * torch.arange(int(counts.sum()), device=_HOST)
    )


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
    lengths = geometry._lengths if most is None else geometry._lengths.clamp(max=most)
    return geometry._lines(span, geometry._starts, geometry._starts + lengths)


@functools.lru_cache(maxsize=256)
def _tile_of_token(geometry: Geometry) -> Tensor:
    # Counted in tokens from where the sequence's tiles would begin if all tiles were full.
    shift = geometry._sequences[:, 4] * geometry.query_tile - geometry._starts
    token = torch.arange(geometry.tokens, device=_HOST) + shift.repeat_interleave(geometry._lengths)
    return (token // geometry.query_tile).to(geometry.device)


@functools.lru_cache(maxsize=256)
def _window_rows(geometry: Geometry) -> Tensor:
    stride = geometry.compress_stride
    end = geometry._starts + stride * geometry._counts[1]
    return _every(stride, geometry._starts, end).int().to(geometry.device)


@functools.lru_cache(maxsize=256)
def _window_programs(geometry: Geometry, span: int) -> Tensor:
    windows = geometry._counts[1]
    return geometry._lines(span, torch.zeros_like(windows), windows)


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
