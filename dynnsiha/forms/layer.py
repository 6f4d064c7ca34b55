"""What every attention form shares: project, place, attend, project back."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dynnsiha.attention.cache import KVCache
from dynnsiha.attention.decode import cached_dense_attention
from dynnsiha.synthesis.rotary import apply_rotary, rotary_tables
from dynnsiha.synthesis.sbl import Init, Routing, SparseBayesianLinear

if TYPE_CHECKING:
    from dynnsiha.attention import NSAAux, NSAConfig

Synthesis = Literal["all", "values"]


@dataclass(frozen=True)
class HeadLayout:
    """Query heads H, key/value heads K and head width D of an attention layer.

    Raises:
        ValueError: a number below 1, or kv_heads does not divide q_heads.
    """

    q_heads: int
    kv_heads: int
    head_dim: int

    def __post_init__(self) -> None:
        for name in ("q_heads", "kv_heads", "head_dim"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)}: must be at least 1")
        if self.q_heads % self.kv_heads:
            raise ValueError(f"kv_heads={self.kv_heads}: must divide q_heads={self.q_heads}")

    @classmethod
    def of(
        cls, d_model: int, q_heads: int, kv_heads: int | None, head_dim: int | None
    ) -> HeadLayout:
        """Fill in the defaults: as many K/V heads as query heads, d_model / q_heads wide.

        Raises:
            ValueError: head_dim is left out and q_heads does not divide d_model.
        """
        if head_dim is None:
            if q_heads < 1 or d_model % q_heads:
                raise ValueError(
                    f"q_heads={q_heads}: must divide d_model={d_model}, or give head_dim"
                )
            head_dim = d_model // q_heads
        return cls(q_heads, q_heads if kv_heads is None else kv_heads, head_dim)

    @property
    def qkv_width(self) -> int:
        """Features that hold q, k and v of one token: (H + 2 K) D."""
        return (self.q_heads + 2 * self.kv_heads) * self.head_dim

    @property
    def output_width(self) -> int:
        """Features that hold the attention output of one token: H D."""
        return self.q_heads * self.head_dim

    def split(self, qkv: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """qkv [B, T, (H + 2 K) D] → q [B, T, H, D], k and v [B, T, K, D]."""
        heads = qkv.unflatten(-1, (self.q_heads + 2 * self.kv_heads, self.head_dim))
        q, k, v = heads.split((self.q_heads, self.kv_heads, self.kv_heads), dim=-2)
        return q, k, v


@dataclass(frozen=True)
class CoreRouting:
    """What an attention core decided: gates [B, T, H, 3] and block lists; None where none."""

    gates: Tensor | None = None
    attention: NSAAux | None = None


@dataclass(frozen=True)
class LayerRouting(CoreRouting):
    """Everything the input decided in one layer: what `return_routing=True` returns.

    Attributes:
        gates: branch gates [B, T, H, 3] of a sparse core.
        attention: block lists and counts of a sparse core.
        qkv: weights of the SBL that makes q, k, v, [B, T, (H + 2 K) D]; None for a plain linear.
        output: weights of the output SBL [B, T, d_model]; None for a plain linear.
    """

    qkv: Tensor | None = None
    output: Tensor | None = None


class AttentionCore(nn.Module):
    """(q, k, v) → o with what it needs to know of x; the part that differs between forms."""

    def forward(
        self, q: Tensor, k: Tensor, v: Tensor, x: Tensor, *, return_routing: bool = False
    ) -> tuple[Tensor, CoreRouting]:
        """q [B, T, H, D], k, v [B, T, K, D], x [B, T, d_model] → o [B, T, H, D] and its routing.

        A core that can decode also takes ``cache``, a `KVCache` or None: the T tokens follow those
        in it, and it takes them over.
        """
        raise NotImplementedError

    @property
    def cache_config(self) -> NSAConfig | None:
        """What a `KVCache` for this core must know; None for dense attention."""
        raise NotImplementedError(f"{type(self).__name__}: cannot decode, it takes no cache")


def causal_attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Dense causal attention by torch: q [B, T, H, D], k, v [B, T, K, D] → o [B, T, H, D]."""
    grouped = q.shape[-2] != k.shape[-2]
    q, k, v = (part.transpose(1, 2) for part in (q, k, v))
    o = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=grouped)
    return o.transpose(1, 2)


