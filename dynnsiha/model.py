"""A language model over characters that words guide."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from dynnsiha.attention import NSAConfig
from dynnsiha.attention.cache import KVCache
from dynnsiha.attention.compression import (
    AttentionPoolCompress,
    CompressionFactory,
    ConvLinearCompress,
    GroupedMLPCompress,
    SingleProjectionCompress,
    TransformerCompress,
)
from dynnsiha.embedding.deep_embed import DeepEmbed, DeepEmbedForm
from dynnsiha.embedding.hierarchical import HierarchicalEmbedding, PositionKind
from dynnsiha.embedding.segmenter import WordSegmenter
from dynnsiha.forms.dimension import DimensionDynSIHA
from dynnsiha.forms.dynnsiha import DynNSIHA
from dynnsiha.forms.dynsiha import DynSIHA
from dynnsiha.forms.expert_block import CoreFactory
from dynnsiha.forms.flat import FlatDynSIHA
from dynnsiha.forms.layer import (
    AttentionLayer,
    DenseCore,
    HeadLayout,
    LayerRouting,
    linear_projections,
)
from dynnsiha.forms.nsa import GateKind, NativeSparseAttention, SparseCore
from dynnsiha.forms.recursive import RecursiveDynSIHA
from dynnsiha.forms.refine import RefinementRouting, RefiningForm
from dynnsiha.generation import stream
from dynnsiha.model_cache import LayerCache, ModelCache
from dynnsiha.sampling import Sampling
from dynnsiha.saving import load_model, save_model
from dynnsiha.synthesis.moie import MoIE
from dynnsiha.synthesis.routing import Router
from dynnsiha.synthesis.sbl import Init, Routing

AttentionKind = Literal["dynnsiha", "dynsiha", "nsa", "dense", "dimension"]
FormKind = Literal["blocks", "flat", "recursive"]
FeedForwardKind = Literal["swiglu", "moie", "deep_embed"]
CompressionKind = Literal["mean", "conv", "attention", "mlp", "projection", "transformer"]

_COMPRESSION: dict[str, CompressionFactory | None] = {
    "mean": None,  # what the core does by itself
    "conv": ConvLinearCompress,
    "attention": AttentionPoolCompress,
    "mlp": GroupedMLPCompress,
    "projection": SingleProjectionCompress,
    "transformer": TransformerCompress,
}


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
            ("form", ("blocks", "flat", "recursive")),
            ("attention", tuple(sorted(_ATTENTION))),
            ("feed_forward", ("swiglu", "moie", "deep_embed")),
            ("compression", tuple(_COMPRESSION)),
            ("router", ("dot", "cpr", "capr")),
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
        if self.router != "cpr" and self.form == "blocks":
            raise ValueError(f"router={self.router!r}: only forms of experts have a router")
        if self.halt_below is not None and self.form != "recursive":
            raise ValueError(f"halt_below={self.halt_below}: only form='recursive' halts")
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
        compression=_COMPRESSION[config.compression],
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


_ATTENTION: dict[str, Callable[[DynNSIHAConfig], AttentionLayer]] = {
    "dynnsiha": _dynnsiha,
    "dynsiha": _dynsiha,
    "nsa": _nsa,
    "dense": _dense,
    "dimension": _dimension,
}


def _expert_core(config: DynNSIHAConfig) -> CoreFactory:
    """The attention between head experts."""
    if config.attention == "dynsiha":
        return DenseCore
    layout = HeadLayout.of(*_heads(config))
    nsa = config.nsa or NSAConfig.word_guided(layout.q_heads, layout.kv_heads)
    return partial(
        SparseCore, config.d_model, layout, nsa, backend=config.backend, gates=config.gates
    )


def _form(config: DynNSIHAConfig) -> RefiningForm:
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


def _feed_forward(config: DynNSIHAConfig) -> nn.Module:
    d_model = config.d_model
    if config.feed_forward == "moie":
        return MoIE(d_model, init=config.init, routing=config.routing)
    if config.feed_forward == "deep_embed":
        return DeepEmbed(d_model, config.char_vocab, form=config.deep_embed)
    return SwiGLU(d_model, config.feed_forward_width or 64 * -(-8 * d_model // (3 * 64)))


class Block(nn.Module):
    """Attention and feed-forward, each on a normalised input and added to its residual."""

    def __init__(self, config: DynNSIHAConfig) -> None:
        super().__init__()
        d_model = config.d_model
        self.attention_norm = nn.RMSNorm(d_model, eps=1e-6)
        self.attention = _ATTENTION[config.attention](config)
        self.feed_forward_norm = nn.RMSNorm(d_model, eps=1e-6)
        self.feed_forward = _feed_forward(config)

    def forward(
        self,
        x: Tensor,
        positions: Tensor,
        char_ids: Tensor,
        *,
        cache: KVCache | None = None,
        previous: Tensor | None = None,
        return_routing: bool = False,
    ) -> tuple[Tensor, Tensor | None, LayerRouting | None]:
        """x [B, T, d_model], positions [T] or [B, T], char_ids [B, T] → the shape of x.

        ``previous`` [B, d_model] is the token shift's input before the first token. Also returned:
        the token shift's inputs [B, T, d_model], where there is one, and routing if wanted.
        """
        attended, routing = self.attention_norm(x), None
        if return_routing:
            attended, routing = self.attention(
                attended, positions, cache=cache, return_routing=True
            )
        else:
            attended = self.attention(attended, positions, cache=cache)
        x = x + attended
        normal = self.feed_forward_norm(x)
        if isinstance(self.feed_forward, DeepEmbed):
            return x + self.feed_forward(normal, char_ids, previous), normal, routing
        return x + self.feed_forward(normal), None, routing


class DynNSIHALanguageModel(nn.Module):
    """Predicts the next character from characters and their words.

    Hierarchical embedding → blocks, or a form of experts → RMSNorm → logits. Word ids must come
    from a `WordSegmenter` with alignment "completed": then no output depends on a later character.

    ``activation_checkpointing``, from the configuration, may be changed at any time.
    """

    def __init__(self, config: DynNSIHAConfig) -> None:
        super().__init__()
        self.config = config
        self.activation_checkpointing = config.activation_checkpointing
        self.embedding = HierarchicalEmbedding(
            config.d_model,
            config.char_vocab,
            config.word_vocab,
            positions=config.positions,
            max_positions=config.max_positions,
        )
        expert_form = config.form != "blocks"
        self.blocks = nn.ModuleList(
            Block(config) for _ in range(0 if expert_form else config.layers)
        )
        self.experts = _form(config) if expert_form else None
        self.norm = nn.RMSNorm(config.d_model, eps=1e-6)
        self.logits = nn.Linear(config.d_model, config.char_vocab, bias=False)

    def new_cache(
        self,
        batch: int,
        max_len: int,
        *,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
    ) -> ModelCache:
        """An empty cache for ``batch`` texts of at most ``max_len`` characters.

        dtype and device are those of the parameters unless given.
        """
        options: dict[str, Any] = {"dtype": dtype, "device": device}
        layers: list[LayerCache]
        if self.experts is not None:
            layers = [self.experts.new_cache(batch, max_len, **options)]
        else:
            layers = [
                block.attention.new_cache(batch, max_len, **options) for block in self._blocks
            ]
        return ModelCache(layers)

    @property
    def _blocks(self) -> list[Block]:
        return [block for block in self.blocks if isinstance(block, Block)]

    def forward(
        self,
        char_ids: Tensor,
        word_ids: Tensor,
        positions: Tensor | None = None,
        *,
        cache: ModelCache | None = None,
        return_routing: bool = False,
    ) -> Tensor | tuple[Tensor, list[LayerRouting | RefinementRouting]]:
        """char_ids, word_ids [B, T], positions [T] or [B, T] → logits [B, T, char_vocab].

        With a ``cache`` from `new_cache`, the ids are those after the tokens in it; it takes them
        over, and no gradient flows. With ``return_routing`` also a list with the routing of each
        block, or of the form; activations are then kept, checkpointing or not.
        """
        if cache is not None:
            cache.require_room(char_ids.shape[-1])
        if positions is None and cache is not None:
            positions = cache.positions(char_ids.shape[-1])
        elif positions is None:
            positions = torch.arange(char_ids.shape[-1], device=char_ids.device)
        with torch.set_grad_enabled(torch.is_grad_enabled() and cache is None):
            x = self.embedding(char_ids, word_ids, positions)
            if self.experts is None:
                x, routings = self._through_blocks(x, positions, char_ids, cache, return_routing)
            else:
                x, routings = self._through_experts(x, positions, cache, return_routing)
            logits = self.logits(self.norm(x))
        return (logits, routings) if return_routing else logits

    def _through_blocks(
        self,
        x: Tensor,
        positions: Tensor,
        char_ids: Tensor,
        cache: ModelCache | None,
        return_routing: bool,
    ) -> tuple[Tensor, list[Any]]:
        recompute = self._recompute(return_routing)
        before = () if cache is None else cache.lengths
        before_shifts = [
            None if cache is None else cache.previous(i) for i in range(len(self.blocks))
        ]
        routings, shifts = [], []
        for i, block in enumerate(self.blocks):
            if recompute:
                x, _, _ = checkpoint(block, x, positions, char_ids, use_reentrant=False)
                continue
            x, shift, routing = block(
                x,
                positions,
                char_ids,
                cache=None if cache is None else cache.layers[i],
                previous=before_shifts[i],
                return_routing=return_routing,
            )
            shifts.append(shift)
            routings.append(routing)
        if cache is not None:
            cache.keep_shifts(shifts, before)
        return x, routings

    def _through_experts(
        self, x: Tensor, positions: Tensor, cache: ModelCache | None, return_routing: bool
    ) -> tuple[Tensor, list[Any]]:
        assert self.experts is not None
        if self._recompute(return_routing):
            return x + checkpoint(self.experts, x, positions, use_reentrant=False), []
        own = None if cache is None else cache.layers[0]
        if not return_routing:
            return x + self.experts(x, positions, cache=own), []
        y, routing = self.experts(x, positions, cache=own, return_routing=True)
        return x + y, [routing]

    def _recompute(self, return_routing: bool) -> bool:
        return self.activation_checkpointing and torch.is_grad_enabled() and not return_routing

    def loss(self, char_ids: Tensor, word_ids: Tensor, positions: Tensor | None = None) -> Tensor:
        """Mean cross-entropy, in nats, of predicting character t + 1 from characters up to t.

        Raises:
            ValueError: fewer than two characters: there is nothing to predict.
        """
        if char_ids.shape[-1] < 2:
            raise ValueError(f"seq_len={char_ids.shape[-1]}: a next character needs at least 2")
        logits = self(char_ids, word_ids, positions)
        return F.cross_entropy(logits[:, :-1].flatten(0, 1).float(), char_ids[:, 1:].flatten())

    def generate(
        self,
        prompt: str | Sequence[str],
        segmenter: WordSegmenter,
        max_new: int,
        *,
        temperature: float = 1.0,
        top_k: int | None = None,
        top_p: float | None = None,
        seed: int | None = None,
    ) -> str | list[str]:
        """Continue a text, or several of any lengths at once, by ``max_new`` characters.

        Args:
            prompt: at least one character each.
            segmenter: the one that the model was trained with.
            max_new: characters to add.
            temperature, top_k, top_p: see `Sampling`; temperature 0 is greedy.
            seed: of the drawing; None draws from torch's global stream.

        Returns:
            What was added, without the prompt: a string, or one for each prompt.

        Raises:
            ValueError: an empty prompt, a number out of range, or a segmenter that does not fit.
        """
        prompts = [prompt] if isinstance(prompt, str) else list(prompt)
        sampling = Sampling(temperature, top_k, top_p)
        steps = stream(self, segmenter, prompts, max_new, sampling, seed)
        texts = ["".join(chars) for chars in zip(*steps, strict=True)]
        return texts[0] if isinstance(prompt, str) else texts

    def save(self, folder: str | os.PathLike[str], segmenter: WordSegmenter | None = None) -> None:
        """Write weights (safetensors), configuration and, if given, the segmenter to a folder."""
        save_model(folder, self, self.config, segmenter)

    @classmethod
    def load(
        cls,
        folder: str | os.PathLike[str],
        device: torch.device | str = "cpu",
        *,
        map_tables: bool = False,
    ) -> tuple[DynNSIHALanguageModel, WordSegmenter | None]:
        """The model that `save` wrote, and its segmenter if there is one.

        With ``map_tables`` the tables of `DeepEmbed` stay on disk: see `DeepEmbed.map_table`.

        Raises:
            FileNotFoundError: no model in the folder.
            ValueError: a configuration of another version, or weights that do not fit it.
        """
        return load_model(folder, DynNSIHAConfig, cls, device, map_tables=map_tables)
