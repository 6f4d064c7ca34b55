"""Prototype routers: how strongly an input opens each of n prototypes.

A prototype stands for whatever is routed to: a feature of `SparseProtoLinear`, an expert of a
mixture. The three routers differ in the score alone; each score has unit variance at initialisation
for input of unit variance, so that one threshold opens the same share of prototypes in all of them.
"""

from __future__ import annotations

import math
from statistics import NormalDist
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dynnsiha.synthesis.sbl import NORM_EPS, Init

Mask = Literal["relu", "softmax"]
Router = Literal["dot", "cpr", "capr"]

_CALIBRATION_INPUTS = 1024
# One that nobody seeds a model with: else the inputs would be the very numbers the keys were.
_CALIBRATION_SEED = 0x9E3779B97F4A7C15


class PrototypeRouter(nn.Module):
    """What the routers share: x [..., d_in] → logits [..., n] → weights [..., n] >= 0.

    A subclass computes `logits`: how far each prototype's score lies above its threshold. It holds
    routing parameters only, so an auxiliary loss on the logits trains nothing else.

    Args:
        d_in: width of x.
        num_prototypes: n.
        mask: "relu" gives relu(logits), exact zeros where closed; "softmax" gives weights that
            sum to 1, none of them 0.
        open_share: share of the prototypes with a logit above 0 at initialisation, about, for
            input of unit variance; in (0, 1).

    Raises:
        ValueError: a width below 1, an unknown mask, or an open_share out of range.
    """

    def __init__(
        self, d_in: int, num_prototypes: int, *, mask: Mask = "relu", open_share: float = 0.25
    ) -> None:
        super().__init__()
        for name, width in (("d_in", d_in), ("num_prototypes", num_prototypes)):
            if width < 1:
                raise ValueError(f"{name}={width}: must be at least 1")
        if mask not in ("relu", "softmax"):
            raise ValueError(f"mask={mask!r}: must be 'relu' or 'softmax'")
        if not 0 < open_share < 1:
            raise ValueError(f"open_share={open_share}: must lie between 0 and 1")
        self.d_in, self.num_prototypes = d_in, num_prototypes
        self.mask: Mask = mask
        self.open_share = open_share

    @property
    def initial_threshold(self) -> float:
        """What ``open_share`` of the standard normal distribution lies above."""
        return NormalDist().inv_cdf(1 - self.open_share)

    def reset_parameters(self) -> None:
        """Draw the parameters afresh."""
        raise NotImplementedError

    def logits(self, x: Tensor) -> Tensor:
        """Score minus threshold for x [..., d_in], the router's belief, [..., n]."""
        raise NotImplementedError

    def weights(self, logits: Tensor) -> Tensor:
        """logits [..., n] → weights [..., n] by the mask."""
        return torch.relu(logits) if self.mask == "relu" else logits.softmax(dim=-1)

    def forward(self, x: Tensor, *, return_logits: bool = False) -> Tensor | tuple[Tensor, Tensor]:
        """x [..., d_in] → weights [..., n]; with ``return_logits`` also the logits [..., n]."""
        logits = self.logits(x)
        weights = self.weights(logits)
        return (weights, logits) if return_logits else weights

    def extra_repr(self) -> str:
        return f"{self.d_in}, {self.num_prototypes}, mask={self.mask!r}"


