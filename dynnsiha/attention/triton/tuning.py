"""Sizes of tiles and launch options of every kernel.

Chosen by measurement on Hopper (NOTES.md), by the width of the heads; the tests compile every entry
for the supported architectures and let none spill.
"""

from __future__ import annotations

from dataclasses import dataclass

from ..config import NSAConfig
from .architecture import AMPERE, BLACKWELL, HOPPER


@dataclass(frozen=True)
class Tuned:
    """``queries`` in a tile, and what the launch takes beside the kernel's own arguments."""

    queries: int
    launch: dict[str, int]


# kernel: {head_dim: (rows, keys, warps, stages)}; keys 0: the kernel's own block size.
_Entries = dict[str, dict[int, tuple[int, int, int, int]]]

_AMPERE: _Entries = {
    "compressed": {64: (64, 64, 4, 2), 128: (64, 64, 4, 2), 256: (64, 32, 8, 2)},
    "choice": {64: (64, 64, 4, 2), 128: (64, 64, 4, 2), 256: (32, 64, 4, 2)},
    "pairs": {64: (64, 0, 4, 2), 128: (64, 0, 4, 2), 256: (32, 0, 8, 1)},
    "tiles": {64: (64, 0, 4, 2), 128: (64, 0, 8, 2), 256: (32, 0, 8, 1)},
    "tiles backward": {64: (32, 64, 4, 2), 128: (32, 64, 4, 2), 256: (16, 32, 8, 1)},
    "keys": {64: (64, 0, 8, 2), 128: (64, 0, 8, 2), 256: (16, 0, 8, 1)},
    "pairs backward": {64: (64, 0, 8, 2), 128: (64, 0, 8, 2), 256: (16, 0, 8, 1)},
    "units backward": {64: (64, 0, 8, 2), 128: (64, 0, 8, 2), 256: (16, 0, 8, 1)},
    "compressed backward": {64: (64, 64, 8, 2), 128: (64, 64, 8, 2), 256: (32, 32, 8, 2)},
}
_HOPPER: _Entries = {
    "compressed": {64: (64, 64, 4, 3), 128: (64, 64, 4, 3), 256: (64, 64, 8, 2)},
    "choice": {64: (64, 64, 4, 3), 128: (64, 64, 4, 3), 256: (64, 64, 4, 2)},
    "pairs": {64: (64, 0, 4, 3), 128: (64, 0, 4, 3), 256: (64, 0, 8, 2)},
    "tiles": {64: (64, 0, 4, 3), 128: (64, 0, 4, 3), 256: (64, 0, 8, 2)},
    "tiles backward": {64: (64, 64, 4, 2), 128: (64, 64, 4, 2), 256: (64, 64, 8, 2)},
    "keys": {64: (64, 0, 4, 2), 128: (64, 0, 4, 2), 256: (64, 0, 8, 2)},
    "pairs backward": {64: (64, 0, 4, 2), 128: (32, 0, 4, 2), 256: (32, 0, 8, 2)},
    "units backward": {64: (64, 0, 4, 2), 128: (64, 0, 4, 2), 256: (32, 0, 8, 2)},
    "compressed backward": {64: (64, 64, 4, 2), 128: (64, 64, 4, 2), 256: (64, 64, 8, 2)},
}
_BLACKWELL: _Entries = {
    "compressed": {64: (128, 64, 8, 3), 128: (128, 64, 8, 3), 256: (64, 64, 8, 2)},
    "choice": {64: (64, 64, 4, 3), 128: (64, 64, 4, 3), 256: (64, 64, 4, 2)},
    "pairs": {64: (64, 0, 4, 3), 128: (64, 0, 4, 3), 256: (64, 0, 8, 2)},
    "tiles": {64: (64, 0, 4, 3), 128: (64, 0, 8, 3), 256: (64, 0, 8, 2)},
    "tiles backward": {64: (64, 64, 4, 2), 128: (64, 64, 8, 2), 256: (64, 64, 8, 2)},
    "keys": {64: (64, 0, 4, 2), 128: (64, 0, 8, 2), 256: (32, 0, 8, 1)},
    "pairs backward": {64: (64, 0, 4, 2), 128: (32, 0, 4, 2), 256: (32, 0, 8, 1)},
    "units backward": {64: (64, 0, 4, 2), 128: (64, 0, 8, 2), 256: (32, 0, 8, 1)},
    "compressed backward": {64: (64, 64, 4, 2), 128: (64, 64, 8, 2), 256: (32, 64, 8, 1)},
}
_TABLE = {AMPERE: _AMPERE, HOPPER: _HOPPER, BLACKWELL: _BLACKWELL}
_OTHER_BLOCKS: dict[tuple[int, int], _Entries] = {
    (AMPERE, 128): {
        "pairs": {64: (64, 0, 8, 2), 128: (64, 0, 8, 1)},
        "tiles": {64: (64, 0, 8, 2), 128: (64, 0, 8, 1)},
        "tiles backward": {64: (32, 64, 8, 1), 128: (16, 64, 8, 1)},
        "keys": {64: (32, 0, 8, 2), 128: (16, 0, 8, 1)},
        "pairs backward": {64: (32, 0, 8, 2), 128: (16, 0, 8, 1)},
        "units backward": {64: (32, 0, 8, 2), 128: (16, 0, 8, 1)},
    },
    (HOPPER, 32): {
        "keys": {256: (32, 0, 8, 2)},
    },
    (HOPPER, 128): {
        "pairs": {64: (64, 0, 8, 3), 128: (64, 0, 8, 3)},
        "tiles": {64: (64, 0, 8, 3), 128: (64, 0, 8, 2)},
        "tiles backward": {64: (64, 64, 8, 2), 128: (64, 64, 8, 2)},
        "keys": {64: (64, 0, 8, 2), 128: (32, 0, 8, 2)},
        "pairs backward": {64: (64, 0, 8, 2), 128: (16, 0, 8, 2)},
        "units backward": {64: (64, 0, 8, 2), 128: (64, 0, 8, 2)},
    },
    (BLACKWELL, 128): {
        "pairs": {64: (64, 0, 8, 3), 128: (64, 0, 8, 2)},
        "tiles": {64: (64, 0, 8, 3), 128: (64, 0, 8, 2)},
        "tiles backward": {64: (64, 64, 8, 2), 128: (64, 64, 8, 2)},
        "keys": {64: (64, 0, 8, 2), 128: (32, 0, 8, 2)},
        "pairs backward": {64: (64, 0, 8, 2), 128: (32, 0, 8, 2)},
        "units backward": {64: (64, 0, 8, 2), 128: (32, 0, 8, 2)},
    },
}


def tuned(
    family: int,
    kernel: str,
    config: NSAConfig,
    group: int,
    head_dim: int,
    most_queries: int | None = None,
) -> Tuned:
    """The entry of a kernel for ``group`` heads (a power of two) and at most so many queries."""
    special = _OTHER_BLOCKS.get((family, config.block_size), {}).get(kernel, {})
    rows, keys, warps, stages = special.get(head_dim) or _TABLE[family][kernel][head_dim]
    queries = max(1, rows // group)
    if most_queries is not None:
        queries = min(queries, most_queries)
    launch = {"BQ": queries, "num_warps": warps, "num_stages": stages}
    if kernel == "choice":
        keys = max(keys, config.block_size // config.compress_stride)
    if keys:
        launch["BN"] = keys
    return Tuned(queries, launch)
