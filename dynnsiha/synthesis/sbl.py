"""The sparse Bayesian layer: a linear layer whose neurons the input itself opens and scales."""

from __future__ import annotations

import math
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Init = Literal["calibrated", "notes"]
Routing = Literal["dot", "cosine"]

NORM_EPS = 1e-6
"""Least length that a direction is divided by: above the smallest float16, so that a zero vector
has the direction 0 in every dtype."""

_SIGMA_RAW_STD = 0.5
_GATE_AT_INIT = -0.1


class SparseBayesianLinear(nn.Module):
    """Linear layer whose output is multiplied, neuron by neuron, by how well x fits the neuron.

        keys   = mu * softplus(sigma_raw)               [d_out, d_in]
        score  = c * x keysᵀ / sqrt(d_in)               [..., d_out]
        weight = relu(score - gate)                     [..., d_out], exactly 0 where closed
        y      = weight * (x muᵀ + bias)                [..., d_out]

    so the effective matrix diag(weight(x)) mu is a function of x (dynamic function composition).
    Nothing is sampled: sigma acts through the keys. ``c`` is the buffer ``score_scale``, set once
    at initialisation and saved with the state.

    At initialisation, for input of unit variance, the share of open weights is 0.54 (Φ(0.1): the
    score has unit variance and the gate is -0.1); c is 26 at width 128 and 102 at width 2048. With
    ``init="notes"``, c = 1, the score's standard deviation is 0.04 at width 128 and 0.01 at 2048,
    and at least 0.99 of the weights are open, all of them near 0.1.

    Args:
        d_in, d_out: widths.
        init: "calibrated" makes c the inverse of the score's standard deviation for input of unit
            variance; "notes" keeps c = 1.
        routing: "dot" scores as above; "cosine" scores c * cos(x, key), which ignores the length
            of x (c = sqrt(d_in) when calibrated); backward keeps a normalised copy of x and keys.
        bias: whether the value has a bias.
        input_rms: root mean square of the inputs, which the calibrated dot score divides by.

    Raises:
        ValueError: a width below 1, an input_rms not above 0, or an unknown init or routing.
    """

    score_scale: Tensor

    def __init__(
        self,
        d_in: int,
        d_out: int,
        *,
        init: Init = "calibrated",
        routing: Routing = "dot",
        bias: bool = True,
        input_rms: float = 1.0,
    ) -> None:
        super().__init__()
        for name, width in (("d_in", d_in), ("d_out", d_out)):
            if width < 1:
                raise ValueError(f"{name}={width}: must be at least 1")
        if init not in ("calibrated", "notes"):
            raise ValueError(f"init={init!r}: must be 'calibrated' or 'notes'")
        if routing not in ("dot", "cosine"):
            raise ValueError(f"routing={routing!r}: must be 'dot' or 'cosine'")
        if not input_rms > 0:
            raise ValueError(f"input_rms={input_rms}: must be above 0")
        self.d_in, self.d_out, self.init, self.routing = d_in, d_out, init, routing
        self.input_rms = input_rms
        self.mu = nn.Parameter(torch.empty(d_out, d_in))
        self.sigma_raw = nn.Parameter(torch.empty(d_out, d_in))
        self.gate = nn.Parameter(torch.empty(d_out))
        self.bias = nn.Parameter(torch.empty(d_out)) if bias else None
        self.register_buffer("score_scale", torch.ones(()))
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Draw the parameters afresh and set ``score_scale`` to match them."""
        nn.init.kaiming_uniform_(self.mu, a=math.sqrt(5))
        nn.init.normal_(self.sigma_raw, std=_SIGMA_RAW_STD)
        nn.init.constant_(self.gate, _GATE_AT_INIT)
        if self.bias is not None:
            nn.init.zeros_(self.bias)
        self.score_scale.fill_(1.0)
        if self.init == "calibrated":
            self.score_scale.copy_(self._calibrated_scale())

    def _calibrated_scale(self) -> Tensor:
        """1 / (score's standard deviation at c = 1), for independent inputs of ``input_rms``."""
        if self.routing == "cosine":
            # The mean of cos² over random x is 1 / d_in, whatever the keys are.
            return torch.full_like(self.score_scale, math.sqrt(self.d_in))
        # Var(score_j) = input_rms² Σ_i keys_ji² / d_in
        return self.keys().square().mean().rsqrt() / self.input_rms

    def keys(self) -> Tensor:
        """What each neuron looks for: mu * softplus(sigma_raw), [d_out, d_in]."""
        return self.mu * F.softplus(self.sigma_raw)

    def score(self, x: Tensor) -> Tensor:
        """Calibrated match of x [..., d_in] with every key, before the gate, [..., d_out]."""
        return self._score(x, offset=None)

    def _score(self, x: Tensor, offset: Tensor | None) -> Tensor:
        # c rides on the small matrix, the gate on the matmul's bias: no extra pass over scores.
        if self.routing == "cosine":
            keys = F.normalize(self.keys(), dim=-1, eps=NORM_EPS) * self.score_scale
            return F.linear(F.normalize(x, dim=-1, eps=NORM_EPS), keys, offset)
        return F.linear(x, self.keys() * (self.score_scale / math.sqrt(self.d_in)), offset)

    def forward(self, x: Tensor, *, return_routing: bool = False) -> Tensor | tuple[Tensor, Tensor]:
        """x [..., d_in] → y [..., d_out]; with ``return_routing`` also weight [..., d_out]."""
        weight = torch.relu(self._score(x, offset=-self.gate))
        y = weight * F.linear(x, self.mu, self.bias)
        return (y, weight) if return_routing else y

    def extra_repr(self) -> str:
        return f"{self.d_in}, {self.d_out}, init={self.init!r}, routing={self.routing!r}"


def activation_rate(routing: Tensor, *, per_neuron: bool = False) -> Tensor:
    """Share of open weights (> 0) in routing [..., d_out]: a scalar, or one per neuron [d_out]."""
    is_open = (routing > 0).float()
    return is_open.reshape(-1, routing.shape[-1]).mean(dim=0) if per_neuron else is_open.mean()