class DotPrototypeRouting(PrototypeRouter):
    """Routing by match: logits = x protoᵀ / sqrt(d_in) - gate.

    A long x opens more than a short one, and a token may open nothing. Arguments and errors as in
    `PrototypeRouter`.
    """

    def __init__(
        self, d_in: int, num_prototypes: int, *, mask: Mask = "relu", open_share: float = 0.25
    ) -> None:
        super().__init__(d_in, num_prototypes, mask=mask, open_share=open_share)
        self.proto = nn.Parameter(torch.empty(num_prototypes, d_in))
        self.gate = nn.Parameter(torch.empty(num_prototypes))
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Draw the prototypes afresh and set the gates to the initial threshold."""
        nn.init.normal_(self.proto)
        nn.init.constant_(self.gate, self.initial_threshold)

    def logits(self, x: Tensor) -> Tensor:
        """See `PrototypeRouter.logits`."""
        return F.linear(x, self.proto / math.sqrt(self.d_in), -self.gate)


class CosinePrototypeRouting(PrototypeRouter):
    """Cosine prototype routing (CPR): by direction alone, and never nowhere.

        logits  = c (cos(x, proto) - sigmoid(gate))         [..., n]
        weights = relu(logits), straight through            [..., n]

    Scaling x by a positive number changes nothing. The gradient passes a closed prototype as if it
    were open (straight-through), so that one can open again. A token that opens none takes its best
    prototype alone, with weight sigmoid(logit / c): at least 0.12, at most 1/2, whatever the width.
    ``c`` is the buffer ``score_scale``.

    Args:
        d_in, num_prototypes: widths.
        mask: "relu" as above, or "softmax" of the logits.
        init: "calibrated" sets c = sqrt(d_in), which gives c cos unit variance; "notes" keeps c =
            1, and weights of the order 1 / sqrt(d_in).
        open_share: as in `PrototypeRouter`; below 1/2, because the threshold is positive.

    Raises:
        ValueError: as in `PrototypeRouter`, an unknown init, or an open_share that no threshold
            between 0 and 1 gives at this width.
    """

    score_scale: Tensor

    def __init__(
        self,
        d_in: int,
        num_prototypes: int,
        *,
        mask: Mask = "relu",
        init: Init = "calibrated",
        open_share: float = 0.25,
    ) -> None:
        super().__init__(d_in, num_prototypes, mask=mask, open_share=open_share)
        _require_init(init)
        # The cosine of a random direction has variance 1 / d_in.
        self._threshold = self.initial_threshold / math.sqrt(d_in)
        if not 0 < self._threshold < 1:
            raise ValueError(
                f"open_share={open_share}: a cosine threshold between 0 and 1 cannot give it at"
                f" d_in={d_in}; take a share nearer to 0.25"
            )
        self.init = init
        self.proto = nn.Parameter(torch.empty(num_prototypes, d_in))
        self.gate = nn.Parameter(torch.empty(num_prototypes))
        self.register_buffer("score_scale", torch.ones(()))
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Draw the prototypes afresh and set gates and ``score_scale``."""
        nn.init.normal_(self.proto)
        nn.init.constant_(self.gate, math.log(self._threshold / (1 - self._threshold)))
        self.score_scale.fill_(math.sqrt(self.d_in) if self.init == "calibrated" else 1.0)

    def logits(self, x: Tensor) -> Tensor:
        """See `PrototypeRouter.logits`."""
        proto = F.normalize(self.proto, dim=-1, eps=NORM_EPS) * self.score_scale
        threshold = torch.sigmoid(self.gate) * self.score_scale
        return F.linear(F.normalize(x, dim=-1, eps=NORM_EPS), proto, -threshold)

    def weights(self, logits: Tensor) -> Tensor:
        """logits [..., n] → weights [..., n], at least one of them above 0."""
        if self.mask == "softmax":
            return logits.softmax(dim=-1)
        # z + (relu(z) - z) is exactly relu(z), and exactly 0 where closed.
        straight_through = logits + (torch.relu(logits) - logits).detach()
        best, winner = logits.max(dim=-1, keepdim=True)
        places = torch.arange(logits.shape[-1], device=logits.device)
        fallback = (best <= 0) & (places == winner)
        return torch.where(fallback, torch.sigmoid(logits / self.score_scale), straight_through)


