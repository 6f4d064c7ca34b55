"""Fisher-aware routing shaping (FARS): routing learns to avoid modules that are hard to change."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from dynnsiha.learning.calls import RoutedCall
from dynnsiha.learning.restrict import only_to


class FisherAwareRoutingShaping:
    """FARS: mean over tokens of entropy(p) + Σ_e p_e cost_e.

    The cost of module e is the mean, over its parameters, of sqrt(v): Adam's second moment, a
    running diagonal of the Fisher information that the optimizer keeps anyway. It is read as it
    stands, without bias correction, and is a constant.

    Args:
        optimizer: one whose state holds ``exp_avg_sq``: torch's Adam and AdamW, `RMSuon`.

    Source: docs/learning.md.
    """

    def __init__(self, optimizer: torch.optim.Optimizer) -> None:
        self.optimizer = optimizer

    @torch.no_grad()
    def cost(self, banks: Sequence[nn.Parameter]) -> Tensor:
        """Cost of each of E modules whose parameters lie along the first dimension of ``banks``.

        Args:
            banks: parameters [E, ...]: expert banks [E, m, n], or a layer's matrix [d_out, d_in],
                whose modules are its neurons. A module's mean is over its elements of all banks.

        Returns:
            [E], in float32 or wider. A parameter that the optimizer has not stepped yet counts 0.

        Raises:
            ValueError: no banks, banks of different E, a parameter that is not the optimizer's, or
                an optimizer without second moments.
        """
        if not banks:
            raise ValueError("banks is empty: give the modules' parameters, [modules, ...] each")
        known = {id(p) for group in self.optimizer.param_groups for p in group["params"]}
        modules = banks[0].shape[0]
        total, count = torch.zeros(modules, device=banks[0].device), 0
        for bank in banks:
            if bank.shape[0] != modules:
                raise ValueError(
                    f"banks: first dimensions {modules} and {bank.shape[0]} differ,"
                    " all must be the number of modules"
                )
            if id(bank) not in known:
                raise ValueError(
                    f"a bank of shape {list(bank.shape)} is not among the optimizer's parameters:"
                    " give the optimizer that trains it"
                )
            total = total + self._root_second_moment(bank).reshape(modules, -1).sum(1)
            count += bank[0].numel()
        return total / count

    def _root_second_moment(self, parameter: nn.Parameter) -> Tensor:
        state = self.optimizer.state.get(parameter, {})
        if not state:
            return torch.zeros_like(parameter)
        if "exp_avg_sq" not in state:
            raise ValueError(
                f"optimizer {type(self.optimizer).__name__} keeps no second moment (exp_avg_sq):"
                " use Adam, AdamW or RMSuon"
            )
        moment = state["exp_avg_sq"]
        return moment.to(torch.promote_types(moment.dtype, torch.float32)).sqrt()

    def loss(self, probabilities: Tensor, cost: Tensor) -> Tensor:
        """Mean over tokens of entropy(p) + Σ_e p_e cost_e.

        Args:
            probabilities: p [..., E], >= 0 with sum 1; receives the gradient.
            cost: [E], from `cost`.
        """
        p = probabilities.to(torch.promote_types(probabilities.dtype, torch.float32))
        # p log p goes to 0 with p, but its derivative does not exist there: no p is quite 0.
        log_p = p.clamp(min=torch.finfo(p.dtype).tiny).log()
        return (p * (cost.to(p) - log_p)).sum(-1).mean()

    def __call__(self, calls: Sequence[RoutedCall]) -> Tensor:
        """Mean loss of the recorded calls, p = softmax(logits) over a layer's neurons or experts.

        A neuron's parameters are its row of the value matrix and its bias, an expert's are its
        slices of the banks. Only the layers' routing parameters receive the gradient.

        Raises:
            ValueError: ``calls`` is empty, or as in `cost`.
        """
        if not calls:
            raise ValueError("calls is empty: record a model with routed layers (record_routing)")
        losses = []
        for call in calls:
            p = call.logits().softmax(-1)
            shaped = self.loss(p, self.cost(call.value_parameters()))
            losses.append(only_to(shaped, call.routing_parameters()))
        return torch.stack(losses).mean()
