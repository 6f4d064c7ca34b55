"""Native sparse attention as a layer: plain projections, branch gates, the NSA core."""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

import torch
from torch import Tensor, nn

from dynnsiha.attention import KVCache, NSAConfig, cached_attention, native_sparse_attention
from dynnsiha.attention.api import check_backend
from dynnsiha.attention.compression import CompressionFactory
from dynnsiha.attention.config import BRANCHES
from dynnsiha.attention.outputs import NSAAux
from dynnsiha.forms.layer import (
    AttentionCore,
    AttentionLayer,
    CoreRouting,
    HeadLayout,
    causal_attention,
    linear_projections,
)

_QKV = tuple[Tensor, Tensor, Tensor]
_Summaries = tuple[Tensor | None, Tensor | None]
GateKind = Literal["sigmoid", "softmax"]
GateStart = Literal["even", "sliding"]
# "sliding": a new layer reads its window first, the other branches start at sigmoid(-2) = 0.12.
_START: dict[GateStart, dict[str, float]] = {
    "even": dict.fromkeys(BRANCHES, 0.0),
    "sliding": {"compressed": -2.0, "selected": -2.0, "sliding": 2.0},
}


class BranchGates(nn.Module):
    """How much each head of each token takes from each branch: x [B, T, d] → gates [B, T, H, 3].

    Args:
        d_model: width of x.
        q_heads: query heads H.
        kind: "sigmoid" gates are independent; "softmax" gates share one unit among the branches.
        branches: those in use; softmax gives the others nothing.

    Raises:
        ValueError: an unknown kind.
    """

    used: Tensor

    def __init__(
        self,
        d_model: int,
        q_heads: int,
        kind: GateKind = "sigmoid",
        branches: tuple[str, ...] = BRANCHES,
    ) -> None:
        super().__init__()
        if kind not in ("sigmoid", "softmax"):
            raise ValueError(f"gates={kind!r}: must be 'sigmoid' or 'softmax'")
        self.q_heads, self.kind = q_heads, kind
        self.linear = nn.Linear(d_model, q_heads * len(BRANCHES))
        used = torch.tensor([branch in branches for branch in BRANCHES])
        self.register_buffer("used", used, persistent=False)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw the weights afresh; the biases favour the sliding branch."""
        self.linear.reset_parameters()
        self.start("sliding")

    @torch.no_grad()
    def start(self, start: GateStart) -> None:
        """Set the biases: "even" opens all branches by half, "sliding" favours that one."""
        bias = [_START[start][branch] for branch in BRANCHES] * self.q_heads
        self.linear.bias.copy_(torch.tensor(bias))

    def forward(self, x: Tensor) -> Tensor:
        """x [B, T, d_model] → gates [B, T, H, 3] in the order compressed, selected, sliding."""
        logits = self.linear(x).unflatten(-1, (self.q_heads, len(BRANCHES)))
        if self.kind == "sigmoid":
            return logits.sigmoid()
        return logits.masked_fill(~self.used, -torch.inf).softmax(dim=-1)


class SparseCore(AttentionCore):
    """Branch gates and the NSA core, with block summaries by means or by networks.

    While ``selects_all`` is True, every query selects all blocks, whatever its list would be, but
    for tokens that follow a cache (`DenseWarmup`). Where torch's dense attention stands for that,
    there are no lists: the routing's ``attention`` is None.

    Args:
        d_model: width of x, which the gates read.
        layout: heads and their width.
        config: what a query attends to.
        backend: see `native_sparse_attention`.
        gates: kind of gates, see `BranchGates`.
        compression: makes the networks that summarise k and v, one each: a class such as
            `GroupedMLPCompress`, or a ``functools.partial`` of it. None summarises by means.
    """

    def __init__(
        self,
        d_model: int,
        layout: HeadLayout,
        config: NSAConfig,
        *,
        backend: str = "auto",
        gates: GateKind = "sigmoid",
        compression: CompressionFactory | None = None,
    ) -> None:
        super().__init__()
        check_backend(backend)
        self.config = config.resolved(layout.q_heads, layout.kv_heads)
        self.backend = backend
        self.selects_all = False
        self.gates = BranchGates(d_model, layout.q_heads, gates, self.config.branches)
        self.compress_k: nn.Module | None = None
        self.compress_v: nn.Module | None = None
        if compression is not None:
            sizes = (self.config.compress_block, self.config.compress_stride)
            self.compress_k = compression(layout.kv_heads, layout.head_dim, *sizes)
            self.compress_v = compression(layout.kv_heads, layout.head_dim, *sizes)

    @property
    def cache_config(self) -> NSAConfig:
        """See `AttentionCore`."""
        return self.config

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
        """See `AttentionCore`."""
        gates, networks = self.gates(x), None
        aux: NSAAux | None
        if self.compress_k is not None and self.compress_v is not None:
            networks = self.compress_k, self.compress_v
        if cache is not None:
            o, aux = cached_attention(
                q, k, v, gates, cache, backend=self.backend, summarise=networks
            )
        else:
            summaries = (None, None) if networks is None else (networks[0](k), networks[1](v))
            o, aux = self._attend_new((q, k, v), gates, summaries)
        return o, CoreRouting(gates=gates, attention=aux) if return_routing else CoreRouting()

    def _attend_new(
        self, qkv: _QKV, gates: Tensor, summaries: _Summaries
    ) -> tuple[Tensor, NSAAux | None]:
        """The output of tokens that follow nothing, and its lists if there are any.

        What is asked for beside the output changes none of its bits, nor which tensors are kept for
        the backward pass: activation checkpointing computes it again without being asked.
        """
        if not self.selects_all:
            return self._attend(self.config, qkv, gates, summaries)
        if self._needs_lists:
            every = _listing_all(self.config, qkv[0].shape[1])
            return self._attend(every, qkv, gates, summaries)
        return self._with_all_blocks(qkv, gates, summaries), None

    @property
    def _needs_lists(self) -> bool:
        """Whether dense attention cannot stand for lists of all blocks: their choice has a gradient
        of its own, or there is no branch that selects."""
        return self.config.differentiable_topk or "selected" not in self.config.branches

    def _attend(
        self, config: NSAConfig, qkv: _QKV, gates: Tensor, summaries: _Summaries
    ) -> tuple[Tensor, NSAAux]:
        return native_sparse_attention(
            *(*qkv, gates, config),
            backend=self.backend,
            k_cmp=summaries[0],
            v_cmp=summaries[1],
            return_aux=True,
        )

    def _with_all_blocks(self, qkv: _QKV, gates: Tensor, summaries: _Summaries) -> Tensor:
        """The output with all blocks selected: that branch is then dense attention, which torch
        computes faster than lists of every block, and in any number of blocks."""
        with torch.autocast(gates.device.type, enabled=False):
            selected = (gates[..., 1:2] * causal_attention(*qkv)).to(qkv[0].dtype)
        others = tuple(branch for branch in self.config.branches if branch != "selected")
        if not others:
            return selected
        rest = replace(self.config, branches=others)
        return self._attend(rest, qkv, gates, summaries)[0] + selected


def _listing_all(config: NSAConfig, seq_len: int) -> NSAConfig:
    """``config`` with lists of every block of ``seq_len`` tokens."""
    return replace(config, top_n=max(config.top_n, -(-seq_len // config.block_size)), top_p=None)


class NativeSparseAttention(AttentionLayer):
    """NSA (arXiv 2502.11089) with plain linear projections: x [B, T, d_model] → y [B, T, d_model].

    Args:
        d_model: width of x and y.
        q_heads, kv_heads, head_dim: kv_heads defaults to q_heads, head_dim to d_model / q_heads.
        config: what a query attends to; `NSAConfig.paper()` by default.
        backend: see `native_sparse_attention`.
        gates: "sigmoid" or "softmax".
        compression: of k and v into summaries, see `SparseCore`; means by default.
        rotary_base: base of the rotary positions; None for none.

    Raises:
        ValueError: the heads do not fit together, or head_dim is odd with rotary positions.
    """

    def __init__(
        self,
        d_model: int,
        q_heads: int,
        kv_heads: int | None = None,
        head_dim: int | None = None,
        config: NSAConfig | None = None,
        backend: str = "auto",
        *,
        gates: GateKind = "sigmoid",
        compression: CompressionFactory | None = None,
        rotary_base: float | None = 10_000.0,
    ) -> None:
        layout = HeadLayout.of(d_model, q_heads, kv_heads, head_dim)
        config = NSAConfig.paper() if config is None else config
        core = SparseCore(
            d_model, layout, config, backend=backend, gates=gates, compression=compression
        )
        super().__init__(layout, linear_projections(d_model, layout), core, rotary_base=rotary_base)
