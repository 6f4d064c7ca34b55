"""A case's settings and the configuration of the sparse core, one from the other.

The core is imported inside the functions: planning a sweep must not cost an import of torch.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING, Any, Literal

from dynbench.harness.case import Value

if TYPE_CHECKING:
    from dynnsiha.attention.config import NSAConfig

BLOCK_SIZE = 64
INIT_BLOCKS = 1
LOCAL_BLOCKS = 2
FORCED_BLOCKS = INIT_BLOCKS + LOCAL_BLOCKS
PRIVATE_BLOCKS = 1
"""Of a query whose list is shared, unless the user says otherwise: as the word-guided default."""
SMALLEST_BLOCK = 4
"""Fewest tokens in a block: the windows of ``nsa`` start at every quarter of one."""
BRANCHES = ("compressed", "selected", "sliding")

CONFIG_FIELDS = (
    "block_size",
    "compress_block",
    "compress_stride",
    "top_n",
    "init_blocks",
    "local_blocks",
    "window",
    "query_tile",
    "private_blocks",
)


def sparse_settings(
    computes: str,
    q_heads: int,
    kv_heads: int,
    *,
    top_n: int,
    window: int,
    query_tile: int | Literal["auto"],
    private_blocks: int,
    branches: Collection[str] = BRANCHES,
    block_size: int = BLOCK_SIZE,
) -> dict[str, Value]:
    """Settings of a sparse case: every field of the configuration that changes the work.

    ``computes`` is ``nsa`` (32/16 windows, exact lists), ``dynnsiha`` (64/64 windows) or
    ``sliding`` (the window alone, no lists). Windows are in proportion to ``block_size``. Exact
    lists have nothing shared, so query_tile 1 sets private_blocks to 0: one work, one case id. For
    the same reason window is 0 without the sliding branch. ``branches`` are named only where one is
    left out.
    """
    from dynnsiha.attention.config import NSAConfig

    if computes == "sliding":
        return {"lists": "none", "branches": "sliding", "window": window}
    fields: dict[str, object] = {
        "block_size": block_size,
        "init_blocks": INIT_BLOCKS,
        "local_blocks": LOCAL_BLOCKS,
        "top_n": top_n,
        "window": window,
        "branches": tuple(name for name in BRANCHES if name in branches),
    }
    if computes == "nsa":
        windows = {"compress_block": block_size // 2, "compress_stride": block_size // 4}
        config = NSAConfig.paper(**fields | windows)
    else:
        windows = {"compress_block": block_size, "compress_stride": block_size}
        fields |= {"query_tile": query_tile, "private_blocks": private_blocks, **windows}
        config = NSAConfig.word_guided(q_heads, kv_heads, **fields)
    settings: dict[str, Value] = {name: getattr(config, name) for name in CONFIG_FIELDS}
    if config.query_tile == 1:
        settings["private_blocks"] = 0
    if config.branches == BRANCHES:
        return {"lists": config.lists} | settings
    if "sliding" not in config.branches:
        settings["window"] = 0
    return {"lists": config.lists, "branches": ",".join(config.branches)} | settings


def branches_of(settings: Mapping[str, Value]) -> tuple[str, ...]:
    """The branches that a sparse case computes."""
    return tuple(str(settings["branches"]).split(",")) if "branches" in settings else BRANCHES


def config_from(settings: Mapping[str, Value]) -> NSAConfig | None:
    """The core's configuration that the settings describe; None for dense attention."""
    from dynnsiha.attention.config import NSAConfig

    if settings["lists"] == "dense":
        return None
    named = [name for name in CONFIG_FIELDS if settings["lists"] != "none" or name in settings]
    fields: dict[str, Any] = {name: settings[name] for name in named}
    branches = branches_of(settings)
    if "sliding" not in branches:
        del fields["window"]  # 0 says that nobody reads it; the core knows no window of 0
    return NSAConfig(**fields, branches=branches)
