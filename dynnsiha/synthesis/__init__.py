"""Layers whose function depends on the input, and the positions that are applied after them."""

from dynnsiha.synthesis.moie import MoIE
from dynnsiha.synthesis.resident import PrototypeResident
from dynnsiha.synthesis.rotary import apply_rotary, rotary_tables
from dynnsiha.synthesis.routing import (
    CosinePrototypeRouting,
    CrossAttentionPrototypeRouting,
    DotPrototypeRouting,
    PrototypeRouter,
    make_router,
)
from dynnsiha.synthesis.sbl import SparseBayesianLinear, activation_rate
from dynnsiha.synthesis.spl import SparseProtoLinear

__all__ = [
    "CosinePrototypeRouting",
    "CrossAttentionPrototypeRouting",
    "DotPrototypeRouting",
    "MoIE",
    "PrototypeResident",
    "PrototypeRouter",
    "SparseBayesianLinear",
    "SparseProtoLinear",
    "activation_rate",
    "apply_rotary",
    "make_router",
    "rotary_tables",
]
