"""Surprise-aware routing shaping (SARS): routing learns which modules were worth their cost."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from dynnsiha.learning.calls import RoutedCall
from dynnsiha.learning.restrict import only_to

Sign = Literal["plus", "minus"]
Importance = Literal["relative", "absolute"]


class SurpriseAwareRoutingShaping:
    """SARS: an auxiliary loss that moves routing towards modules of high goodness.

        goodness  = importance * (belief - cost)
        belief    = logits / max_modules |logits|            what the router thought, in [-1, 1]
        cost      = ||dL/dweights|| / max_tokens ||dL/dweights||      what it costs, in [0, 1]
        meta loss = mean over tokens of entropy(softmax(logits ± goodness)), goodness a constant

    A module is a neuron of a routed layer, or an expert. The cost is compared over tokens: over
    the modules of one token it would be the importance again.

    Args:
        sign: "plus" lowers the entropy by favouring good modules; "minus" is the formula of the
            design notes, which takes goodness away. Report which one was used.
        importance: "relative" divides ||dL/doutput|| by its largest value among the token's
            modules; "absolute" takes it as it is, which is of the order 1 / tokens for a mean loss:
            goodness then hardly changes the softmax, with either sign.

    Raises:
        ValueError: an unknown sign or importance.

    Source: docs/learning.md.
    """

    def __init__(self, sign: Sign = "plus", importance: Importance = "relative") -> None:
        if sign not in ("plus", "minus"):
            raise ValueError(f"sign={sign!r}: must be 'plus' or 'minus'")
        if importance not in ("relative", "absolute"):
            raise ValueError(f"importance={importance!r}: must be 'relative' or 'absolute'")
        self.sign, self.importance = sign, importance

    def __repr__(self) -> str:
        return f"{type(self).__name__}(sign={self.sign!r}, importance={self.importance!r})"

    @torch.no_grad()
    def goodness(self, logits: Tensor, importance: Tensor, cost: Tensor) -> Tensor:
        """importance * (belief - cost), normalised as above, without a gradient.

        Args:
            logits: of the router [..., modules].
            importance, cost: the gradient norms of `neuron_gradient_norms` or
                `expert_gradient_norms`, not normalised, [..., modules].

        Returns:
            [..., modules]; a norm that is 0 throughout stays 0.
        """
        belief = _share(logits, logits.abs().amax(-1, keepdim=True))
        if self.importance == "relative":
            importance = _share(importance, importance.amax(-1, keepdim=True))
        over_tokens = tuple(range(cost.dim() - 1))
        highest = cost.amax(over_tokens, keepdim=True) if over_tokens else cost
        return importance * (belief - _share(cost, highest))

    def meta_loss(self, logits: Tensor, importance: Tensor, cost: Tensor) -> Tensor:
        """The loss above for one router; its gradient goes wherever ``logits`` came from."""
        goodness = self.goodness(logits, importance, cost)
        shaped = logits + goodness if self.sign == "plus" else logits - goodness
        log_p = shaped.to(torch.promote_types(shaped.dtype, torch.float32)).log_softmax(-1)
        return -(log_p.exp() * log_p).sum(-1).mean()

    def __call__(self, main_loss: Tensor, calls: Sequence[RoutedCall]) -> Tensor:
        """Mean meta loss of the recorded calls; only their routing parameters receive it.

        Args:
            main_loss: scalar L with its graph, which stays usable.
            calls: what `record_routing` collected while L was computed.

        Returns:
            A scalar, in float32 or wider.

        Raises:
            ValueError: ``calls`` is empty.
        """
        if not calls:
            raise ValueError("calls is empty: record a model with routed layers (record_routing)")
        outputs = [output for call in calls for output in call.outputs]
        grads = iter(
            torch.autograd.grad(main_loss, outputs, retain_graph=True, materialize_grads=True)
        )
        losses = []
        for call in calls:
            norms = call.gradient_norms([next(grads) for _ in call.outputs])
            losses.append(only_to(self.meta_loss(call.logits(), *norms), call.routing_parameters()))
        return torch.stack(losses).mean()


def _share(part: Tensor, whole: Tensor) -> Tensor:
    """part / whole, 0 where whole is 0."""
    return torch.where(whole > 0, part / whole, torch.zeros_like(part))
