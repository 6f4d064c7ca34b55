"""Attention-head experts, MLP experts, and the block that has a repository of each."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dynnsiha.attention.cache import KVCache
from dynnsiha.forms.experts import ExpertLinear, ExpertRouter, ExpertRouting
from dynnsiha.forms.layer import AttentionCore, AttentionLayer, DenseCore, HeadLayout, LayerRouting
from dynnsiha.synthesis.resident import PrototypeResident
from dynnsiha.synthesis.routing import Mask, Router

CoreFactory = Callable[[], AttentionCore]


@dataclass(frozen=True)
class ExpertHeadsRouting(LayerRouting):
    """`LayerRouting` of `ExpertHeads`, with the experts that every token took."""

    experts: ExpertRouting | None = None


@dataclass(frozen=True)
class BlockRouting:
    """What the input decided in one `ExpertBlock`."""

    heads: ExpertHeadsRouting
    mlp: ExpertRouting


class ExpertHeads(AttentionLayer):
    """Attention whose heads each token composes from a repository of head experts.

    A head expert holds a map to q, k and v and its share of the output map. Token t takes k experts
    with weights w_e(t), and uses them for all four:

        q_t, k_t, v_t = Σ_e w_e(t) W_e^qkv x_t
        o = attention(q, k, v);   y_t = Σ_e w_e(t) W_e^o o_t

    so its head is Σ_e w_e(t) W_e, one of infinitely many, which is never written down. Heads of all
    experts share one space: the query of one meets the keys of the others. Keys and values of a
    token are made once, whatever reads them, and a cache holds as many as without experts.

    Args:
        d_model: width of x and y.
        layout: H, K and D of the composed head.
        experts, active: E and k.
        router, mask: see `ExpertRouter`.
        core: attention between the projections.
        rotary_base: base of the rotary positions; None for none.

    Raises:
        ValueError: as in `AttentionLayer` and `ExpertRouter`.
    """

    qkv: ExpertLinear
    output: ExpertLinear

    def __init__(
        self,
        d_model: int,
        layout: HeadLayout,
        experts: int,
        active: int,
        *,
        router: Router = "cpr",
        mask: Mask = "relu",
        core: AttentionCore | None = None,
        rotary_base: float | None = 10_000.0,
    ) -> None:
        projections = (
            ExpertLinear(experts, d_model, layout.qkv_width),
            ExpertLinear(experts, layout.output_width, d_model),
        )
        core = DenseCore() if core is None else core
        super().__init__(layout, projections, core, rotary_base=rotary_base)
        self.router = ExpertRouter(d_model, experts, active, router=router, mask=mask)

    def forward(
        self,
        x: Tensor,
        positions: Tensor | None = None,
        *,
        cache: KVCache | None = None,
        return_routing: bool = False,
        routing_input: Tensor | None = None,
    ) -> Tensor | tuple[Tensor, LayerRouting]:
        """x [B, T, d_model], positions [T] or [B, T] → y [B, T, d_model], and routing if wanted.

        ``routing_input`` [B, T, d_model] is what the router reads in place of x. ``cache`` as in
        `AttentionLayer`.
        """
        if cache is not None and positions is None:
            positions = cache.positions(x.shape[1])
        keeping = nullcontext() if cache is None else cache.unless_it_fails()
        with keeping, torch.set_grad_enabled(torch.is_grad_enabled() and cache is None):
            choice = self.router(x if routing_input is None else routing_input)
            qkv = self.qkv.mix(x, choice)
            q, k, v = self.layout.split(qkv)
            q, k = self.rotate(q, k, positions)
            decoding = {} if cache is None else {"cache": cache}
            o, core = self.core(q, k, v, x, return_routing=return_routing, **decoding)
            y = self.output.mix(o.flatten(-2), choice)
        if not return_routing:
            return y
        return y, ExpertHeadsRouting(
            gates=core.gates, attention=core.attention, experts=choice.routing(qkv, y)
        )


class ExpertMLP(nn.Module):
    """x [B, T, d] → Σ_e w_e(x) W_e^out SiLU(W_e^in x) over the k experts that a token takes.

    Args:
        d_model: d.
        width: hidden width of one expert.
        experts, active: E and k.
        router, mask: see `ExpertRouter`.

    Raises:
        ValueError: a width below 1, or what the router refuses.
    """

    def __init__(
        self,
        d_model: int,
        width: int,
        experts: int,
        active: int,
        *,
        router: Router = "cpr",
        mask: Mask = "relu",
    ) -> None:
        super().__init__()
        self.inner = ExpertLinear(experts, d_model, width)
        self.output = ExpertLinear(experts, width, d_model)
        self.router = ExpertRouter(d_model, experts, active, router=router, mask=mask)

    def forward(
        self, x: Tensor, *, return_routing: bool = False, routing_input: Tensor | None = None
    ) -> Tensor | tuple[Tensor, ExpertRouting]:
        """x, and what the router reads in its place, [B, T, d] → y [B, T, d], and its routing."""
        choice = self.router(x if routing_input is None else routing_input)
        dispatch = choice.dispatch
        hidden = F.silu(self.inner(dispatch.spread(x.flatten(0, 1)), dispatch))
        rows = self.output(hidden, dispatch)
        y = dispatch.gather(rows, choice.weights.flatten(0, 1)).unflatten(0, x.shape[:2])
        return (y, choice.routing(y)) if return_routing else y


class ExpertBlock(nn.Module):
    """Head experts and MLP experts, each on a normalised input and added to its residual.

    Both routers read one resident stream (`PrototypeResident`): p ← normalised input + alpha p.

    Args:
        d_model: width.
        layout: H, K and D of the composed head.
        experts, active: E and k, of both kinds.
        width: hidden width of one MLP expert.
        router, mask: see `ExpertRouter`.
        alpha: share of the resident stream that is kept; 0 for none.
        core: attention of the head experts.
        rotary_base: base of the rotary positions; None for none.
    """

    def __init__(
        self,
        d_model: int,
        layout: HeadLayout,
        experts: int,
        active: int,
        width: int,
        *,
        router: Router,
        mask: Mask,
        alpha: float,
        core: AttentionCore,
        rotary_base: float | None,
    ) -> None:
        super().__init__()
        self.resident = PrototypeResident(alpha)
        self.heads_norm = nn.RMSNorm(d_model, eps=1e-6)
        self.heads = ExpertHeads(
            *(d_model, layout, experts, active),
            router=router,
            mask=mask,
            core=core,
            rotary_base=rotary_base,
        )
        self.mlp_norm = nn.RMSNorm(d_model, eps=1e-6)
        self.mlp = ExpertMLP(d_model, width, experts, active, router=router, mask=mask)

    def forward(
        self,
        x: Tensor,
        resident: Tensor | None,
        positions: Tensor | None,
        *,
        cache: KVCache | None = None,
        return_routing: bool = False,
    ) -> tuple[Tensor, Tensor, BlockRouting | None]:
        """x [B, T, d], the resident stream so far → update of x, resident stream, routing."""
        normal = self.heads_norm(x)
        resident = self.resident(normal, resident)
        attended, heads = self.heads(
            normal, positions, cache=cache, return_routing=True, routing_input=resident
        )
        normal = self.mlp_norm(x + attended)
        resident = self.resident(normal, resident)
        mapped, mlp = self.mlp(normal, return_routing=True, routing_input=resident)
        return attended + mapped, resident, BlockRouting(heads, mlp) if return_routing else None
