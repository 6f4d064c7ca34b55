"""The language models of the suites that measure whole models: one for each provider.

They differ in attention and projections alone: the same width, heads, blocks and feed-forward
(SwiGLU), the same hierarchical embedding.
"""

from __future__ import annotations

from typing import Any

import torch

from dynbench.harness.subject import Unsupported
from dynbench.suites.catalog import provider_info
from dynbench.suites.inputs import CHAR_VOCAB
from dynbench.suites.spec import Spec
from dynnsiha import DynNSIHAConfig, DynNSIHALanguageModel

_PARTS: dict[str, dict[str, Any]] = {
    "sdpa": {"attention": "dense"},
    "nsa": {"attention": "nsa"},
    "sliding": {"attention": "nsa"},  # its settings leave the window's branch alone
    "dynsiha": {"attention": "dynsiha"},
    "dynnsiha": {"attention": "dynnsiha"},
    "flat": {"form": "flat", "attention": "dynsiha"},
    "recursive": {"form": "recursive", "attention": "dynsiha"},
}


def model_config(spec: Spec, word_vocab: int, **changes: Any) -> DynNSIHAConfig:
    """Configuration of the provider's model; ``changes`` are fields that an ablation sets.

    Raises Unsupported for a provider without a model, for a provider's variant (``sdpa:math``), and
    for sizes that a model cannot have.
    """
    info = provider_info(spec.provider)
    if info is None or info.name not in _PARTS:
        raise Unsupported(f"{spec.provider} has no language model: use {', '.join(_PARTS)}")
    if spec.provider != info.name:
        raise Unsupported(f"{spec.provider}: a model takes torch's own choice, use {info.name}")
    fields: dict[str, Any] = {
        "char_vocab": CHAR_VOCAB,
        "word_vocab": word_vocab,
        "d_model": spec.model_dim,
        "layers": spec.layers,
        "heads": spec.q_heads,
        "kv_heads": spec.kv_heads,
        "head_dim": spec.head_dim,
        "nsa": spec.config,
    }
    try:
        return DynNSIHAConfig(**fields | _PARTS[info.name] | changes)
    except ValueError as error:
        raise Unsupported(f"{spec.provider} as a model: {error}") from None


def build_model(spec: Spec, config: DynNSIHAConfig) -> DynNSIHALanguageModel:
    """The model on the case's device in its dtype, its parameters drawn from the case's seed.

    Raises Unsupported for sizes that a model cannot have.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(spec.seed)
        try:
            model = DynNSIHALanguageModel(config)
        except ValueError as error:
            raise Unsupported(f"{spec.provider} as a model: {error}") from None
    return model.to(device=spec.device, dtype=spec.dtype)
