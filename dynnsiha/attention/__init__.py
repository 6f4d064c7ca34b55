"""The native-sparse-attention core: (q, k, v, gates) -> o."""

from .api import native_sparse_attention
from .outputs import BlockIndices, NSAAux
from .config import NSAConfig

__all__ = ["BlockIndices", "NSAAux", "NSAConfig", "native_sparse_attention"]
