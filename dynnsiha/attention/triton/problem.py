"""What a call is made of: its sizes, its operands, its lists, and the pieces it is done in."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise

import triton
from torch import Tensor

from ..architecture import family_of
from ..config import NSAConfig
from .geometry import Geometry
from .sources import Source, key_source, row_source
from .tuning import Tuned, tuned

_ROW_BYTES = 1 << 30  # for partial results of queries
_KEY_BYTES = 1 << 30  # for partial dk and dv
_PARTIAL_SETS = 3  # of dk and dv: pairs, shared lists, window
_WHOLE_WINDOW = 1 << 30  # keys: more than any sequence has, and added to a token still 32 bits


@dataclass(frozen=True)
class Problem:
    """Sizes and settings of one call.

    Attributes:
        given: the lists were not chosen here, so nothing is known of them.
        differentiate: a backward pass may follow.
        bulk: kernels read through tensor descriptors (``sources``).
    """

    geometry: Geometry
    config: NSAConfig
    kv_heads: int
    group: int
    head_dim: int
    scale: float
    given: bool
    differentiate: bool
    bulk: bool

    @property
    def tile(self) -> int:
        """R, neighbouring queries that share a list."""
        assert isinstance(self.config.query_tile, int)
        return self.config.query_tile

    @property
    def scale2(self) -> float:
        """The scale of logits in base 2."""
        return self.scale * math.log2(math.e)

    @property
    def window(self) -> int:
        """Keys of the sliding branch; more than there are where it is off, so that none is cut.

        Not the length of a sequence: kernels would be compiled anew for some lengths.
        """
        if "sliding" not in self.config.branches:
            return _WHOLE_WINDOW
        return min(self.config.window, _WHOLE_WINDOW)

    @cached_property
    def padded_group(self) -> int:
        """G as a power of two."""
        return triton.next_power_of_2(self.group)

    @cached_property
    def shape(self) -> dict[str, int]:
        """Constants that all kernels take."""
        return {"G": self.group, "GP": self.padded_group, "D": self.head_dim, "TMA": self.bulk}

    @cached_property
    def sequences(self) -> int:
        """Number of sequences."""
        return len(self.geometry.bounds) - 1

    def keys(self, x: Tensor, keys: int, every: int = 1) -> Source:
        """What kernels read blocks of ``keys`` from, of [tokens or windows, K, D].

        A block may have every so many-th one.
        """
        if not self.bulk:
            return x
        some = (
            x
            if len(x) >= every * self.sequences
            else x.new_zeros(every * self.sequences, *x.shape[1:])
        )
        return key_source(some, self.sequences, keys, every)

    def rows(self, x: Tensor, queries: int) -> Source:
        """What kernels read tiles of ``queries`` from, of [tokens, H, D]."""
        return row_source(x, self.sequences, queries, self.padded_group) if self.bulk else x

    @cached_property
    def family(self) -> int:
        """The GPU's family (``architecture``)."""
        return family_of(self.geometry.device)

    @cached_property
    def block_table(self) -> Tensor:
        """A line of the geometry for every block."""
        return self.geometry.programs(self.config.block_size)

    def tuned(self, kernel: str, most_queries: int | None = None) -> Tuned:
        """Sizes and launch options of a kernel whose tiles hold ``most_queries`` or fewer."""
        sizes = (self.padded_group, self.head_dim, most_queries)
        return tuned(self.family, kernel, self.config, *sizes, self.bulk)

    def pieces(self, slots: int, backward: bool = False) -> list[list[Piece]]:
        """Heads and blocks whose intermediate results fit the budgets; heads outer.

        ``slots`` partial results a query are kept for a piece, and in the backward pass partial dk
        and dv for all pieces of the same heads.
        """
        geometry, size = self.geometry, self.config.block_size
        heads = self.kv_heads
        if backward:
            head_bytes = _PARTIAL_SETS * 2 * 4 * geometry.tokens * self.head_dim
            heads = max(1, min(heads, _KEY_BYTES // head_bytes))
        row_bytes = 2 * slots * self.group * self.head_dim
        if slots:
            heads = max(1, min(heads, _ROW_BYTES // (geometry.tokens * row_bytes)))
        heads = triton.cdiv(self.kv_heads, triton.cdiv(self.kv_heads, heads))
        most = max(1, _ROW_BYTES // (heads * row_bytes * size)) if slots else geometry.blocks
        blocks = triton.cdiv(geometry.blocks, triton.cdiv(geometry.blocks, most))
        rows = self.geometry.first_rows
        cuts = [*range(0, geometry.blocks, blocks), geometry.blocks]
        return [
            [
                Piece(
                    head,
                    min(heads, self.kv_heads - head),
                    begin,
                    end - begin,
                    rows[begin],
                    rows[end] - rows[begin],
                )
                for begin, end in pairwise(cuts)
            ]
            for head in range(0, self.kv_heads, heads)
        ]

    def first_blocks(self) -> Tensor:
        """First block of the sequence of each token: int32 [tokens]."""
        if self.sequences == 1:
            return self.block_table[:1, 3].expand(self.geometry.tokens)
        return self.geometry.programs(1)[:, 3]


@dataclass(frozen=True)
class Piece:
    """Some key/value heads and some blocks of queries."""

    first_head: int
    heads: int
    first_block: int
    blocks: int
    first_row: int
    rows: int


@dataclass(frozen=True)
class Operands:
    """q [tokens, H, D], k and v [tokens, K, D], summaries [windows, K, D], gates [tokens, H, 3]."""

    q: Tensor
    k: Tensor
    v: Tensor
    k_cmp: Tensor
    v_cmp: Tensor
    gates: Tensor


@dataclass(frozen=True)
class Outputs:
    """What the forward pass writes: o and outputs of branches [tokens, H, D], lse [tokens, H].

    Without a backward pass to come, the outputs of the selected and the sliding branch are None.
    """

    out: Tensor
    compressed: Tensor | None
    selected: Tensor | None
    sliding: Tensor | None
    lse_compressed: Tensor | None
    lse_selected: Tensor
    lse_sliding: Tensor | None


@dataclass(frozen=True)
class Gradients:
    """The gradient of o [tokens, H, D], and per branch what probabilities are recomputed from.

    Attributes:
        logs: float32 [4, tokens, H], lse - log2(gate): exp2(s - logs) is the gated probability.
        delta: float32 [4, tokens, H], inner product of the gradient and the branch's output.

    The fourth line stands for the selected and the sliding branch together.
    """

    out: Tensor
    logs: Tensor
    delta: Tensor
