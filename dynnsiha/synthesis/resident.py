"""The prototype resident connection: a residual stream of the routing path alone."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn


class PrototypeResident(nn.Module):
    """p(l) = x(l) + alpha p(l - 1): what the routers of layer l read, from layer to layer (PRC).

    The ordinary residual carries values between blocks; this one carries what routing saw before,
    and is added to nothing but the router's input. Its state goes through the signature::

        p = None
        for resident, layer in zip(residents, layers):
            p = resident(x, p)
            x = x + layer(x, p)

    Nothing is detached: alpha learns, and earlier layers learn through it. p(l - 1) belongs to the
    same token, so nothing moves in time. Inputs of one scale add up to at most 1 / (1 - alpha) of
    it; a cosine router ignores that growth.

    Args:
        alpha: share that is kept, in [0, 1). It is learned, and stays inside (0, 1), unless it is
            0: that is the ablation p = x, without a parameter.

    Raises:
        ValueError: alpha out of range.
    """

    def __init__(self, alpha: float = 0.5) -> None:
        super().__init__()
        if not 0 <= alpha < 1:
            raise ValueError(f"alpha={alpha}: must be at least 0 and below 1")
        self.initial_alpha = alpha
        self.alpha_logit = nn.Parameter(torch.empty(())) if alpha else None
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Set alpha to its initial value."""
        if self.alpha_logit is not None:
            initial = self.initial_alpha
            nn.init.constant_(self.alpha_logit, math.log(initial / (1 - initial)))

    @property
    def alpha(self) -> Tensor:
        """The share that is kept, a scalar in [0, 1)."""
        return torch.zeros(()) if self.alpha_logit is None else torch.sigmoid(self.alpha_logit)

    def forward(self, x: Tensor, previous: Tensor | None = None) -> Tensor:
        """x [..., d] and the previous layer's p [..., d] (None in the first layer) → p [..., d].

        Raises:
            ValueError: the shapes differ.
        """
        if previous is None:
            return x
        if previous.shape != x.shape:
            raise ValueError(
                f"previous has shape {list(previous.shape)}: must be that of x, {list(x.shape)}"
            )
        return x if self.alpha_logit is None else x + self.alpha.to(x.dtype) * previous

    def extra_repr(self) -> str:
        return f"alpha={self.initial_alpha}"
