"""DynSIHA, dimension form: every feature of q, k, v and the output is routed on its own."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dynnsiha.attention.cache import KVCache
from dynnsiha.forms.layer import AttentionLayer, DenseCore, HeadLayout, LayerRouting
from dynnsiha.synthesis.routing import Mask, Router
from dynnsiha.synthesis.sbl import activation_rate
from dynnsiha.synthesis.spl import SparseProtoLinear

_EPS = 1e-6


class ProtoProjections(nn.Module):
    """q, k and v by a `SparseProtoLinear` each: x [B, T, d] → [B, T, (H + 2 K) D].

    Args:
        d_model: width of x.
        layout: heads and their width.
        router, mask: of each SPL.
    """

    def __init__(
        self, d_model: int, layout: HeadLayout, *, router: Router = "dot", mask: Mask = "relu"
    ) -> None:
        super().__init__()
        kv_width = layout.kv_heads * layout.head_dim
        self.q = SparseProtoLinear(d_model, layout.output_width, router=router, mask=mask)
        self.k = SparseProtoLinear(d_model, kv_width, router=router, mask=mask)
        self.v = SparseProtoLinear(d_model, kv_width, router=router, mask=mask)

    def forward(self, x: Tensor, *, return_routing: bool = False) -> Tensor | tuple[Tensor, Tensor]:
        """q, k and v side by side; with ``return_routing`` also their masks, in the same layout."""
        made = [layer(x, return_routing=True) for layer in (self.q, self.k, self.v)]
        values, masks = (torch.cat(parts, dim=-1) for parts in zip(*made, strict=True))
        return (values, masks) if return_routing else values


class ProtoOutput(nn.Module):
    """What was attended to y, by a `SparseProtoLinear`: o [B, T, H D] → [B, T, d].

    Its router reads o / RMS(o): averages of masked values are far smaller than the unit variance
    that routers are made for, and would open next to nothing.

    Args:
        d_model: width of y.
        layout: heads and their width.
        router, mask: of the SPL.
    """

    def __init__(
        self, d_model: int, layout: HeadLayout, *, router: Router = "dot", mask: Mask = "relu"
    ) -> None:
        super().__init__()
        self.proto = SparseProtoLinear(layout.output_width, d_model, router=router, mask=mask)

    def forward(self, o: Tensor, *, return_routing: bool = False) -> Tensor | tuple[Tensor, Tensor]:
        """y, and with ``return_routing`` its mask [B, T, d]."""
        direction = F.rms_norm(o, o.shape[-1:], eps=_EPS)
        return self.proto(o, direction, return_routing=return_routing)


class DimensionDynSIHA(AttentionLayer):
    """Four SPLs make q, k, v and the output, a mask per feature.

    x [B, T, d_model] → y [B, T, d_model]. Deprecated: features die, since under relu one that no
    token opens is never trained again. It stays as a row to compare with; `collapsed_share` says
    how many of its neurons no token has opened. Its routing holds the masks of q, k, v side by side
    and of the output.

    Args:
        d_model: width of x and y.
        heads, kv_heads, head_dim: defaults are one head as wide as the model.
        router, mask: of each SPL, see `SparseProtoLinear`.
        rotary_base: base of the rotary positions; None for none.

    Raises:
        ValueError: the heads do not fit together, head_dim is odd with rotary positions, or an
            unknown router or mask.
    """

    def __init__(
        self,
        d_model: int,
        heads: int = 1,
        kv_heads: int | None = None,
        head_dim: int | None = None,
        *,
        router: Router = "dot",
        mask: Mask = "relu",
        rotary_base: float | None = 10_000.0,
    ) -> None:
        layout = HeadLayout.of(d_model, heads, kv_heads, head_dim)
        projections = (
            ProtoProjections(d_model, layout, router=router, mask=mask),
            ProtoOutput(d_model, layout, router=router, mask=mask),
        )
        super().__init__(layout, projections, DenseCore(), rotary_base=rotary_base)

    def _attend(
        self, x: Tensor, positions: Tensor | None, cache: KVCache | None, return_routing: bool
    ) -> Tensor | tuple[Tensor, LayerRouting]:
        qkv, qkv_mask = self.qkv(x, return_routing=True)
        q, k, v = self.layout.split(qkv)
        q, k = self.rotate(q, k, positions)
        o, _ = self.core(q, k, v, x, cache=cache)
        y, output_mask = self.output(o.flatten(-2), return_routing=True)
        return (y, LayerRouting(qkv=qkv_mask, output=output_mask)) if return_routing else y


def collapsed_share(*masks: Tensor) -> Tensor:
    """Share of neurons that no token has opened, a scalar in [0, 1].

    Args:
        masks: the routing of one or more layers, [..., d_out] each, over all the tokens to count;
            the weights of experts (`ExpertRouting.expert_weights`) serve as well.

    Raises:
        ValueError: no mask is given.
    """
    if not masks:
        raise ValueError("masks: give the routing of at least one layer")
    return torch.cat([activation_rate(mask, per_neuron=True) == 0 for mask in masks]).float().mean()
