"""A repository of experts, and how a token chooses some of them."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from dynnsiha.forms.dispatch import Dispatch
from dynnsiha.forms.grouped import grouped_matmul
from dynnsiha.synthesis.routing import CosinePrototypeRouting, Mask, Router, make_router
from dynnsiha.triton_device import kernels_serve

_SEARCHES = 4
_KERNEL_EXPERTS = 256  # whose logits one program of the kernels holds


@dataclass(frozen=True)
class ExpertRouting:
    """Which experts each token took, how strongly, and what came of it.

    Attributes:
        logits: the router's belief in every expert, [B, T, E].
        indices: the experts taken, best first, int64 [B, T, k].
        weights: what their outputs are multiplied by, >= 0, [B, T, k].
        mixtures: each weighted sum that was made with these weights, [B, T, width], in the graph of
            the output: q, k, v and y of head experts, y of MLP experts.
    """

    logits: Tensor
    indices: Tensor
    weights: Tensor
    mixtures: tuple[Tensor, ...]

    @property
    def expert_weights(self) -> Tensor:
        """The weights of all experts, 0 for those not taken, [B, T, E]."""
        return torch.zeros_like(self.logits).scatter(-1, self.indices, self.weights)


@dataclass(frozen=True)
class Choice:
    """The router's part of an `ExpertRouting`, and the order that the experts compute in."""

    logits: Tensor
    indices: Tensor
    weights: Tensor
    dispatch: Dispatch

    def routing(self, *mixtures: Tensor) -> ExpertRouting:
        """What the input decided."""
        return ExpertRouting(self.logits, self.indices, self.weights, mixtures)


class ExpertRouter(nn.Module):
    """x [B, T, d] → the k experts with the highest logits, and their weights.

    The weights are the router's own, not normalised: real-valued multipliers. An expert among the k
    whose prototype is closed has weight exactly 0, so that a token uses k experts at most. Logits
    are computed in the precision of the parameters, under autocast too: a rounded logit would take
    another expert.

    Args:
        d_model: width of x.
        experts, active: E and k.
        router, mask: see `make_router`.

    Raises:
        ValueError: k is not in 1 ... E, or what the router refuses.
    """

    def __init__(
        self,
        d_model: int,
        experts: int,
        active: int,
        *,
        router: Router = "cpr",
        mask: Mask = "relu",
    ) -> None:
        super().__init__()
        if not 1 <= active <= experts:
            raise ValueError(f"active_experts={active}: must be from 1 to experts={experts}")
        self.experts, self.active = experts, active
        self.prototypes = make_router(router, d_model, experts, mask=mask)

    def forward(self, x: Tensor) -> Choice:
        """x [B, T, d_model] → the tokens' choices."""
        dtype = next(self.prototypes.parameters()).dtype
        with torch.autocast(x.device.type, enabled=False):
            x = x.to(dtype)
            if self._kernels_serve(x):
                return self._by_kernels(x)
            logits = self.prototypes.logits(x)
            indices = _best(logits.detach(), self.active)
            if self.prototypes.mask == "relu":  # each weight by its own logit, or the best one's
                weights = self.prototypes.weights(logits.gather(-1, indices))
            else:
                weights = self.prototypes.weights(logits).gather(-1, indices)
        return Choice(logits, indices, weights, Dispatch.of(indices.flatten(0, 1), self.experts))

    def _kernels_serve(self, x: Tensor) -> bool:
        few = self.experts <= _KERNEL_EXPERTS
        return few and self.prototypes.mask == "relu" and kernels_serve(x)

    def _by_kernels(self, x: Tensor) -> Choice:
        """The same in a few launches."""
        from dynnsiha.forms import triton

        router, rows = self.prototypes, x.flatten(0, 1)
        if isinstance(router, CosinePrototypeRouting):
            logits, weights, indices, order, inverse, ends = triton.choose_by_cosine(
                *(rows, router.proto, router.gate, router.score_scale, self.active),
                router.logits,
                router.weights,
            )
        else:
            logits = router.logits(rows)
            weights, indices, order, inverse, ends = triton.choose(
                logits, self.active, router.weights
            )
        logits, weights, indices = (
            part.unflatten(0, x.shape[:2]) for part in (logits, weights, indices)
        )
        return Choice(logits, indices, weights, Dispatch(order, inverse, ends, self.active))

    def extra_repr(self) -> str:
        return f"active={self.active}"


def _best(logits: Tensor, count: int) -> Tensor:
    """The ``count`` highest logits of each row, best first: logits [..., E] → int64 [..., count].

    A few are found by as many searches, which on a CPU take a third of the time of topk.
    """
    if logits.device.type != "cpu" or count > _SEARCHES:
        return logits.topk(count, dim=-1).indices
    found: list[Tensor] = []
    for _ in range(count):
        found.append(logits.max(-1, keepdim=True).indices)
        logits = logits.scatter(-1, found[-1], -torch.inf)
    return torch.cat(found, -1)


class ExpertLinear(nn.Module):
    """E linear maps without bias, of which each row of the input meets one.

    Args:
        experts: E.
        d_in, d_out: widths.

    Raises:
        ValueError: a number below 1.
    """

    def __init__(self, experts: int, d_in: int, d_out: int) -> None:
        super().__init__()
        for name, number in (("experts", experts), ("d_in", d_in), ("d_out", d_out)):
            if number < 1:
                raise ValueError(f"{name}={number}: must be at least 1")
        self.weight = nn.Parameter(torch.empty(experts, d_in, d_out))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw every expert as ``nn.Linear`` draws its weight."""
        bound = 1 / math.sqrt(self.weight.shape[1])
        nn.init.uniform_(self.weight, -bound, bound)

    def forward(self, rows: Tensor, dispatch: Dispatch) -> Tensor:
        """Sorted rows [N k, d_in] → [N k, d_out]."""
        return grouped_matmul(rows, self.weight, dispatch.ends)

    def mix(self, x: Tensor, choice: Choice) -> Tensor:
        """x [B, T, d_in] → Σ_e weight_e(x) W_e x over the experts taken, [B, T, d_out]."""
        rows = self(choice.dispatch.spread(x.flatten(0, 1)), choice.dispatch)
        mixed = choice.dispatch.gather(rows, choice.weights.flatten(0, 1))
        return mixed.unflatten(0, x.shape[:2])

    def extra_repr(self) -> str:
        return "experts={}, d_in={}, d_out={}".format(*self.weight.shape)
