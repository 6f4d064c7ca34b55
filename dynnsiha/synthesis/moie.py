"""MoIE: a feed-forward layer in which each neuron is an expert that the input opens."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from dynnsiha.synthesis.sbl import Init, Routing, SparseBayesianLinear

# Root mean square of SiLU(SBL(x)) at initialisation, for x of unit variance and any width.
_HIDDEN_RMS = 0.645


class MoIE(nn.Module):
    """x [..., d] → SBL (d → 4d) → SiLU → SBL (4d → d) → y [..., d].

    A mixture whose experts are the neurons of two `SparseBayesianLinear`: there is no router beside
    them and no load to balance. The second layer is calibrated for what the first one and SiLU make
    of an input of unit variance, so that about 0.54 of its weights are open at initialisation, as
    of the first one's.

    Args:
        d_model: d.
        expansion: hidden width over d.
        init, routing: of both layers.

    Raises:
        ValueError: a width below 1, or an unknown init or routing.
    """

    def __init__(
        self,
        d_model: int,
        *,
        expansion: int = 4,
        init: Init = "calibrated",
        routing: Routing = "dot",
    ) -> None:
        super().__init__()
        if expansion < 1:
            raise ValueError(f"expansion={expansion}: must be at least 1")
        hidden = expansion * d_model
        self.inner = SparseBayesianLinear(d_model, hidden, init=init, routing=routing)
        self.output = SparseBayesianLinear(
            hidden, d_model, init=init, routing=routing, input_rms=_HIDDEN_RMS
        )

    def forward(
        self, x: Tensor, *, return_routing: bool = False
    ) -> Tensor | tuple[Tensor, tuple[Tensor, Tensor]]:
        """x [..., d] → y [..., d]; with ``return_routing`` also both layers' weights.

        The weights are those of the first layer [..., 4d] and of the second [..., d].
        """
        hidden, inner_weight = self.inner(x, return_routing=True)
        y, output_weight = self.output(F.silu(hidden), return_routing=True)
        return (y, (inner_weight, output_weight)) if return_routing else y
