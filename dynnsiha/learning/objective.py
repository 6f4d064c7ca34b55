"""The loss that is trained: next-character loss and what shapes the gates beside it."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass, fields

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dynnsiha.learning.alignment import SelectionCall, record_selection, selection_alignment_loss
from dynnsiha.learning.calls import RoutedCall
from dynnsiha.learning.fars import FisherAwareRoutingShaping
from dynnsiha.learning.kl import kl_divergence_loss, output_entropy
from dynnsiha.learning.routed import record_routing
from dynnsiha.learning.sars import SurpriseAwareRoutingShaping
from dynnsiha.learning.second_order import twice_differentiable
from dynnsiha.learning.surprise import surprise_minimization_loss

_NOT_COUNTED = -100
_WEIGHTS = ("surprise_weight", "kl_weight", "sars_weight", "fars_weight", "alignment_weight")


def total_loss(
    main: Tensor,
    *,
    surprise: Tensor | None = None,
    kl: Tensor | None = None,
    sars: Tensor | None = None,
    fars: Tensor | None = None,
    alignment: Tensor | None = None,
    surprise_weight: float = 1.0,
    kl_weight: float = 1.0,
    sars_weight: float = 1.0,
    fars_weight: float = 1.0,
    alignment_weight: float = 1.0,
) -> Tensor:
    """main + surprise_weight (1 - sigmoid(main)) surprise + kl_weight kl + ...

    Surprise counts little while the main loss is high: first learn, then sharpen. Its weight is a
    constant, or a higher main loss would pay. Terms left out are 0.

    Args:
        main, surprise, kl, sars, fars, alignment: scalars.
        surprise_weight, kl_weight, sars_weight, fars_weight, alignment_weight: their factors.

    Source: docs/learning.md.
    """
    total = main
    if surprise is not None:
        total = total + surprise_weight * (1 - main.detach().sigmoid()) * surprise
    for weight, term in (
        (kl_weight, kl),
        (sars_weight, sars),
        (fars_weight, fars),
        (alignment_weight, alignment),
    ):
        if term is not None:
            total = total + weight * term
    return total


@dataclass(frozen=True)
class Losses:
    """Scalars of one batch, in nats where they are likelihoods; None for a term left out."""

    total: Tensor
    main: Tensor
    surprise: Tensor | None = None
    kl: Tensor | None = None
    sars: Tensor | None = None
    fars: Tensor | None = None
    alignment: Tensor | None = None

    def numbers(self) -> dict[str, float | None]:
        """The same as plain numbers, which waits for the device."""
        terms = {field.name: getattr(self, field.name) for field in fields(self)}
        return {name: None if x is None else float(x.detach()) for name, x in terms.items()}


@dataclass(frozen=True)
class Objective:
    """Next-character cross-entropy, and the auxiliary losses whose weights are above 0.

    Attributes:
        surprise_weight: of `surprise_minimization_loss`, a sum over neurons (of the order 0.1
            each), times 1 - sigmoid(main). Attention then takes memory in T², and a step several
            times as long: see `twice_differentiable`.
        kl_weight: of `kl_divergence_loss`, its tau the output entropy of the batch.
        sars, sars_weight: surprise-aware routing shaping; None for none.
        fars, fars_weight: Fisher-aware routing shaping, made with the optimizer that trains the
            model; None for none.
        alignment_weight: of `selection_alignment_loss`. Attention then takes the time of dense
            attention.

    Raises:
        ValueError: a negative weight.
    """

    surprise_weight: float = 0.0
    kl_weight: float = 0.0
    sars: SurpriseAwareRoutingShaping | None = None
    sars_weight: float = 1.0
    fars: FisherAwareRoutingShaping | None = None
    fars_weight: float = 1.0
    alignment_weight: float = 0.0

    def __post_init__(self) -> None:
        for name in _WEIGHTS:
            if not getattr(self, name) >= 0:
                raise ValueError(f"{name}={getattr(self, name)}: must be at least 0")

    def __call__(
        self,
        model: nn.Module,
        char_ids: Tensor,
        word_ids: Tensor,
        counted: Tensor | None = None,
    ) -> Losses:
        """Losses of one batch.

        Args:
            model: (char_ids, word_ids) → logits [B, T, char_vocab].
            char_ids, word_ids: int64 [B, T], T >= 2.
            counted: bool [B, T], the characters whose prediction counts, at least one after the
                first column; all if None.

        Raises:
            ValueError: the weight of a loss on layers that the model has not.
        """
        calls: list[RoutedCall] = []
        choices: list[SelectionCall] = []
        with ExitStack() as stack:
            if self.surprise_weight:
                stack.enter_context(twice_differentiable(model))
            if self.surprise_weight or self.sars is not None or self.fars is not None:
                calls = stack.enter_context(record_routing(model))
            if self.alignment_weight:
                choices = stack.enter_context(record_selection(model))
            logits = model(char_ids, word_ids)
        if self.alignment_weight and not choices:
            raise ValueError(
                f"alignment_weight={self.alignment_weight:g}: the model selects no blocks; use"
                " sparse attention, or weight 0"
            )
        predicted = logits[:, :-1].flatten(0, 1).float()
        asked = char_ids[:, 1:].flatten()
        if counted is not None:  # no selection, whose size the host would have to wait for
            asked = torch.where(counted[:, 1:].flatten(), asked, _NOT_COUNTED)
        main = F.cross_entropy(predicted, asked, ignore_index=_NOT_COUNTED)
        surprise = surprise_minimization_loss(main, calls) if self.surprise_weight else None
        kl = None
        if self.kl_weight:
            answers = predicted if counted is None else predicted[asked != _NOT_COUNTED]
            kl = kl_divergence_loss(model, output_entropy(answers))
        sars = None if self.sars is None else self.sars(main, calls)
        fars = None if self.fars is None else self.fars(calls)
        alignment = selection_alignment_loss(choices) if self.alignment_weight else None
        total = total_loss(
            main,
            surprise=surprise,
            kl=kl,
            sars=sars,
            fars=fars,
            alignment=alignment,
            surprise_weight=self.surprise_weight,
            kl_weight=self.kl_weight,
            sars_weight=self.sars_weight,
            fars_weight=self.fars_weight,
            alignment_weight=self.alignment_weight,
        )
        return Losses(total, main, surprise, kl, sars, fars, alignment)
