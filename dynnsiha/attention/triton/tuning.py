"""Sizes of tiles and launch options of every kernel, for every family of GPUs.

Hopper's sizes at blocks of 64 keys and heads of 64 and 128 were chosen by measurement (NOTES.md).
All others were chosen by what the compiler makes of them: the largest tiles with no register
spilled, with the family's own matrix instruction and enough shared memory: 227 KiB a block on
Hopper and Blackwell, and 99 KiB on what counts as Ampere (``architecture``). ``dynbench gate
--compile`` builds them all.
"""

from __future__ import annotations

from dataclasses import dataclass

from ..architecture import AMPERE, BLACKWELL, HOPPER
from ..config import NSAConfig


@dataclass(frozen=True)
class Tuned:
    """``queries`` in a tile, and what the launch takes beside the kernel's own arguments."""

    queries: int
    launch: dict[str, int]


# kernel: {head_dim: (rows, keys, warps, stages)}; keys 0: the kernel's own block size.
_Entries = dict[str, dict[int, tuple[int, int, int, int]]]

_AMPERE: _Entries = {
    "compressed": {64: (64, 64, 4, 2), 128: (64, 64, 8, 2), 256: (64, 32, 8, 2)},
    "choice": {64: (64, 64, 4, 2), 128: (64, 64, 4, 2), 256: (32, 64, 4, 2)},
    "compressed choice": {64: (64, 32, 4, 2), 128: (64, 64, 8, 2), 256: (64, 32, 8, 2)},
    "pairs": {64: (64, 0, 4, 2), 128: (64, 0, 4, 2), 256: (32, 0, 8, 1)},
    "tiles": {64: (64, 64, 4, 2), 128: (64, 64, 8, 2), 256: (32, 32, 8, 1)},
    "tiles backward": {64: (32, 64, 4, 2), 128: (32, 64, 4, 2), 256: (16, 32, 8, 1)},
    "keys": {64: (32, 0, 4, 2), 128: (64, 0, 8, 2), 256: (16, 0, 8, 1)},
    "pairs backward": {64: (32, 0, 4, 2), 128: (64, 0, 8, 2), 256: (16, 0, 8, 1)},
    "units backward": {64: (32, 0, 4, 2), 128: (64, 0, 8, 2), 256: (16, 0, 8, 1)},
    "compressed backward": {64: (32, 64, 4, 2), 128: (64, 64, 8, 2), 256: (32, 32, 8, 2)},
}
_HOPPER: _Entries = {
    "compressed": {64: (64, 64, 4, 3), 128: (64, 64, 4, 3), 256: (64, 64, 8, 2)},
    "choice": {64: (64, 64, 4, 3), 128: (64, 64, 4, 2), 256: (64, 64, 4, 2)},
    "compressed choice": {64: (64, 64, 4, 3), 128: (64, 32, 4, 3), 256: (64, 64, 8, 2)},
    "pairs": {64: (64, 0, 4, 2), 128: (64, 0, 4, 2), 256: (64, 0, 8, 2)},
    "tiles": {64: (64, 64, 4, 3), 128: (64, 64, 4, 3), 256: (64, 32, 8, 2)},
    "tiles backward": {64: (64, 64, 4, 2), 128: (64, 64, 4, 2), 256: (64, 64, 8, 2)},
    "keys": {64: (64, 0, 4, 2), 128: (64, 0, 4, 2), 256: (64, 0, 8, 2)},
    "pairs backward": {64: (64, 0, 4, 2), 128: (32, 0, 4, 2), 256: (32, 0, 8, 2)},
    "units backward": {64: (64, 0, 4, 2), 128: (64, 0, 4, 2), 256: (32, 0, 8, 2)},
    "compressed backward": {64: (64, 64, 4, 2), 128: (64, 64, 4, 2), 256: (64, 64, 8, 2)},
}
_BLACKWELL: _Entries = {
    "compressed": {64: (128, 64, 8, 3), 128: (128, 64, 8, 3), 256: (64, 64, 8, 2)},
    "choice": {64: (64, 64, 8, 3), 128: (64, 64, 8, 3), 256: (64, 64, 8, 1)},
    "compressed choice": {64: (64, 32, 4, 3), 128: (64, 32, 8, 3), 256: (64, 32, 8, 1)},
    "pairs": {64: (64, 0, 4, 3), 128: (64, 0, 4, 3), 256: (64, 0, 8, 1)},
    "tiles": {64: (64, 64, 4, 3), 128: (64, 32, 8, 2), 256: (64, 32, 8, 2)},
    "tiles backward": {64: (64, 64, 4, 2), 128: (64, 64, 8, 2), 256: (64, 32, 8, 2)},
    "keys": {64: (64, 0, 4, 2), 128: (64, 0, 8, 2), 256: (32, 0, 8, 1)},
    "pairs backward": {64: (64, 0, 4, 2), 128: (32, 0, 4, 2), 256: (32, 0, 8, 1)},
    "units backward": {64: (64, 0, 4, 2), 128: (64, 0, 8, 2), 256: (32, 0, 8, 1)},
    "compressed backward": {64: (64, 64, 4, 2), 128: (64, 64, 8, 2), 256: (32, 64, 8, 1)},
}
TABLES = {AMPERE: _AMPERE, HOPPER: _HOPPER, BLACKWELL: _BLACKWELL}
"""Entries by family."""

