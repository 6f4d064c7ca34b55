"""The parts of a language model, made as its configuration says."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from dynnsiha.attention import NSAConfig
from dynnsiha.attention.compression import (
    AttentionPoolCompress,
    CompressionFactory,
    ConvLinearCompress,
    GroupedMLPCompress,
    SingleProjectionCompress,
    TransformerCompress,
)
from dynnsiha.embedding.deep_embed import DeepEmbed
from dynnsiha.forms.dimension import DimensionDynSIHA
from dynnsiha.forms.dynnsiha import DynNSIHA
from dynnsiha.forms.dynsiha import DynSIHA
from dynnsiha.forms.expert_block import CoreFactory
from dynnsiha.forms.flat import FlatDynSIHA
from dynnsiha.forms.layer import AttentionLayer, DenseCore, HeadLayout, linear_projections
from dynnsiha.forms.nsa import NativeSparseAttention, SparseCore
from dynnsiha.forms.recursive import RecursiveDynSIHA
from dynnsiha.forms.refine import RefiningForm
from dynnsiha.model_config import AttentionKind, CompressionKind, DynNSIHAConfig
from dynnsiha.synthesis.moie import MoIE

_COMPRESSION: dict[CompressionKind, CompressionFactory | None] = {
    "mean": None,  # what the core does by itself
    "conv": ConvLinearCompress,
    "attention": AttentionPoolCompress,
    "mlp": GroupedMLPCompress,
    "projection": SingleProjectionCompress,
    "transformer": TransformerCompress,
}


def _dynnsiha(config: DynNSIHAConfig) -> AttentionLayer:
    return DynNSIHA(
        *_heads(config),
        config=config.nsa,
        backend=config.backend,
        gates=config.gates,
        compression=_COMPRESSION[config.compression],
        init=config.init,
        routing=config.routing,
        synthesis=config.synthesis,
        rotary_base=config.rotary_base,
    )


def _dynsiha(config: DynNSIHAConfig) -> AttentionLayer:
    return DynSIHA(
        *_heads(config),
        init=config.init,
        routing=config.routing,
        synthesis=config.synthesis,
        rotary_base=config.rotary_base,
    )


def _nsa(config: DynNSIHAConfig) -> AttentionLayer:
    return NativeSparseAttention(
        *_heads(config),
        config.nsa,
        config.backend,
        gates=config.gates,
        compression=_COMPRESSION[config.compression],
        rotary_base=config.rotary_base,
    )


def _dense(config: DynNSIHAConfig) -> AttentionLayer:
    layout = HeadLayout.of(*_heads(config))
    projections = linear_projections(config.d_model, layout)
    return AttentionLayer(layout, projections, DenseCore(), rotary_base=config.rotary_base)


def _heads(config: DynNSIHAConfig) -> tuple[int, int, int | None, int | None]:
    return config.d_model, config.heads, config.kv_heads, config.head_dim


def _dimension(config: DynNSIHAConfig) -> AttentionLayer:
    return DimensionDynSIHA(*_heads(config), rotary_base=config.rotary_base)


_ATTENTION: dict[AttentionKind, Callable[[DynNSIHAConfig], AttentionLayer]] = {
    "dynnsiha": _dynnsiha,
    "dynsiha": _dynsiha,
    "nsa": _nsa,
    "dense": _dense,
    "dimension": _dimension,
}


def attention_of(config: DynNSIHAConfig) -> AttentionLayer:
    """The attention of a block."""
    return _ATTENTION[config.attention](config)


def _expert_core(config: DynNSIHAConfig) -> CoreFactory:
    """The attention between head experts."""
    if config.attention == "dynsiha":
        return DenseCore
    layout = HeadLayout.of(*_heads(config))
    nsa = config.nsa or NSAConfig.word_guided(layout.q_heads, layout.kv_heads)
    return partial(
        SparseCore, config.d_model, layout, nsa, backend=config.backend, gates=config.gates
    )


def experts_of(config: DynNSIHAConfig) -> RefiningForm:
    """The flat or the recursive form."""
    options: dict[str, Any] = {
        "experts": config.experts,
        "active_experts": config.active_experts,
        "router": config.router,
        "rotary_base": config.rotary_base,
        "core": _expert_core(config),
    }
    if config.form == "flat":
        return FlatDynSIHA(*_heads(config), blocks=config.layers, **options)
    return RecursiveDynSIHA(
        *_heads(config), steps=config.layers, halt_below=config.halt_below, **options
    )


class SwiGLU(nn.Module):
    """Gated feed-forward (arXiv 2002.05202): x [..., d] → W_out(SiLU(W_a x) * W_b x) [..., d]."""

    def __init__(self, d_model: int, width: int) -> None:
        super().__init__()
        self.inner = nn.Linear(d_model, 2 * width, bias=False)
        self.output = nn.Linear(width, d_model, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """x [..., d_model] → [..., d_model]."""
        gate, value = self.inner(x).chunk(2, dim=-1)
        return self.output(F.silu(gate) * value)


def feed_forward_of(config: DynNSIHAConfig) -> nn.Module:
    """The feed-forward of a block."""
    d_model = config.d_model
    if config.feed_forward == "moie":
        return MoIE(d_model, init=config.init, routing=config.routing)
    if config.feed_forward == "deep_embed":
        return DeepEmbed(d_model, config.char_vocab, form=config.deep_embed)
    return SwiGLU(d_model, config.feed_forward_width or 64 * -(-8 * d_model // (3 * 64)))
