"""What a language model is made of: its shape and the choice of its parts."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

from dynnsiha.attention import NSAConfig
from dynnsiha.embedding.deep_embed import DeepEmbedForm
from dynnsiha.embedding.hierarchical import PositionKind
from dynnsiha.forms.layer import Synthesis
from dynnsiha.forms.nsa import GateKind
from dynnsiha.synthesis.routing import Router
from dynnsiha.synthesis.sbl import Init, Routing

AttentionKind = Literal["dynnsiha", "dynsiha", "nsa", "dense", "dimension"]
FormKind = Literal["blocks", "flat", "recursive"]
FeedForwardKind = Literal["swiglu", "moie", "deep_embed"]
CompressionKind = Literal["mean", "conv", "attention", "mlp", "projection", "transformer"]


@dataclass(frozen=True)
class DynNSIHAConfig:
    """Shape and parts of a `DynNSIHALanguageModel`.

    Attributes:
        char_vocab: character ids, see `character_ids`; also the width of the logits.
        word_vocab: word ids, `WordSegmenter.num_ids`.
        d_model, layers: width and number of blocks, or steps of the recursive form.
        heads, kv_heads, head_dim: of the attention; None as in `DynNSIHA`.
        form: "blocks" (attention and feed-forward in turn), "flat" (`FlatDynSIHA`) or "recursive"
            (`RecursiveDynSIHA`); the last two have experts for both.
        attention: "dynnsiha" (sparse, synthesised), "dynsiha" (dense, synthesised), "nsa" (sparse,
            plain projections), "dense" (plain projections) or "dimension" (dense, a mask per
            feature). In the flat and the recursive form "dynnsiha" is sparse and "dynsiha" dense,
            between head experts.
        nsa: what a query attends to; None is each form's default. Not used where dense.
        backend, gates: of sparse attention.
        compression: what summarises windows of keys and values in sparse attention of the form
            "blocks": "mean" (no parameters) or one of the networks of docs/architecture.md.
        init, routing: of the sparse Bayesian layers.
        synthesis: what these make of q, k and v: "all", or "values" alone; of attention "dynnsiha"
            and "dynsiha" in the form "blocks".
        rotary_base: base of the rotary positions in the attention; None for none.
        positions, max_positions: of the embedding; "none" by default, since attention is rotary.
        feed_forward: "swiglu", "moie" (`MoIE`) or "deep_embed" (`DeepEmbed`, by character); of the
            form "blocks".
        feed_forward_width: hidden width of the SwiGLU; None is 8/3 d_model, rounded up to 64.
        deep_embed: form of the `DeepEmbed`, "1x" or "4x".
        experts, active_experts, router: of the flat and the recursive form, see `FlatDynSIHA`.
        halt_below: of the recursive form: tokens whose refinement is done halt, see
            `RecursiveDynSIHA`; None refines all to the end.
        activation_checkpointing: recompute each block in the backward pass to save memory.

    Raises:
        ValueError: an unknown part, parts that do not go together, or a number below 1.
    """

    char_vocab: int
    word_vocab: int
    d_model: int = 256
    layers: int = 4
    heads: int = 4
    kv_heads: int | None = None
    head_dim: int | None = None
    form: FormKind = "blocks"
    attention: AttentionKind = "dynnsiha"
    nsa: NSAConfig | None = None
    backend: str = "auto"
    gates: GateKind = "sigmoid"
    compression: CompressionKind = "mean"
    init: Init = "calibrated"
    routing: Routing = "dot"
    synthesis: Synthesis = "all"
    rotary_base: float | None = 10_000.0
    positions: PositionKind = "none"
    max_positions: int | None = None
    feed_forward: FeedForwardKind = "swiglu"
    feed_forward_width: int | None = None
    deep_embed: DeepEmbedForm = "4x"
    experts: int = 16
    active_experts: int = 2
    router: Router = "cpr"
    halt_below: float | None = None
    activation_checkpointing: bool = False

    def __post_init__(self) -> None:
        for name, known in (
            ("form", get_args(FormKind)),
            ("attention", tuple(sorted(get_args(AttentionKind)))),
            ("feed_forward", get_args(FeedForwardKind)),
            ("compression", get_args(CompressionKind)),
            ("router", get_args(Router)),
            ("synthesis", get_args(Synthesis)),
        ):
            if getattr(self, name) not in known:
                raise ValueError(f"{name}={getattr(self, name)!r}: must be one of {list(known)}")
        if self.form != "blocks" and self.attention not in ("dynnsiha", "dynsiha"):
            raise ValueError(
                f"attention={self.attention!r}: form={self.form!r} takes 'dynnsiha' or 'dynsiha'"
            )
        if self.form != "blocks" and self.feed_forward != "swiglu":
            raise ValueError(
                f"feed_forward={self.feed_forward!r}: form={self.form!r} has MLP experts instead"
            )
        if self.feed_forward_width is not None and self.feed_forward != "swiglu":
            raise ValueError(
                f"feed_forward_width={self.feed_forward_width}: only 'swiglu' takes a width"
            )
        sparse = self.form == "blocks" and self.attention in ("dynnsiha", "nsa")
        if self.compression != "mean" and not sparse:
            raise ValueError(
                f"compression={self.compression!r}: only attention 'dynnsiha' and 'nsa' of form"
                " 'blocks' summarise windows by a network"
            )
        synthesised = self.form == "blocks" and self.attention in ("dynnsiha", "dynsiha")
        if self.synthesis != "all" and not synthesised:
            raise ValueError(
                f"synthesis={self.synthesis!r}: only attention 'dynnsiha' and 'dynsiha' of form"
                " 'blocks' synthesise q, k and v"
            )
        if self.router != "cpr" and self.form == "blocks":
            raise ValueError(f"router={self.router!r}: only forms of experts have a router")
        if self.halt_below is not None and self.form != "recursive":
            raise ValueError(f"halt_below={self.halt_below}: only form='recursive' halts")
        for name in ("d_model", "layers", "feed_forward_width"):
            number = getattr(self, name)
            if number is not None and number < 1:
                raise ValueError(f"{name}={number}: must be at least 1")
