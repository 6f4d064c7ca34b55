"""How one provider attends: its settings at every point of the axes asked for. Imports no torch."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from dynbench.harness.case import Value
from dynbench.suites.catalog import ProviderInfo
from dynbench.suites.settings import BLOCK_SIZE, FORCED_BLOCKS, sparse_settings
from dynbench.suites.shapes import Shape
from dynbench.suites.sparsity import solve_top_n

Tile = int | Literal["auto"]


@dataclass(frozen=True)
class Axes:
    """What is asked of sparse providers; each takes of it what it has.

    Attributes:
        query_tiles, private_blocks: of the providers that compute ``dynnsiha``.
        sparsities: each solves top_n; without any, ``top_n`` counts.
        window: keys of the sliding branch.
        branches: None is all that a provider has.
        block_size: tokens in a selection block.
    """

    query_tiles: Sequence[Tile]
    private_blocks: Sequence[int]
    sparsities: Sequence[float]
    top_n: int
    window: int
    branches: Sequence[str] | None
    block_size: int = BLOCK_SIZE

    def settings(
        self, shape: Shape, seq_len: int, info: ProviderInfo
    ) -> Iterator[dict[str, Value]]:
        """Settings of a case: one entry per point."""
        if info.computes == "dense":
            yield {"lists": "dense"}
            return
        listed = info.computes != "sliding"
        branches = self.branches if listed and self.branches else info.branches
        keys = self.window if "sliding" in branches else 0
        tiles = itertools.product(self.query_tiles, self.private_blocks)
        for tile, private in [(1, 0)] if info.exact else tiles:
            for target in (listed and self.sparsities) or (None,):
                top_n = self.top_n
                if target is not None:
                    top_n = solve_top_n(seq_len, keys, target, self.block_size)
                settings = sparse_settings(
                    info.computes,
                    shape.q_heads,
                    shape.kv_heads,
                    top_n=top_n,
                    window=self.window,
                    query_tile=tile,
                    private_blocks=min(private, top_n - FORCED_BLOCKS),
                    branches=branches,
                    block_size=self.block_size,
                )
                yield settings if target is None else settings | {"target_sparsity": target}
