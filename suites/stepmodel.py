"""The model of a case in the suites that time a step of one, and what is said of it in the row."""

from __future__ import annotations

import torch
from torch import nn

from dynbench.suites.activation import ACTIVATION_TOKENS, open_share
from dynbench.suites.formwork import ACTIVE
from dynbench.suites.models import build_model, model_config
from dynbench.suites.modeltext import TextIds
from dynbench.suites.modelwork import MODEL_EXPERTS, feed_forward_width
from dynbench.suites.spec import Spec
from dynbench.suites.vocabulary import WORD_VOCAB
from dynnsiha import DynNSIHALanguageModel
from dynnsiha.forms.layer import LayerRouting


def step_model(spec: Spec) -> DynNSIHALanguageModel:
    """The provider's model in the sizes that modelwork.py counts.

    Raises Unsupported for a provider without one, and for sizes that a model cannot have.
    """
    sizes: dict[str, int] = {"experts": MODEL_EXPERTS, "active_experts": ACTIVE}
    config = model_config(spec, WORD_VOCAB, **sizes)
    if config.form == "blocks":
        width = feed_forward_width(spec.model_dim)
        config = model_config(spec, WORD_VOCAB, **sizes, feed_forward_width=width)
    return build_model(spec, config)


def parameter_count(model: nn.Module) -> int:
    """Numbers that training changes."""
    return sum(parameter.numel() for parameter in model.parameters())


@torch.no_grad()
def activation_share(model: DynNSIHALanguageModel, text: TextIds) -> float | None:
    """Share of open neurons in all synthesis layers on the first tokens; None without any."""
    first = text.part(slice(0, ACTIVATION_TOKENS))
    _, routings = model(first.chars, first.words, return_routing=True)
    layers = [routing for routing in routings if isinstance(routing, LayerRouting)]
    parts = [part for one in layers for part in (one.qkv, one.output) if part is not None]
    return open_share(parts) if parts else None
