"""Attention layers: x [B, T, d_model] → y [B, T, d_model]."""

from dynnsiha.forms.block_caches import BlockCaches
from dynnsiha.forms.dimension import DimensionDynSIHA, collapsed_share
from dynnsiha.forms.dynnsiha import DynNSIHA
from dynnsiha.forms.dynsiha import DynSIHA
from dynnsiha.forms.expert_block import (
    BlockRouting,
    ExpertBlock,
    ExpertHeads,
    ExpertHeadsRouting,
    ExpertMLP,
)
from dynnsiha.forms.experts import ExpertRouting
from dynnsiha.forms.flat import FlatDynSIHA
from dynnsiha.forms.layer import (
    AttentionLayer,
    DenseCore,
    HeadLayout,
    LayerRouting,
    linear_projections,
    synthesis_projections,
)
from dynnsiha.forms.nsa import NativeSparseAttention, SparseCore
from dynnsiha.forms.recursive import RecursiveDynSIHA
from dynnsiha.forms.refine import RefinementRouting

__all__ = [
    "AttentionLayer",
    "BlockCaches",
    "BlockRouting",
    "DenseCore",
    "DimensionDynSIHA",
    "DynNSIHA",
    "DynSIHA",
    "ExpertBlock",
    "ExpertHeads",
    "ExpertHeadsRouting",
    "ExpertMLP",
    "ExpertRouting",
    "FlatDynSIHA",
    "HeadLayout",
    "LayerRouting",
    "NativeSparseAttention",
    "RecursiveDynSIHA",
    "RefinementRouting",
    "SparseCore",
    "collapsed_share",
    "linear_projections",
    "synthesis_projections",
]
