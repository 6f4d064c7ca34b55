"""Surprise minimisation (SML): gates learn to keep the loss's gradient in few neurons."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from dynnsiha.learning.calls import NeuronCall, RoutedCall
from dynnsiha.learning.restrict import only_to
from dynnsiha.learning.second_order import is_twice_differentiable

# Neurons whose gradient is smaller have nothing to say; their norm has no derivative at 0.
_SMALLEST_SURPRISE = 1e-9
_FIX = (
    "main_loss has no second-order gradients: make the forward pass inside"
    " twice_differentiable(model)"
)


def surprise_minimization_loss(main_loss: Tensor, calls: Sequence[RoutedCall]) -> Tensor:
    """SML = Σ_j -s_j log s_j over the neurons of all routed layers; trains sigma and gate only.

        S_j  = || dL / dy_j ||₂ over all tokens        surprise of neuron j, S_j <= 1e-9 left out
        S'_j = S_j * (share of tokens that open j)     the share is a constant
        s_j  = S'_j / (e² max_j S'_j)                  the maximum is a constant

    -s log s rises only below s = 1/e; the division keeps every s at 1/e² or less, so that less
    surprise is always less loss, for the most surprising neuron too. A layer that is called several
    times counts as one: its tokens are those of all calls.

    S is itself a gradient, so its own gradient is of second order: make the forward pass inside
    `twice_differentiable`. It is computed here and reaches the layers' ``sigma_raw`` and ``gate``
    alone; the graph of ``main_loss`` stays usable.

    Args:
        main_loss: scalar L with its graph.
        calls: what `record_routing` collected while L was computed; calls of experts do not
            count.

    Returns:
        A scalar, in float32 or wider; 0 without a gradient if no neuron has a surprise.

    Raises:
        ValueError: ``calls`` has no call of a sparse Bayesian or sparse proto layer.
        RuntimeError: the forward pass had no second-order gradients.

    Source: docs/learning.md.
    """
    neurons = [call for call in calls if isinstance(call, NeuronCall)]
    if not neurons:
        raise ValueError("calls has no routed neurons: record a model that has SBL or SPL layers")
    outputs = [call.y for call in neurons]
    grads = torch.autograd.grad(main_loss, outputs, create_graph=True, allow_unused=True)
    loss = _negated_x_log_x(_discounted_surprises(neurons, grads))
    if not is_twice_differentiable(loss):
        raise RuntimeError(_FIX)
    try:
        return only_to(loss, [p for call in neurons for p in call.routing_parameters()])
    except RuntimeError as error:
        if "is not implemented" in str(error):
            raise RuntimeError(_FIX) from error
        raise


def _discounted_surprises(calls: Sequence[NeuronCall], grads: Sequence[Tensor | None]) -> Tensor:
    """S' of every neuron that has one, [neurons]."""
    squares: dict[str, Tensor] = {}
    open_tokens: dict[str, Tensor] = {}
    tokens: dict[str, int] = {}
    for call, grad in zip(calls, grads, strict=True):
        if grad is None:
            continue
        wide = grad.to(torch.promote_types(grad.dtype, torch.float32)).flatten(0, -2)
        is_open = (call.weight.detach() > 0).flatten(0, -2)
        name = call.name
        squares[name] = squares.get(name, 0) + wide.square().sum(0)
        open_tokens[name] = open_tokens.get(name, 0) + is_open.sum(0)
        tokens[name] = tokens.get(name, 0) + len(is_open)
    if not squares:
        return torch.zeros(0)
    square = torch.cat(list(squares.values()))
    rate = torch.cat([open_tokens[name].to(square) / tokens[name] for name in squares])
    # Squares are compared before the root is taken: at 0 its derivative is infinite.
    kept = (square.detach() > _SMALLEST_SURPRISE**2) & (rate > 0)
    return square[kept].sqrt() * rate[kept]


def _negated_x_log_x(surprises: Tensor) -> Tensor:
    if surprises.numel() == 0:
        return surprises.sum()
    scaled = surprises / (math.e**2 * surprises.detach().max())
    return -(scaled * scaled.log()).sum()
