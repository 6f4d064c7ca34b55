"""How far the sparse Bayesian layers' weights are from their prior."""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn

TAU_RANGE = (0.01, 3.0)
"""Where the prior's standard deviation is kept."""

# Below it softplus(raw) is e^raw to the last bit of a float64, and its logarithm is raw.
_EXPONENTIAL_BELOW = -40.0


def output_entropy(logits: Tensor) -> Tensor:
    """Mean entropy, in nats, of softmax(logits) for logits [..., classes]: a detached scalar."""
    logits = logits.detach()
    log_p = logits.to(torch.promote_types(logits.dtype, torch.float32)).log_softmax(-1)
    return -(log_p.exp() * log_p).sum(-1).mean()


def kl_divergence_loss(module: nn.Module, tau: Tensor | float) -> Tensor:
    """Mean over all weights of KL[ N(mu, sigma²) || N(0, tau²) ], sigma = softplus(sigma_raw).

    In closed form log(tau / sigma) + (sigma² + mu²) / (2 tau²) - 1/2. An uncertain model (high
    output entropy) gets a wide prior. Finite for every tau >= 0 and every finite sigma_raw.

    Args:
        module: its parts with parameters ``mu`` and ``sigma_raw`` of one shape count.
        tau: standard deviation of the prior, usually `output_entropy` of the logits; a constant,
            clamped to [0.01, 3].

    Returns:
        A scalar, in float32 or wider; mu and sigma_raw receive its gradient.

    Raises:
        ValueError: no part of the module has such parameters.

    Source: docs/learning.md.
    """
    weights = list(_weights(module))
    if not weights:
        raise ValueError(
            f"module {type(module).__name__} has no sparse Bayesian layer: leave the KL term out"
        )
    tau = torch.as_tensor(tau).detach().clamp(*TAU_RANGE)
    total, count = torch.zeros(()), 0
    for mu, raw in weights:
        scale = tau.to(mu)
        sigma = F.softplus(raw)
        divergence = (sigma.square() + mu.square()) / (2 * scale.square()) - _log_softplus(raw)
        total = total.to(mu) + divergence.sum() + mu.numel() * (scale.log() - 0.5)
        count += mu.numel()
    return total / count


def _weights(module: nn.Module) -> Iterator[tuple[Tensor, Tensor]]:
    """mu and sigma_raw of every sparse Bayesian part, in float32 or wider."""
    for part in module.modules():
        mu, raw = getattr(part, "mu", None), getattr(part, "sigma_raw", None)
        if isinstance(mu, nn.Parameter) and isinstance(raw, nn.Parameter):
            yield _wide(mu), _wide(raw)


def _wide(parameter: Tensor) -> Tensor:
    return parameter.to(torch.promote_types(parameter.dtype, torch.float32))


def _log_softplus(raw: Tensor) -> Tensor:
    """log(softplus(raw)), finite where softplus underflows to 0."""
    small = raw < _EXPONENTIAL_BELOW
    ordinary = F.softplus(torch.where(small, torch.zeros_like(raw), raw)).log()
    return torch.where(small, raw, ordinary)
