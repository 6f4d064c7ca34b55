"""Input-dependent, natively sparse attention: layers, their core operation, a language model."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dynnsiha.attention import KVCache, NSAConfig, native_sparse_attention
    from dynnsiha.attention.compression import (
        AttentionPoolCompress,
        ConvLinearCompress,
        GroupedMLPCompress,
        MeanPoolCompress,
        SingleProjectionCompress,
        TransformerCompress,
    )
    from dynnsiha.embedding import DeepEmbed, HierarchicalEmbedding, WordSegmenter, character_ids
    from dynnsiha.forms import (
        DimensionDynSIHA,
        DynNSIHA,
        DynSIHA,
        FlatDynSIHA,
        NativeSparseAttention,
        RecursiveDynSIHA,
    )
    from dynnsiha.learning import (
        FisherAwareRoutingShaping,
        RMSuon,
        SurpriseAwareRoutingShaping,
        kl_divergence_loss,
        surprise_minimization_loss,
    )
    from dynnsiha.model import DynNSIHALanguageModel
    from dynnsiha.model_config import DynNSIHAConfig
    from dynnsiha.synthesis import (
        CosinePrototypeRouting,
        CrossAttentionPrototypeRouting,
        MoIE,
        PrototypeResident,
        SparseBayesianLinear,
        SparseProtoLinear,
    )

__all__ = [
    "AttentionPoolCompress",
    "ConvLinearCompress",
    "CosinePrototypeRouting",
    "CrossAttentionPrototypeRouting",
    "DeepEmbed",
    "DimensionDynSIHA",
    "DynNSIHA",
    "DynNSIHAConfig",
    "DynNSIHALanguageModel",
    "DynSIHA",
    "FisherAwareRoutingShaping",
    "FlatDynSIHA",
    "GroupedMLPCompress",
    "HierarchicalEmbedding",
    "KVCache",
    "MeanPoolCompress",
    "MoIE",
    "NSAConfig",
    "NativeSparseAttention",
    "PrototypeResident",
    "RMSuon",
    "RecursiveDynSIHA",
    "SingleProjectionCompress",
    "SparseBayesianLinear",
    "SparseProtoLinear",
    "SurpriseAwareRoutingShaping",
    "TransformerCompress",
    "WordSegmenter",
    "character_ids",
    "kl_divergence_loss",
    "native_sparse_attention",
    "surprise_minimization_loss",
]

# Imported on first use, so that `import dynnsiha` (and reading a configuration) needs no torch.
_HOME = {
    "AttentionPoolCompress": "attention.compression",
    "ConvLinearCompress": "attention.compression",
    "CosinePrototypeRouting": "synthesis",
    "CrossAttentionPrototypeRouting": "synthesis",
    "DeepEmbed": "embedding",
    "DimensionDynSIHA": "forms",
    "DynNSIHA": "forms",
    "DynNSIHAConfig": "model_config",
    "DynNSIHALanguageModel": "model",
    "DynSIHA": "forms",
    "FisherAwareRoutingShaping": "learning",
    "FlatDynSIHA": "forms",
    "GroupedMLPCompress": "attention.compression",
    "HierarchicalEmbedding": "embedding",
    "KVCache": "attention",
    "MeanPoolCompress": "attention.compression",
    "MoIE": "synthesis",
    "NSAConfig": "attention.config",
    "NativeSparseAttention": "forms",
    "PrototypeResident": "synthesis",
    "RMSuon": "learning",
    "RecursiveDynSIHA": "forms",
    "SingleProjectionCompress": "attention.compression",
    "SparseBayesianLinear": "synthesis",
    "SparseProtoLinear": "synthesis",
    "SurpriseAwareRoutingShaping": "learning",
    "TransformerCompress": "attention.compression",
    "WordSegmenter": "embedding",
    "character_ids": "embedding",
    "kl_divergence_loss": "learning",
    "native_sparse_attention": "attention",
    "surprise_minimization_loss": "learning",
}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f"{__name__}.{_HOME[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
