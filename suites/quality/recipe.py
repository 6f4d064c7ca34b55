"""How a model is trained: what a variant says, and what is the same for every provider."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn

from dynbench.harness.subject import Unsupported
from dynbench.suites.spec import Spec
from dynnsiha.forms.expert_block import ExpertHeads, ExpertMLP
from dynnsiha.forms.nsa import BranchGates, GateStart, SparseCore
from dynnsiha.learning import (
    FisherAwareRoutingShaping,
    Objective,
    RMSuon,
    SurpriseAwareRoutingShaping,
)
from dynnsiha.learning.sars import Sign
from dynnsiha.synthesis.sbl import SparseBayesianLinear
from dynnsiha.synthesis.spl import SparseProtoLinear

WEIGHT_DECAY = 0.05
BETAS = (0.9, 0.98)
_LOSSES = ("sml", "kl", "sars", "fars", "alignment")
_WITHOUT_SYNTHESIS = {"dynnsiha": "nsa", "dynsiha": "dense"}


@dataclass(frozen=True)
class Recipe:
    """How often a training looks at itself.

    Attributes:
        warmup_steps: at most; a tenth of the steps if that is less.
        evaluations, logged_steps: over the whole training.
        evaluated_sequences, evaluated_characters: held-out sequences are drawn until there are so
            many of them, or so many characters that count.
        told_every_s: least seconds between words of how far it is, which a logged step gives; each
            writes the curve, too.
    """

    warmup_steps: int = 100
    evaluations: int = 10
    logged_steps: int = 100
    evaluated_sequences: int = 256
    evaluated_characters: int = 1 << 18
    told_every_s: float = 5.0


def config_changes(spec: Spec, variant: Mapping[str, str]) -> dict[str, Any]:
    """Fields of the model's configuration that the variant changes."""
    changes: dict[str, Any] = {
        name: variant[name] for name in ("init", "routing", "feed_forward", "compression", "router")
    }
    if variant["form"] != "blocks":
        changes["form"] = variant["form"]
    if variant["synthesis"] == "values":
        changes["synthesis"] = "values"
    if variant["synthesis"] == "linear":
        changes["attention"] = _WITHOUT_SYNTHESIS[spec.provider]
    if spec.config is not None and variant["tile_scoring"] == "aggregate":
        changes["nsa"] = replace(spec.config, tile_scoring="aggregate")
    return changes


def start_gates(model: nn.Module, variant: Mapping[str, str]) -> None:
    """Set what the branch gates of the new model favour."""
    start: GateStart = "even" if variant["gate_start"] == "even" else "sliding"
    for module in model.modules():
        if isinstance(module, BranchGates):
            module.start(start)


def make_optimizer(model: nn.Module, variant: Mapping[str, str]) -> torch.optim.Optimizer:
    """AdamW, or RMSuon: decay on matrices alone, and no orthogonal steps for embeddings."""
    tables = {p for m in model.modules() if isinstance(m, nn.Embedding) for p in m.parameters()}
    matrices = [p for p in model.parameters() if p.dim() >= 2 and p not in tables]
    others = [p for p in model.parameters() if p.dim() < 2 or p in tables]
    groups: list[dict[str, Any]] = [
        {"params": matrices, "weight_decay": WEIGHT_DECAY},
        {"params": others, "weight_decay": 0.0},
    ]
    lr = float(variant["lr"])
    if variant["optimizer"] == "rmsuon":
        groups[1]["orthogonal"] = False
        return RMSuon(groups, lr=lr, betas=BETAS)
    fused = next(model.parameters()).is_cuda
    return torch.optim.AdamW(groups, lr=lr, betas=BETAS, fused=fused)


def make_objective(
    model: nn.Module, optimizer: torch.optim.Optimizer, variant: Mapping[str, str]
) -> Objective:
    """Cross-entropy and the variant's auxiliary losses.

    Raises Unsupported for a loss on what the model has not.
    """
    weight = {name: float(variant[name]) for name in _LOSSES}
    neurons = _has(model, SparseBayesianLinear, SparseProtoLinear)
    routed = neurons or _has(model, ExpertHeads, ExpertMLP)
    there = {"sml": neurons, "kl": _has(model, SparseBayesianLinear), "sars": routed}
    there["fars"] = routed
    there["alignment"] = _has(model, SparseCore)
    for name, value in weight.items():
        if value and not there[name]:
            raise Unsupported(f"{name}={value:g}: the model has no layers that it acts on")
    sign: Sign = "plus" if variant["sars_sign"] == "plus" else "minus"
    return Objective(
        surprise_weight=weight["sml"],
        kl_weight=weight["kl"],
        sars=SurpriseAwareRoutingShaping(sign) if weight["sars"] else None,
        sars_weight=weight["sars"],
        fars=FisherAwareRoutingShaping(optimizer) if weight["fars"] else None,
        fars_weight=weight["fars"],
        alignment_weight=weight["alignment"],
    )


def _has(model: nn.Module, *kinds: type[nn.Module]) -> bool:
    return any(isinstance(module, kinds) for module in model.modules())