EXCEPTIONS: dict[tuple[int, str, int], _Entries] = {
    (AMPERE, "block_size", 128): {
        "pairs": {64: (64, 0, 8, 2), 128: (64, 0, 8, 1)},
        "tiles": {64: (64, 64, 8, 2), 128: (32, 64, 8, 2)},
        "tiles backward": {64: (32, 64, 8, 1), 128: (16, 64, 8, 1)},
        "keys": {64: (32, 0, 8, 2), 128: (16, 0, 8, 1)},
        "pairs backward": {64: (32, 0, 8, 2), 128: (16, 0, 8, 1)},
        "units backward": {64: (32, 0, 8, 2), 128: (16, 0, 8, 1)},
    },
    (AMPERE, "group", 64): {
        "keys": {64: (64, 0, 8, 1)},
        "units backward": {64: (64, 0, 8, 1)},
        "compressed backward": {64: (64, 64, 8, 1)},
    },
    (HOPPER, "bulk", False): {
        "compressed backward": {128: (64, 64, 8, 2), 256: (32, 64, 8, 2)},
        "tiles": {128: (64, 64, 8, 2), 256: (64, 16, 8, 1)},
        "tiles backward": {128: (64, 64, 8, 2), 256: (64, 16, 8, 2)},
        "units backward": {128: (64, 0, 8, 2)},
        "keys": {128: (64, 0, 8, 2), 256: (64, 0, 8, 1)},
        "compressed choice": {64: (64, 32, 4, 2), 128: (64, 32, 4, 2), 256: (64, 32, 8, 2)},
    },
    (HOPPER, "group", 64): {
        "units backward": {128: (64, 0, 8, 2)},
    },
    (HOPPER, "block_size", 32): {
        "keys": {128: (64, 0, 8, 2), 256: (16, 0, 8, 2)},
    },
    (HOPPER, "block_size", 128): {
        "pairs": {64: (64, 0, 8, 3), 128: (64, 0, 8, 3)},
        "tiles": {64: (64, 64, 8, 3), 128: (64, 64, 8, 2)},
        "tiles backward": {64: (64, 64, 8, 2), 128: (64, 64, 8, 2)},
        "keys": {64: (64, 0, 8, 2), 128: (32, 0, 8, 2)},
        "pairs backward": {64: (64, 0, 8, 2), 128: (16, 0, 8, 2)},
        "units backward": {64: (64, 0, 8, 2), 128: (64, 0, 8, 2)},
    },
    (BLACKWELL, "bulk", False): {
        "choice": {128: (64, 64, 4, 3)},
        "compressed choice": {64: (64, 32, 8, 2)},
        "tiles": {256: (64, 16, 8, 1)},
    },
    (BLACKWELL, "block_size", 32): {
        "tiles backward": {256: (16, 64, 8, 2)},
        "keys": {256: (16, 0, 8, 1)},
    },
    (BLACKWELL, "block_size", 128): {
        "choice": {64: (64, 64, 8, 1)},
        "pairs": {64: (64, 0, 8, 3), 128: (64, 0, 8, 2)},
        "tiles": {64: (64, 64, 8, 3), 128: (64, 32, 8, 2)},
        "tiles backward": {64: (64, 64, 8, 2), 128: (64, 64, 8, 2)},
        "keys": {64: (64, 0, 8, 2), 128: (32, 0, 8, 2)},
        "pairs backward": {64: (64, 0, 8, 2), 128: (32, 0, 8, 2)},
        "units backward": {64: (64, 0, 8, 2), 128: (32, 0, 8, 2)},
    },
}
"""What replaces entries where keys are read through pointers (``bulk`` is False), for some block
size, or for so many heads a key/value head; the last of them counts."""


def tuned(
    family: int,
    kernel: str,
    config: NSAConfig,
    group: int,
    head_dim: int,
    most_queries: int | None = None,
    bulk: bool = True,
) -> Tuned:
    """The entry of a kernel for ``group`` heads (a power of two) and at most so many queries.

    ``bulk`` tells whether keys are read by bulk copies (``sources``).
    """
    rows, keys, warps, stages = TABLES[family][kernel][head_dim]
    settings = (("bulk", bulk), ("block_size", config.block_size), ("group", group))
    for setting in settings:
        exception = EXCEPTIONS.get((family, *setting), {}).get(kernel, {}).get(head_dim)
        if exception:
            rows, keys, warps, stages = exception
    queries = max(1, rows // group)
    if most_queries is not None:
        queries = min(queries, most_queries)
    launch = {"BQ": queries, "num_warps": warps, "num_stages": stages}
    if keys:
        launch["BN"] = min(keys, config.block_size) if kernel == "tiles" else keys
    return Tuned(queries, launch)
