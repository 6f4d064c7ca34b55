"""A case's settings and the configuration of the sparse core, one from the other.

The core is imported inside the functions: planning a sweep must not cost an import of torch.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal

from dynbench.harness.case import Value

if TYPE_CHECKING:
    from dynnsiha.attention.config import NSAConfig

BLOCK_SIZE = 64
INIT_BLOCKS = 1
LOCAL_BLOCKS = 2
FORCED_BLOCKS = INIT_BLOCKS + LOCAL_BLOCKS

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
) -> dict[str, Value]:
    """Settings of a sparse case: every field of the configuration that changes the work.

    ``computes`` is ``nsa`` (32/16 windows, exact lists) or ``dynnsiha`` (64/64 windows). Exact
    lists have nothing shared, so query_tile 1 sets private_blocks to 0: one work, one case id.
    """
    from dynnsiha.attention.config import NSAConfig

    fields: dict[str, object] = {
        "block_size": BLOCK_SIZE,
        "init_blocks": INIT_BLOCKS,
        "local_blocks": LOCAL_BLOCKS,
        "top_n": top_n,
        "window": window,
    }
    if computes == "nsa":
        config = NSAConfig.paper(**fields)
    else:
        fields |= {"query_tile": query_tile, "private_blocks": private_blocks}
        config = NSAConfig.word_guided(q_heads, kv_heads, **fields)
    settings: dict[str, Value] = {name: getattr(config, name) for name in CONFIG_FIELDS}
    if config.query_tile == 1:
        settings["private_blocks"] = 0
    return {"lists": config.lists} | settings


def config_from(settings: Mapping[str, Value]) -> NSAConfig | None:
    """The core's configuration that the settings describe; None for dense attention."""
    from dynnsiha.attention.config import NSAConfig

    if settings["lists"] == "dense":
        return None
    fields: dict[str, Any] = {name: settings[name] for name in CONFIG_FIELDS}
    return NSAConfig(**fields)
