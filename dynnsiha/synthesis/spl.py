"""The sparse proto linear layer: what is computed and when are separate parameters."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dynnsiha.synthesis.routing import Mask, Router, make_router
from dynnsiha.synthesis.sbl import Init


class SparseProtoLinear(nn.Module):
    """Linear layer whose output features are masked by how well x fits their prototypes.

        comp = SiLU(x) muᵀ                              [..., d_out]
        mask = router(x): relu or softmax of its logits [..., d_out], relu: exactly 0 where closed
        y    = comp * mask

    so the effective matrix diag(mask(x)) mu is a function of x. `SparseBayesianLinear` uses mu in
    both places; here ``mu`` computes and the router's own prototypes match.

    Args:
        d_in, d_out: widths.
        router: "dot", "cpr" (`CosinePrototypeRouting`) or "capr"
            (`CrossAttentionPrototypeRouting`).
        mask: "relu" or "softmax".
        init: of the router, "calibrated" or "notes" (no rescaling of its logits).
        open_share: share of the mask with a logit above 0 at initialisation, about; below 1/2 for
            "cpr".

    Raises:
        ValueError: a width below 1, or what the router refuses.
    """

    def __init__(
        self,
        d_in: int,
        d_out: int,
        *,
        router: Router = "dot",
        mask: Mask = "relu",
        init: Init = "calibrated",
        open_share: float = 0.25,
    ) -> None:
        super().__init__()
        for name, width in (("d_in", d_in), ("d_out", d_out)):
            if width < 1:
                raise ValueError(f"{name}={width}: must be at least 1")
        self.d_in, self.d_out = d_in, d_out
        self.router = make_router(router, d_in, d_out, mask=mask, init=init, open_share=open_share)
        self.mu = nn.Parameter(torch.empty(d_out, d_in))
        self._reset_mu()

    def reset_parameters(self) -> None:
        """Draw the parameters afresh, the router's too."""
        self._reset_mu()
        self.router.reset_parameters()

    def _reset_mu(self) -> None:
        nn.init.kaiming_uniform_(self.mu, a=math.sqrt(5))

    def forward(
        self, x: Tensor, routing_input: Tensor | None = None, *, return_routing: bool = False
    ) -> Tensor | tuple[Tensor, Tensor]:
        """x [..., d_in] → y [..., d_out]; with ``return_routing`` also the mask [..., d_out].

        ``routing_input`` [..., d_in] is what the router reads in place of x: the stream of a
        `PrototypeResident`.
        """
        mask = self.router(x if routing_input is None else routing_input)
        y = F.linear(F.silu(x), self.mu) * mask
        return (y, mask) if return_routing else y

    def extra_repr(self) -> str:
        return f"{self.d_in}, {self.d_out}"
