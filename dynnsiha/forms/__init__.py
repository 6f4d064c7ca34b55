"""Attention layers: x [B, T, d_model] → y [B, T, d_model]."""

from dynnsiha.forms.dynnsiha import DynNSIHA
from dynnsiha.forms.dynsiha import DynSIHA
from dynnsiha.forms.layer import (
    AttentionLayer,
    DenseCore,
    HeadLayout,
    LayerRouting,
    linear_projections,
    synthesis_projections,
)
from dynnsiha.forms.nsa import NativeSparseAttention, SparseCore

__all__ = [
    "AttentionLayer",
    "DenseCore",
    "DynNSIHA",
    "DynSIHA",
    "HeadLayout",
    "LayerRouting",
    "NativeSparseAttention",
    "SparseCore",
    "linear_projections",
    "synthesis_projections",
]
