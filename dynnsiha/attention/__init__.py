"""The native-sparse-attention core: (q, k, v, gates) -> o."""

from .api import native_sparse_attention
from .config import NSAConfig
from .outputs import BlockIndices, NSAAux

__all__ = ["BlockIndices", "NSAAux", "NSAConfig", "native_sparse_attention"]
