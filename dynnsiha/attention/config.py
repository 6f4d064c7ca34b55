"""Configuration of the native-sparse-attention core."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Literal

BRANCHES = ("compressed", "selected", "sliding")

_WHOLE_NUMBERS = (
    "block_size",
    "compress_block",
    "compress_stride",
    "top_n",
    "init_blocks",
    "local_blocks",
    "window",
    "private_blocks",
    "min_blocks",
)

_TRIED_TILE = 16  # most queries of a list with which recall was measured (docs/findings.md)


@dataclass(frozen=True)
class NSAConfig:
    """What a query attends to (NSA, arXiv 2502.11089, section 3; docs/architecture.md).

    Attributes:
        block_size: tokens in a selection block.
        compress_block, compress_stride: tokens in a summary window and between windows' starts. The
            stride divides both compress_block and block_size; compress_block <= block_size.
        top_n: selection blocks per query, forced and private ones included.
        init_blocks, local_blocks: forced blocks: the first ones, and the newest ones including the
            query's own.
        window: keys of the sliding branch, the query's own included.
        query_tile: R, neighbouring queries that share their list; divides block_size. 1 is exact
            NSA; "auto" is the largest divisor of block_size up to max(1, 64 // G).
        private_blocks: m, blocks that each query adds to the shared list by its own importance.
        tile_scoring: who scores the shared list: the tile's first query ("leader"), or the
            query_tile queries that end at it ("aggregate"). Both are causal.
        top_p: share of importance that is enough (DynNSA); None keeps all top_n blocks.
        min_blocks: fewest blocks per query under top_p.
        per_head_lists: every query head has a list of its own, by its own importance, instead of
            one list per K/V head; lists are then [B, T, H, n]. Costs NSA its speed on a GPU.
        differentiable_topk: in the backward pass, the score by which a block was chosen weighs the
            block's tokens (straight-through: the weight is 1 in the forward pass). Training then
            moves the importance too. Forced and given blocks have no weight.
        branches: which of compressed, selected and sliding contribute.

    Raises:
        ValueError: a field is out of range; the message names it, its value and the fix.
    """

    block_size: int = 64
    compress_block: int = 64
    compress_stride: int = 64
    top_n: int = 16
    init_blocks: int = 1
    local_blocks: int = 2
    window: int = 512
    query_tile: int | Literal["auto"] = 1
    private_blocks: int = 0
    tile_scoring: Literal["leader", "aggregate"] = "leader"
    top_p: float | None = None
    min_blocks: int = 1
    per_head_lists: bool = False
    differentiable_topk: bool = False
    branches: tuple[str, ...] = BRANCHES

    def __post_init__(self) -> None:
        for name in _WHOLE_NUMBERS:
            self._require(isinstance(getattr(self, name), int), name, "a whole number")
        for name in (
            "block_size",
            "compress_block",
            "compress_stride",
            "local_blocks",
            "window",
            "min_blocks",
        ):
            self._require(getattr(self, name) >= 1, name, "at least 1")
        for name in ("init_blocks", "private_blocks"):
            self._require(getattr(self, name) >= 0, name, "at least 0")
        stride = self.compress_stride
        self._require(
            self.compress_block % stride == 0,
            "compress_stride",
            f"a divisor of compress_block={self.compress_block}",
        )
        self._require(
            self.block_size % stride == 0,
            "compress_stride",
            f"a divisor of block_size={self.block_size}",
        )
        self._require(
            self.compress_block <= self.block_size,
            "compress_block",
            f"at most block_size={self.block_size}",
        )
        tile = self.query_tile
        self._require(
            tile == "auto" or (isinstance(tile, int) and tile >= 1 and self.block_size % tile == 0),
            "query_tile",
            f"'auto' or a divisor of block_size={self.block_size}",
        )
        least = self.init_blocks + self.local_blocks + self.private_blocks
        self._require(
            self.top_n >= least,
            "top_n",
            f"at least init_blocks + local_blocks + private_blocks = {least}",
        )
        self._require(
            self.tile_scoring in ("leader", "aggregate"), "tile_scoring", "'leader' or 'aggregate'"
        )
        self._require(self.top_p is None or 0 < self.top_p <= 1, "top_p", "None or in (0, 1]")
        for name in ("per_head_lists", "differentiable_topk"):
            self._require(isinstance(getattr(self, name), bool), name, "True or False")
        known = bool(self.branches) and set(self.branches) <= set(BRANCHES)
        self._require(known, "branches", f"a non-empty subset of {BRANCHES}")

    def _require(self, ok: bool, name: str, rule: str) -> None:
        if not ok:
            raise ValueError(f"{name}={getattr(self, name)!r}: must be {rule}")

    @classmethod
    def paper(cls, **overrides: Any) -> NSAConfig:
        """The NSA paper's windows: 32 tokens every 16, blocks of 64, exact lists."""
        fields: dict[str, Any] = {"compress_block": 32, "compress_stride": 16} | overrides
        return cls(**fields)

    @classmethod
    def word_guided(cls, q_heads: int, kv_heads: int, **overrides: Any) -> NSAConfig:
        """DynNSIHA's default: 64/64 windows, R = 16 (less where G > 4) and one private block.

        ``query_tile="auto"`` shares lists among more queries where G < 4, which is faster.

        Source: docs/findings.md, where such lists have the loss and the recall of exact NSA.
        """
        fields: dict[str, Any] = {"query_tile": "auto", "private_blocks": 1} | overrides
        config = cls(**fields)
        most = config.block_size if "query_tile" in overrides else _TRIED_TILE
        return config._resolved(q_heads, kv_heads, most)

    def resolved(self, q_heads: int, kv_heads: int) -> NSAConfig:
        """This configuration with ``query_tile="auto"`` replaced by its number for these heads."""
        return self._resolved(q_heads, kv_heads, self.block_size)

    def _resolved(self, q_heads: int, kv_heads: int, most: int) -> NSAConfig:
        """The same with an automatic tile of ``most`` queries at most."""
        if min(q_heads, kv_heads) < 1 or q_heads % kv_heads:
            raise ValueError(f"kv_heads={kv_heads}: must be a divisor of q_heads={q_heads}")
        if self.query_tile != "auto":
            return self
        most = min(most, max(1, 64 // (q_heads // self.list_heads(q_heads, kv_heads))))
        tile = max(r for r in range(1, most + 1) if self.block_size % r == 0)
        return replace(self, query_tile=tile)

    def list_heads(self, q_heads: int, kv_heads: int) -> int:
        """Block lists of a token: one per K/V head, or one per query head."""
        return q_heads if self.per_head_lists else kv_heads

    @property
    def lists(self) -> Literal["exact", "hybrid", "shared"]:
        """Kind of block lists: exact NSA, hybrid (shared and private), or shared alone."""
        if self.query_tile == 1:
            return "exact"
        return "hybrid" if self.private_blocks else "shared"