class CrossAttentionPrototypeRouting(PrototypeRouter):
    """Cross-attention prototype routing (CAPR): x asks a small learned memory whom to open.

        attention = softmax(RMSNorm(x) keysᵀ / sqrt(d_in))  [..., slots]
        logits    = c attention values - gate               [..., n]
        weights   = relu(logits)                            [..., n]

    The attention averages ``values``, which shrinks them: without c (``init="notes"``) the logits'
    standard deviation at initialisation is 0.2 for 64 slots, and softmax(logits), a softmax after
    a softmax, is nearly uniform: over 64 prototypes its largest weight is 0.02 for the average
    token and below 0.1 for every one, where 0.016 is uniform. So c, the buffer ``score_scale``,
    is set at initialisation to give unit variance, and the logits are thresholded: the largest
    weight is then 1.6 for the average token, and softmax(logits), the named alternative, has 0.1.

    Args:
        d_in, num_prototypes: widths.
        slots: entries of the memory, at least 2.
        mask: "relu" as above, or "softmax" of the logits.
        init: "calibrated", or "notes" for c = 1.
        open_share: as in `PrototypeRouter`. A token may open nothing.

    Raises:
        ValueError: as in `PrototypeRouter`, fewer than 2 slots, or an unknown init.
    """

    score_scale: Tensor

    def __init__(
        self,
        d_in: int,
        num_prototypes: int,
        *,
        slots: int = 64,
        mask: Mask = "relu",
        init: Init = "calibrated",
        open_share: float = 0.25,
    ) -> None:
        super().__init__(d_in, num_prototypes, mask=mask, open_share=open_share)
        _require_init(init)
        if slots < 2:
            raise ValueError(f"slots={slots}: must be at least 2, one slot gives every x the same")
        self.init = init
        self.keys = nn.Parameter(torch.empty(slots, d_in))
        self.values = nn.Parameter(torch.empty(slots, num_prototypes))
        self.gate = nn.Parameter(torch.empty(num_prototypes))
        self.register_buffer("score_scale", torch.ones(()))
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Draw the memory afresh and set gates and ``score_scale`` to match it."""
        nn.init.normal_(self.keys)
        nn.init.normal_(self.values)
        self.score_scale.fill_(1.0)
        if self.init == "calibrated":
            # Otherwise the mean value of a prototype, the same for all x, decides if it opens.
            self.values.sub_(self.values.mean(dim=0))
            self.score_scale.copy_(self._spread().reciprocal())
        nn.init.constant_(self.gate, self.initial_threshold)
        if self.init == "notes":
            self.gate.mul_(self._spread())

    def _spread(self) -> Tensor:
        """Standard deviation of the scores at c = 1 for inputs of unit variance."""
        generator = torch.Generator().manual_seed(_CALIBRATION_SEED)
        # A generator of its own leaves the global stream as it is; on a CPU, also where modules are
        # made on another device, so that the same inputs calibrate on all.
        x = torch.randn(_CALIBRATION_INPUTS, self.d_in, generator=generator, device="cpu")
        return self._recall(x.to(self.keys), self.values).std()

    def _recall(self, x: Tensor, values: Tensor, offset: Tensor | None = None) -> Tensor:
        normal = F.rms_norm(x, (self.d_in,), eps=NORM_EPS)
        attention = F.linear(normal, self.keys / math.sqrt(self.d_in)).softmax(dim=-1)
        return F.linear(attention, values.T, offset)

    def logits(self, x: Tensor) -> Tensor:
        """See `PrototypeRouter.logits`."""
        return self._recall(x, self.values * self.score_scale, -self.gate)


def make_router(
    kind: Router,
    d_in: int,
    num_prototypes: int,
    *,
    mask: Mask = "relu",
    init: Init = "calibrated",
    open_share: float = 0.25,
) -> PrototypeRouter:
    """The router called ``kind``: "dot", "cpr" or "capr".

    Raises:
        ValueError: an unknown kind, or what the router itself refuses.
    """
    if kind == "dot":
        _require_init(init)
        return DotPrototypeRouting(d_in, num_prototypes, mask=mask, open_share=open_share)
    if kind == "cpr":
        return CosinePrototypeRouting(
            d_in, num_prototypes, mask=mask, init=init, open_share=open_share
        )
    if kind == "capr":
        return CrossAttentionPrototypeRouting(
            d_in, num_prototypes, mask=mask, init=init, open_share=open_share
        )
    raise ValueError(f"router={kind!r}: must be 'dot', 'cpr' or 'capr'")


def _require_init(init: str) -> None:
    if init not in ("calibrated", "notes"):
        raise ValueError(f"init={init!r}: must be 'calibrated' or 'notes'")
