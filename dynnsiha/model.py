"""A language model over characters that words guide."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from dynnsiha.attention import NSAConfig
from dynnsiha.embedding.hierarchical import HierarchicalEmbedding, PositionKind
from dynnsiha.forms.dynnsiha import DynNSIHA
from dynnsiha.forms.dynsiha import DynSIHA
from dynnsiha.forms.layer import AttentionLayer, LayerRouting
from dynnsiha.forms.nsa import GateKind, NativeSparseAttention
from dynnsiha.synthesis.sbl import Init, Routing

AttentionKind = Literal["dynnsiha", "dynsiha", "nsa"]


@dataclass(frozen=True)
class DynNSIHAConfig:
    """Shape and parts of a `DynNSIHALanguageModel`.

    Attributes:
        char_vocab: character ids, see `character_ids`; also the width of the logits.
        word_vocab: word ids, `WordSegmenter.num_ids`.
        d_model, layers: width and number of blocks.
        heads, kv_heads, head_dim: of the attention; None as in `DynNSIHA`.
        attention: "dynnsiha" (sparse, synthesised), "dynsiha" (dense, synthesised) or "nsa"
            (sparse, plain projections).
        nsa: what a query attends to; None is each form's default. Not used by "dynsiha".
        backend, gates: of the sparse forms.
        init, routing: of the sparse Bayesian layers.
        rotary_base: base of the rotary positions in the attention; None for none.
        positions, max_positions: of the embedding; "none" by default, since attention is rotary.
        feed_forward_width: hidden width of the SwiGLU; None is 8/3 d_model, rounded up to 64.
        activation_checkpointing: recompute each block in the backward pass to save memory.

    Raises:
        ValueError: an unknown attention, or a number below 1.
    """

    char_vocab: int
    word_vocab: int
    d_model: int = 256
    layers: int = 4
    heads: int = 4
    kv_heads: int | None = None
    head_dim: int | None = None
    attention: AttentionKind = "dynnsiha"
    nsa: NSAConfig | None = None
    backend: str = "auto"
    gates: GateKind = "sigmoid"
    init: Init = "calibrated"
    routing: Routing = "dot"
    rotary_base: float | None = 10_000.0
    positions: PositionKind = "none"
    max_positions: int | None = None
    feed_forward_width: int | None = None
    activation_checkpointing: bool = False

    def __post_init__(self) -> None:
        if self.attention not in _ATTENTION:
            raise ValueError(f"attention={self.attention!r}: must be one of {sorted(_ATTENTION)}")
        for name in ("d_model", "layers", "feed_forward_width"):
            number = getattr(self, name)
            if number is not None and number < 1:
                raise ValueError(f"{name}={number}: must be at least 1")


def _dynnsiha(config: DynNSIHAConfig) -> AttentionLayer:
    return DynNSIHA(
        *_heads(config),
        config=config.nsa,
        backend=config.backend,
        gates=config.gates,
        init=config.init,
        routing=config.routing,
        rotary_base=config.rotary_base,
    )


def _dynsiha(config: DynNSIHAConfig) -> AttentionLayer:
    return DynSIHA(
        *_heads(config),
        init=config.init,
        routing=config.routing,
        rotary_base=config.rotary_base,
    )


def _nsa(config: DynNSIHAConfig) -> AttentionLayer:
    return NativeSparseAttention(
        *_heads(config),
        config.nsa,
        config.backend,
        gates=config.gates,
        rotary_base=config.rotary_base,
    )


def _heads(config: DynNSIHAConfig) -> tuple[int, int, int | None, int | None]:
    return config.d_model, config.heads, config.kv_heads, config.head_dim


_ATTENTION: dict[str, Callable[[DynNSIHAConfig], AttentionLayer]] = {
    "dynnsiha": _dynnsiha,
    "dynsiha": _dynsiha,
    "nsa": _nsa,
}


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


class Block(nn.Module):
    """Attention and feed-forward, each on a normalised input and added to its residual."""

    def __init__(self, config: DynNSIHAConfig) -> None:
        super().__init__()
        d_model = config.d_model
        width = config.feed_forward_width or 64 * -(-8 * d_model // (3 * 64))
        self.attention_norm = nn.RMSNorm(d_model, eps=1e-6)
        self.attention = _ATTENTION[config.attention](config)
        self.feed_forward_norm = nn.RMSNorm(d_model, eps=1e-6)
        self.feed_forward = SwiGLU(d_model, width)

    def forward(
        self, x: Tensor, positions: Tensor, return_routing: bool = False
    ) -> tuple[Tensor, LayerRouting | None]:
        """x [B, T, d_model], positions [T] or [B, T] → the same shape, and routing if wanted."""
        attended, routing = self.attention_norm(x), None
        if return_routing:
            attended, routing = self.attention(attended, positions, return_routing=True)
        else:
            attended = self.attention(attended, positions)
        x = x + attended
        return x + self.feed_forward(self.feed_forward_norm(x)), routing


class DynNSIHALanguageModel(nn.Module):
    """Predicts the next character from characters and their words.

    Hierarchical embedding → blocks → RMSNorm → logits. Word ids must come from a `WordSegmenter`
    with alignment "completed": then no output depends on a later character.
    """

    def __init__(self, config: DynNSIHAConfig) -> None:
        super().__init__()
        self.config = config
        self.embedding = HierarchicalEmbedding(
            config.d_model,
            config.char_vocab,
            config.word_vocab,
            positions=config.positions,
            max_positions=config.max_positions,
        )
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.layers))
        self.norm = nn.RMSNorm(config.d_model, eps=1e-6)
        self.logits = nn.Linear(config.d_model, config.char_vocab, bias=False)

    def forward(
        self,
        char_ids: Tensor,
        word_ids: Tensor,
        positions: Tensor | None = None,
        *,
        return_routing: bool = False,
    ) -> Tensor | tuple[Tensor, list[LayerRouting]]:
        """char_ids, word_ids [B, T], positions [T] or [B, T] → logits [B, T, char_vocab].

        With ``return_routing`` also a list with each block's `LayerRouting`; activations are then
        kept, checkpointing or not.
        """
        if positions is None:
            positions = torch.arange(char_ids.shape[-1], device=char_ids.device)
        x = self.embedding(char_ids, word_ids, positions)
        routings = []
        recompute = (
            self.config.activation_checkpointing and torch.is_grad_enabled() and not return_routing
        )
        for block in self.blocks:
            if recompute:
                x, _ = checkpoint(block, x, positions, use_reentrant=False)
            else:
                x, routing = block(x, positions, return_routing)
                routings.append(routing)
        logits = self.logits(self.norm(x))
        return (logits, routings) if return_routing else logits

    def loss(self, char_ids: Tensor, word_ids: Tensor, positions: Tensor | None = None) -> Tensor:
        """Mean cross-entropy, in nats, of predicting character t + 1 from characters up to t.

        Raises:
            ValueError: fewer than two characters: there is nothing to predict.
        """
        if char_ids.shape[-1] < 2:
            raise ValueError(f"seq_len={char_ids.shape[-1]}: a next character needs at least 2")
        logits = self(char_ids, word_ids, positions)
        return F.cross_entropy(logits[:, :-1].flatten(0, 1).float(), char_ids[:, 1:].flatten())
