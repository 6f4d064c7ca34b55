"""Which way each block of a list is computed: with the window, query-outer, or key-block-outer.

Neighbours that share a list fill a matrix tile, so shared lists are walked query-outer (``tiles``).
What a query chose alone is ordered by block and computed key-block-outer (``pairs``). The forced
local blocks of chosen lists lie inside of the window, and go with it.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from .problem import Problem

_LEAST_ROWS = 32  # queries times heads that fill enough of a matrix tile


@dataclass(frozen=True)
class Lists:
    """The blocks of a call's selected branch.

    Attributes:
        shared: int32 [units, K, n], walked query-outer without slots init ... init + local - 1.
        tile: queries that share a line of ``shared``; 1: the line of a tile's first query.
        span: queries that a tile may hold.
        private: int32 [tokens, K, m], computed key-block-outer.
        init: forced slots that come first.
        local: newest blocks that the window's kernels compute.
        slots: slots of ``shared`` that are walked.
        alike: all queries of a tile have equally many private blocks, in their first slots.
    """

    shared: Tensor
    tile: int
    span: int
    private: Tensor
    init: int
    local: int
    slots: int
    alike: bool

    @property
    def constants(self) -> dict[str, int]:
        """What the kernels that walk ``shared`` are specialised for."""
        return {
            "R": self.tile,
            "SLOTS": self.slots,
            "INIT": self.init,
            "LOCAL": self.local,
            "PAIRS": self.private.shape[-1],
            "ALIKE": self.alike,
        }

    def units(self, problem: Problem) -> tuple[Tensor, int]:
        """Walked blocks int32 [units, K, n] of units of neighbouring queries, and a unit's queries.

        A unit is one tile, or one block of queries where only forced blocks are walked.
        """
        walked = self.shared[..., : self.slots + self.local]
        if self.tile == 1 and self.span > 1:
            walked = walked.index_select(0, problem.block_table[:, 0])
        if self.local:
            walked = torch.cat(
                [walked[..., : self.init], walked[..., self.init + self.local :]], -1
            )
        return walked, self.span


def plan(problem: Problem, shared: Tensor, private: Tensor) -> Lists:
    """Assign the blocks of shared [tiles, K, s] and private lists [tokens, K, m]."""
    config, tile = problem.config, problem.tile
    branches = config.branches
    init, local = config.init_blocks, config.local_blocks
    if "selected" not in branches:
        init, local = 0, 0
        shared, private = shared[..., :0], private[..., :0]
    elif problem.given or ("sliding" in branches and config.window < local * config.block_size):
        init, local = 0, 0
    if tile * problem.padded_group >= _LEAST_ROWS:
        walked = shared.shape[-1] - local
        return Lists(shared, tile, tile, private, init, local, walked, not problem.given)
    if tile > 1:
        shared = torch.cat([shared[problem.geometry.tile_of_token()], private], -1)
    forced = 0 if problem.given else config.init_blocks + config.local_blocks
    own = shared[..., forced:]
    # Chosen lists of one kind alone, without a cut by importance, have no gaps.
    alike = tile == 1 and not problem.given and config.top_p is None
    return Lists(shared, 1, config.block_size, own, init, local, forced - local, alike)
