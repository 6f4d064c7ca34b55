"""Packed sequences: cut into single ones, and results joined again."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import overload

import torch
from torch import Tensor

from .config import NSAConfig
from .outputs import BlockIndices, NSAAux
from .summaries import window_count

Part = tuple[list[Tensor], BlockIndices | None, list[Tensor | None]]
"""Operands, lists and summaries of one sequence a batch row."""


def bounds_of(cu_seqlens: Tensor, batch: int, seq_len: int) -> list[int]:
    """``cu_seqlens`` as numbers that rise from 0 to seq_len, or ValueError."""
    if batch != 1:
        raise ValueError(
            f"cu_seqlens: packed sequences need batch 1, got {batch}; reshape to [1, B * T, ...]"
        )
    if cu_seqlens.dim() != 1 or cu_seqlens.is_floating_point():
        raise ValueError(
            f"cu_seqlens: is {cu_seqlens.dtype} {list(cu_seqlens.shape)}; must be int [S + 1]"
        )
    bounds = [int(x) for x in cu_seqlens.tolist()]
    rising = all(begin <= end for begin, end in pairwise(bounds))
    if len(bounds) < 2 or bounds[0] != 0 or bounds[-1] != seq_len or not rising:
        raise ValueError(f"cu_seqlens={bounds}: must rise from 0 to seq_len={seq_len}")
    return bounds


def split(
    bounds: list[int],
    operands: tuple[Tensor, ...],
    config: NSAConfig,
    block_indices: BlockIndices | None,
    summaries: tuple[Tensor | None, Tensor | None],
) -> Iterator[Part]:
    """Operands, lists and summaries of each sequence that has tokens.

    Tiles and summaries lie one sequence after the other, each counted from its own start.
    """
    assert isinstance(config.query_tile, int)
    lengths = [end - begin for begin, end in pairwise(bounds)]
    tiles_of = [-(-length // config.query_tile) for length in lengths]
    windows_of = [window_count(n, config.compress_block, config.compress_stride) for n in lengths]
    # One split an operand, not a slice a sequence: the gradient of a slice is as long as all of it.
    tokens = [x.split(lengths, 1) for x in operands]
    means = [
        _pieces(name, x, windows_of) for name, x in zip(("k_cmp", "v_cmp"), summaries, strict=True)
    ]
    lists: Sequence[BlockIndices | None]
    if isinstance(block_indices, tuple):
        shared = _pieces("block_indices: shared lists", block_indices[0], tiles_of)
        private = _pieces("block_indices: private lists", block_indices[1], lengths)
        lists = list(zip(shared, private, strict=True))
    else:
        lists = _pieces("block_indices", block_indices, lengths)
    for i, length in enumerate(lengths):
        if length:
            yield [x[i] for x in tokens], lists[i], [x[i] for x in means]


@overload
def _pieces(name: str, x: Tensor, lengths: list[int]) -> Sequence[Tensor]: ...


@overload
def _pieces(name: str, x: Tensor | None, lengths: list[int]) -> Sequence[Tensor | None]: ...


def _pieces(name: str, x: Tensor | None, lengths: list[int]) -> Sequence[Tensor | None]:
    """x [1, sum of lengths, ...] cut along dimension 1."""
    if x is None:
        return [None] * len(lengths)
    if x.dim() != 4:
        raise ValueError(
            f"{name}: has shape {list(x.shape)}; must have 4 dimensions, [1, length, heads, n]"
        )
    if x.shape[1] != sum(lengths):
        raise ValueError(
            f"{name}: length {x.shape[1]} in dimension 1; these sequences need {sum(lengths)}, "
            "each counted from its own start"
        )
    return x.split(lengths, 1)


def joined(pieces: list[tuple[Tensor, NSAAux]]) -> tuple[Tensor, NSAAux]:
    """Results of the single sequences, one after the other."""
    auxes = [aux for _, aux in pieces]
    lists = [
        x.block_indices if isinstance(x.block_indices, tuple) else (x.block_indices,) for x in auxes
    ]
    together = [torch.cat(part, 1) for part in zip(*lists, strict=True)]
    indices: BlockIndices = together[0] if len(together) == 1 else (together[0], together[1])
    counts = torch.cat([aux.block_counts for aux in auxes], 1)
    lse = torch.cat([aux.lse for aux in auxes], 1)
    return torch.cat([out for out, _ in pieces], 1), NSAAux(indices, counts, lse, auxes[0].backend)
