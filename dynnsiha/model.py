"""A language model over characters that words guide."""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from dynnsiha.attention.cache import KVCache
from dynnsiha.embedding.deep_embed import DeepEmbed
from dynnsiha.embedding.hierarchical import HierarchicalEmbedding
from dynnsiha.embedding.segmenter import WordSegmenter
from dynnsiha.forms.layer import LayerRouting
from dynnsiha.forms.refine import RefinementRouting
from dynnsiha.generation import stream
from dynnsiha.model_cache import LayerCache, ModelCache
from dynnsiha.model_config import DynNSIHAConfig
from dynnsiha.model_parts import attention_of, experts_of, feed_forward_of
from dynnsiha.sampling import Sampling
from dynnsiha.saving import load_model, save_model

# Blocks read x through a norm, so its scale matters only beside what their parts add to it, 0.1 to
# 0.4 at initialisation: a much larger embedding learns more slowly at the same learning rate.
_EMBEDDING_RMS = 0.15


class Block(nn.Module):
    """Attention and feed-forward, each on a normalised input and added to its residual."""

    def __init__(self, config: DynNSIHAConfig) -> None:
        super().__init__()
        d_model = config.d_model
        self.attention_norm = nn.RMSNorm(d_model, eps=1e-6)
        self.attention = attention_of(config)
        self.feed_forward_norm = nn.RMSNorm(d_model, eps=1e-6)
        self.feed_forward = feed_forward_of(config)

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
            rms=_EMBEDDING_RMS,
        )
        expert_form = config.form != "blocks"
        self.blocks = nn.ModuleList(
            Block(config) for _ in range(0 if expert_form else config.layers)
        )
        self.experts = experts_of(config) if expert_form else None
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
        over, all of them or, if the call fails, none, and no gradient flows. With
        ``return_routing`` also a list with the routing of each block, or of the form; activations
        are then kept, checkpointing or not.
        """
        if cache is not None:
            cache.require_room(char_ids.shape[-1])
        if positions is None and cache is not None:
            positions = cache.positions(char_ids.shape[-1])
        elif positions is None:
            positions = torch.arange(char_ids.shape[-1], device=char_ids.device)
        keeping = nullcontext() if cache is None else cache.unless_it_fails()
        with keeping, torch.set_grad_enabled(torch.is_grad_enabled() and cache is None):
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
        own = None if cache is None else cache.layers[0]
        if not return_routing:
            recompute = self._recompute(return_routing)
            return x + self.experts(x, positions, cache=own, recompute=recompute), []
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
            prompt: at least one character each. With ``tile_scoring="aggregate"``, lengths that
                differ must be multiples of query_tile plus 1, but for the longest.
            segmenter: the one that the model was trained with.
            max_new: characters to add.
            temperature, top_k, top_p: see `Sampling`; temperature 0 is greedy.
            seed: of the drawing; None draws from torch's global stream.

        Returns:
            What was added, without the prompt: a string, or one for each prompt.

        Raises:
            ValueError: an empty prompt, a number out of range, a segmenter that does not fit, or
                lengths that cannot be taken together.
        """
        prompts = [prompt] if isinstance(prompt, str) else list(prompt)
        sampling = Sampling(temperature, top_k, top_p)
        steps = stream(self, segmenter, prompts, max_new, sampling, seed)
        texts = ["".join(chars) for chars in zip(*steps, strict=True)]
        return texts[0] if isinstance(prompt, str) else texts

    def save(self, folder: str | os.PathLike[str], segmenter: WordSegmenter | None = None) -> None:
        """Write weights (safetensors), configuration and, if given, the segmenter to a folder.

        What was saved there before is replaced, its segmenter too, by none if none is given.
        """
        config = self.config
        if self.experts is not None:  # the recursive form's steps may be changed at any time
            config = replace(config, layers=len(self.experts.sequence))
        save_model(folder, self, config, segmenter)

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
            ValueError: a configuration or segmenter of another version, weights that do not fit
                it, or a file that cannot be read.
        """
        return load_model(folder, DynNSIHAConfig, cls, device, map_tables=map_tables)
