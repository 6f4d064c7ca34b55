"""One call of a routed layer: what came in, what was opened, and whom it concerns."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dynnsiha.forms.expert_block import ExpertHeads, ExpertMLP
from dynnsiha.forms.experts import ExpertRouting
from dynnsiha.learning.gradient_norms import expert_gradient_norms, neuron_gradient_norms
from dynnsiha.synthesis.sbl import SparseBayesianLinear
from dynnsiha.synthesis.spl import SparseProtoLinear


@dataclass(frozen=True)
class NeuronCall:
    """A call of a layer y = weight * value(x), whose modules are its neurons.

    Attributes:
        name: the layer's name in the model.
        layer: the layer.
        x: its input [..., d_in].
        routing_input: what its router read [..., d_in]; x unless the call gave another.
        weight: the multipliers [..., d_out], 0 where a neuron is closed.
        y: its output [..., d_out].
    """

    name: str
    layer: SparseBayesianLinear | SparseProtoLinear
    x: Tensor
    routing_input: Tensor
    weight: Tensor
    y: Tensor

    @property
    def outputs(self) -> tuple[Tensor, ...]:
        """Tensors in the graph whose gradients `gradient_norms` wants."""
        return (self.y,)

    def logits(self) -> Tensor:
        """How far each neuron's score lies above its threshold, [..., d_out], computed again.

        The graph goes back to the layer's own parameters only: the input counts as given.
        """
        given = self.routing_input.detach()
        if isinstance(self.layer, SparseProtoLinear):
            return self.layer.router.logits(given)
        return self.layer.score(given) - self.layer.gate

    def gradient_norms(self, grads: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """Of each token and neuron: |dL/dy| and ||dL/dmu||, both [..., d_out]."""
        x = self.x.detach()
        u = F.silu(x) if isinstance(self.layer, SparseProtoLinear) else x
        return neuron_gradient_norms(grads[0], self.weight.detach(), u)

    def routing_parameters(self) -> list[nn.Parameter]:
        """What decides which neurons open, the value matrix left out."""
        if isinstance(self.layer, SparseProtoLinear):
            return list(self.layer.router.parameters())
        return [self.layer.sigma_raw, self.layer.gate]

    def value_parameters(self) -> list[nn.Parameter]:
        """What computes the value, a row a neuron: [d_out, d_in] and, with a bias, [d_out]."""
        bias = getattr(self.layer, "bias", None)
        return [self.layer.mu] if bias is None else [self.layer.mu, bias]


@dataclass(frozen=True)
class ExpertCall:
    """A call of a layer y = Σ_e weight_e E_e(x), whose modules are its experts.

    Attributes:
        name: the layer's name in the model.
        layer: the layer.
        routing_input: what its router read [B, T, d].
        routing: what the router decided.
        weight: the experts' weights [B, T, E], 0 for those not taken, without a graph.
    """

    name: str
    layer: ExpertHeads | ExpertMLP
    routing_input: Tensor
    routing: ExpertRouting
    weight: Tensor

    @property
    def outputs(self) -> tuple[Tensor, ...]:
        """See `NeuronCall.outputs`: every sum over experts that was made with these weights."""
        return self.routing.mixtures

    def logits(self) -> Tensor:
        """See `NeuronCall.logits`: [B, T, E]."""
        return self.layer.router.prototypes.logits(self.routing_input.detach())

    def gradient_norms(self, grads: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """Of each token and expert ||dL/dE_e(x)|| = |weight_e| ||dL/dy||, all sums together.

        It is importance and cost alike: of the experts' inner inputs nothing is kept.
        """
        norms = torch.stack([expert_gradient_norms(grad, self.weight)[0] for grad in grads])
        norm = norms.norm(dim=0)
        return norm, norm

    def routing_parameters(self) -> list[nn.Parameter]:
        """What decides which experts are taken."""
        return list(self.layer.router.parameters())

    def value_parameters(self) -> list[nn.Parameter]:
        """The experts' banks, [E, d_in, d_out] each."""
        first = self.layer.qkv if isinstance(self.layer, ExpertHeads) else self.layer.inner
        return [first.weight, self.layer.output.weight]


RoutedCall = NeuronCall | ExpertCall