class DenseCore(AttentionCore):
    """Dense causal attention over all past tokens, scale 1 / sqrt(D).

    Args:
        attention: any function of (q, k, v) in the layout above; torch's own by default. What
            follows a cache is attended by torch's own in any case.
    """

    def __init__(self, attention: Callable[[Tensor, Tensor, Tensor], Tensor] | None = None) -> None:
        super().__init__()
        self.attention = causal_attention if attention is None else attention

    def forward(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        x: Tensor,
        *,
        cache: KVCache | None = None,
        return_routing: bool = False,
    ) -> tuple[Tensor, CoreRouting]:
        """See `AttentionCore`; x is not used."""
        if cache is None:
            return self.attention(q, k, v), CoreRouting()
        if any(cache.lengths):
            return cached_dense_attention(q, k, v, cache), CoreRouting()
        cache.append(k, v)
        return self.attention(q, k, v), CoreRouting()

    @property
    def cache_config(self) -> None:
        """See `AttentionCore`."""
        return None


def linear_projections(d_model: int, layout: HeadLayout) -> tuple[nn.Module, nn.Module]:
    """Plain linear maps without bias: d_model → q, k, v and o → d_model."""
    qkv = nn.Linear(d_model, layout.qkv_width, bias=False)
    return qkv, nn.Linear(layout.output_width, d_model, bias=False)


def synthesis_projections(
    d_model: int, layout: HeadLayout, *, init: Init, routing: Routing, synthesis: Synthesis = "all"
) -> tuple[nn.Module, nn.Module]:
    """The same two maps as SBLs: what ``synthesis`` names and the output come from the input.

    Raises:
        ValueError: synthesis is neither "all" nor "values".
    """
    if synthesis not in get_args(Synthesis):
        raise ValueError(f"synthesis={synthesis!r}: must be one of {list(get_args(Synthesis))}")
    qkv: nn.Module
    if synthesis == "all":
        qkv = SparseBayesianLinear(d_model, layout.qkv_width, init=init, routing=routing)
    else:
        qkv = ValueSynthesis(d_model, layout, init=init, routing=routing)
    return qkv, SparseBayesianLinear(layout.output_width, d_model, init=init, routing=routing)


class ValueSynthesis(nn.Module):
    """q and k by a plain linear map, v by an SBL: x [..., d_model] → q, k, v [..., (H + 2 K) D]."""

    def __init__(self, d_model: int, layout: HeadLayout, *, init: Init, routing: Routing) -> None:
        super().__init__()
        value_width = layout.kv_heads * layout.head_dim
        self.plain = nn.Linear(d_model, layout.qkv_width - value_width, bias=False)
        self.values = SparseBayesianLinear(d_model, value_width, init=init, routing=routing)

    def forward(self, x: Tensor, *, return_routing: bool = False) -> Tensor | tuple[Tensor, Tensor]:
        """As `SparseBayesianLinear`; the routing is that of v's neurons."""
        values, weight = self.values(x, return_routing=True)
        qkv = torch.cat([self.plain(x), values], -1)
        return (qkv, weight) if return_routing else qkv


