"""The native-sparse-attention core: (q, k, v, gates) -> o."""

from .api import native_sparse_attention
from .cache import KVCache
from .config import NSAConfig
from .decode import cached_attention
from .outputs import BlockIndices, NSAAux

__all__ = [
    "BlockIndices",
    "KVCache",
    "NSAAux",
    "NSAConfig",
    "cached_attention",
    "native_sparse_attention",
]
