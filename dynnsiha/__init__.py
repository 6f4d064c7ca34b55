"""Input-dependent, natively sparse attention: layers, their core operation, a language model."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dynnsiha.attention import NSAConfig, native_sparse_attention
    from dynnsiha.embedding import HierarchicalEmbedding, WordSegmenter, character_ids
    from dynnsiha.forms import DynNSIHA, DynSIHA, NativeSparseAttention
    from dynnsiha.model import DynNSIHAConfig, DynNSIHALanguageModel
    from dynnsiha.synthesis import SparseBayesianLinear

__all__ = [
    "DynNSIHA",
    "DynNSIHAConfig",
    "DynNSIHALanguageModel",
    "DynSIHA",
    "HierarchicalEmbedding",
    "NSAConfig",
    "NativeSparseAttention",
    "SparseBayesianLinear",
    "WordSegmenter",
    "character_ids",
    "native_sparse_attention",
]

# Imported on first use, so that `import dynnsiha` (and reading a configuration) needs no torch.
_HOME = {
    "DynNSIHA": "forms",
    "DynNSIHAConfig": "model",
    "DynNSIHALanguageModel": "model",
    "DynSIHA": "forms",
    "HierarchicalEmbedding": "embedding",
    "NSAConfig": "attention.config",
    "NativeSparseAttention": "forms",
    "SparseBayesianLinear": "synthesis",
    "WordSegmenter": "embedding",
    "character_ids": "embedding",
    "native_sparse_attention": "attention",
}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f"{__name__}.{_HOME[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