class AttentionLayer(nn.Module):
    """x [B, T, d_model] → y [B, T, d_model]: project, rotate q and k, attend, project back.

    Args:
        layout: heads and their width.
        projections: (d_model → (H + 2 K) D, H D → d_model), from `linear_projections` or
            `synthesis_projections`.
        core: what happens between them.
        rotary_base: base of the rotary positions; None leaves q and k without positions.

    Raises:
        ValueError: head_dim is odd where positions are rotary; x has not three dimensions, or does
            not fit the cache.
    """

    def __init__(
        self,
        layout: HeadLayout,
        projections: tuple[nn.Module, nn.Module],
        core: AttentionCore,
        *,
        rotary_base: float | None = 10_000.0,
    ) -> None:
        super().__init__()
        if rotary_base is not None and layout.head_dim % 2:
            raise ValueError(
                f"head_dim={layout.head_dim}: rotary positions need an even width,"
                " or pass rotary_base=None"
            )
        self.layout = layout
        self.rotary_base = rotary_base
        self.qkv, self.output = projections
        self.core = core

    def rotate(self, q: Tensor, k: Tensor, positions: Tensor | None) -> tuple[Tensor, Tensor]:
        """q and k turned by absolute positions [T] or [B, T] (0 ... T - 1 when None)."""
        if self.rotary_base is None:
            return q, k
        if positions is None:
            positions = torch.arange(q.shape[1], device=q.device)
        precision = torch.promote_types(q.dtype, torch.float32)
        tables = rotary_tables(
            positions, self.layout.head_dim, base=self.rotary_base, dtype=precision
        )
        return apply_rotary(q, *tables), apply_rotary(k, *tables)

    def new_cache(
        self,
        batch: int,
        max_len: int,
        *,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
    ) -> KVCache:
        """An empty `KVCache` for this layer: ``batch`` sequences of at most ``max_len`` tokens.

        dtype and device are those of the layer's parameters unless given.
        """
        weight = next(self.parameters())
        return KVCache(
            batch,
            max_len,
            self.layout.q_heads,
            self.layout.kv_heads,
            self.layout.head_dim,
            config=self.core.cache_config,
            dtype=weight.dtype if dtype is None else dtype,
            device=weight.device if device is None else device,
        )

    def forward(
        self,
        x: Tensor,
        positions: Tensor | None = None,
        *,
        cache: KVCache | None = None,
        return_routing: bool = False,
    ) -> Tensor | tuple[Tensor, LayerRouting]:
        """x [B, T, d_model], positions [T] or [B, T] → y [B, T, d_model], and routing if wanted.

        With a ``cache`` from `new_cache`, x are the tokens after those in it, which they see; the
        cache takes them over: all of them or, if the call fails, none. The outputs of all calls are
        those of one call over all tokens. Without ``positions`` they count on from what the cache
        holds. No gradient flows.
        """
        if x.dim() != 3:
            raise ValueError(f"x: must be [batch, seq_len, d_model], got {list(x.shape)}")
        if cache is not None:
            if x.shape[0] != len(cache.lengths):
                raise ValueError(
                    f"x: has batch {x.shape[0]}, the cache {len(cache.lengths)}; make them equal"
                )
            cache.require_room(x.shape[1])
            if positions is None:
                positions = cache.positions(x.shape[1])
            with cache.unless_it_fails(), torch.no_grad():
                return self._attend(x, positions, cache, return_routing)
        return self._attend(x, positions, None, return_routing)

    def _attend(
        self, x: Tensor, positions: Tensor | None, cache: KVCache | None, return_routing: bool
    ) -> Tensor | tuple[Tensor, LayerRouting]:
        qkv, qkv_routing = _routed(self.qkv, x, return_routing)
        q, k, v = self.layout.split(qkv)
        q, k = self.rotate(q, k, positions)
        decoding = {} if cache is None else {"cache": cache}
        o, core_routing = self.core(q, k, v, x, return_routing=return_routing, **decoding)
        y, output_routing = _routed(self.output, o.flatten(-2), return_routing)
        if not return_routing:
            return y
        return y, LayerRouting(
            gates=core_routing.gates,
            attention=core_routing.attention,
            qkv=qkv_routing,
            output=output_routing,
        )


def _routed(layer: nn.Module, x: Tensor, wanted: bool) -> tuple[Tensor, Tensor | None]:
    """Output of a projection, and its routing where it has one and it is wanted."""
    if wanted and isinstance(layer, (SparseBayesianLinear, ValueSynthesis)):
        return layer(x, return_routing=True)
    return layer(x), None
