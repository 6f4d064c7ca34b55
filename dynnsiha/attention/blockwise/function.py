"""The differentiable operator over all chunks of queries."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..config import NSAConfig
from ..first_order import first_order
from ..lists import private_size, shared_size, tile_lists
from ..outputs import BlockIndices, NSAAux
from ..per_head import query_heads_apart
from ..stages import stage
from ..summaries import mean_summaries
from . import compressed, selected, sliding
from .operands import Gradients, Operands, Problem, Scratch, heads_first, heads_last


def blockwise(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    gates: Tensor,
    config: NSAConfig,
    *,
    block_indices: BlockIndices | None = None,
    k_cmp: Tensor | None = None,
    v_cmp: Tensor | None = None,
    scale: float | None = None,
) -> tuple[Tensor, NSAAux]:
    """The core on any device (docs/architecture.md); as ``native_sparse_attention``."""
    if k_cmp is None or v_cmp is None:
        with stage("summaries"):
            k_cmp = mean_summaries(k, config.compress_block, config.compress_stride)
            v_cmp = mean_summaries(v, config.compress_block, config.compress_stride)
    if config.per_head_lists:
        return query_heads_apart(
            blockwise,
            *(q, k, v, gates, config),
            block_indices=block_indices,
            k_cmp=k_cmp,
            v_cmp=v_cmp,
            scale=scale,
        )
    problem = Problem.of(q, k, config, q.shape[-1] ** -0.5 if scale is None else scale)
    given: tuple[Tensor | None, Tensor | None] = (None, None)
    if block_indices is not None:
        given = (block_indices, None) if isinstance(block_indices, Tensor) else block_indices
    out, lse, shared, private = _Blockwise.apply(q, k, v, k_cmp, v_cmp, gates, problem, *given)
    per_tile = (shared >= 0).sum(-1, dtype=torch.int32)[..., None]
    counts = tile_lists(per_tile.transpose(1, 2), problem.tile, problem.seq_len).transpose(1, 2)[
        ..., 0
    ]
    counts = counts + (private >= 0).sum(-1, dtype=torch.int32)
    indices = shared if problem.tile == 1 else (shared, private)
    return out, NSAAux(indices, counts, lse, "blockwise")


def _own_precision(method: Callable[..., Any]) -> Callable[..., Any]:
    """Run outside autocast, as the forward pass does: backward may be called inside of it."""

    @functools.wraps(method)
    def run(ctx: Any, first: Tensor, *rest: Any) -> Any:
        with torch.autocast(first.device.type, enabled=False):
            return method(ctx, first, *rest)

    return run


class _Blockwise(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        k_cmp: Tensor,
        v_cmp: Tensor,
        gates: Tensor,
        problem: Problem,
        shared: Tensor | None,
        private: Tensor | None,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        training = problem.differentiate and any(ctx.needs_input_grad)
        with stage("prepare"):
            operands = Operands.of_call(problem, q, k, v, k_cmp, v_cmp, gates)
            lists = _Lists.of_call(problem, q.device, shared, private)
            out = torch.zeros_like(operands.q, dtype=operands.dtype)
            o_slc = torch.empty_like(operands.q) if training else operands.q[:0]
            lse = out.new_full(out.shape[:-1], float("-inf"))
        scratch, branches = Scratch(), problem.config.branches
        for heads, begin, end in problem.chunks(lists.slots):
            x, total = operands.of(heads), out[heads, begin:end]
            choose = shared is None and "selected" in branches
            if choose or "compressed" in branches:
                with stage("compressed"):
                    o, chosen, own = compressed.forward(x, begin, end, choose)
                    if chosen is not None and own is not None:
                        lists.put(heads, begin, end, chosen, own)
                    if "compressed" in branches:
                        total.addcmul_(o, x.gate("compressed", begin, end))
            if "selected" in branches:
                with stage("pairs"):
                    here = lists.of(heads, begin, end)
                    o, lse[heads, begin:end] = selected.forward(x, here, begin, end, scratch)
                    if training:
                        o_slc[heads, begin:end] = o
                    total.addcmul_(o, x.gate("selected", begin, end))
            if "sliding" in branches:
                with stage("sliding"):
                    o = sliding.forward(x, begin, end)
                    total.addcmul_(o, x.gate("sliding", begin, end))
        ctx.problem, ctx.chosen = problem, shared is None
        saved = (q, k, v, k_cmp, v_cmp, gates, o_slc, lse, lists.shared, lists.private)
        ctx.save_for_backward(*saved)
        batch, length = q.shape[0], problem.seq_len
        with stage("finish"):
            results = (
                heads_last(out, batch, length).to(q.dtype),
                heads_last(lse[..., None], batch, length)[..., 0].contiguous(),
                _public(lists.shared, batch, -(-length // problem.tile)),
                _public(lists.private, batch, length),
            )
        ctx.mark_non_differentiable(*results[1:])
        return results

    @staticmethod
    @_own_precision
    @first_order
    def backward(ctx: Any, saved: Sequence[Any], grad: Tensor) -> tuple[Tensor | None, ...]:
        problem = ctx.problem
        q, k, v, k_cmp, v_cmp, gates, o_slc, lse, shared, private = saved
        with stage("prepare"):
            operands = Operands.of_call(problem, q, k, v, k_cmp, v_cmp, gates)
            grad = heads_first(grad.to(q.dtype), k.shape[2], problem.padded_len)
            all_grads = Gradients.zeros(operands, grad)
        lists = _Lists(problem, shared, private)
        scratch, branches = Scratch(), problem.config.branches
        for heads, begin, end in problem.chunks(lists.slots):
            x, grads, scores = operands.of(heads), all_grads.of(heads), None
            if "selected" in branches:
                with stage("pairs backward"):
                    here = lists.of(heads, begin, end)
                    rest = o_slc[heads], lse[heads], here, begin, end, scratch
                    slots = selected.backward(x, grads, *rest)
                    if slots and ctx.chosen:
                        scores = compressed.ScoreGradients(here, slots, begin)
            if "compressed" in branches or scores is not None:
                with stage("compressed backward"):
                    compressed.backward(x, grads, begin, end, scores)
            if "sliding" in branches:
                with stage("sliding backward"):
                    sliding.backward(x, grads, begin, end)
        keys = (all_grads.k, all_grads.v, all_grads.k_cmp, all_grads.v_cmp)
        batch, length = q.shape[0], problem.seq_len
        summaries = k_cmp.shape[1]
        with stage("finish"):
            return (
                heads_last(all_grads.q, batch, length).to(q.dtype),
                *(heads_last(x[:, :, None], batch, length).to(q.dtype) for x in keys[:2]),
                *(heads_last(x[:, :, None], batch, summaries).to(q.dtype) for x in keys[2:]),
                heads_last(all_grads.gates, batch, length).to(gates.dtype),
                None,
                None,
                None,
            )


@dataclass(frozen=True)
class _Lists:
    """Shared [N, tiles, s] and private [N, T, m] lists, T padded to whole blocks."""

    problem: Problem
    shared: Tensor
    private: Tensor

    @classmethod
    def of_call(
        cls, problem: Problem, device: torch.device, shared: Tensor | None, private: Tensor | None
    ) -> _Lists:
        """The given lists, or room for the ones to be chosen."""
        config, length = problem.config, problem.padded_len
        if shared is None:
            sizes = (length // problem.tile, shared_size(config)), (length, private_size(config))
            made = [
                torch.full((problem.heads, *size), -1, dtype=torch.int32, device=device)
                for size in sizes
            ]
            return cls(problem, *made)
        if private is None:
            private = shared.new_empty(shared.shape[0], problem.seq_len, shared.shape[2], 0)
        return cls(problem, _padded(shared, length // problem.tile), _padded(private, length))

    @property
    def slots(self) -> int:
        """Partial outputs that a query leaves at a time."""
        return max(1, self.shared.shape[-1], self.private.shape[-1])

    def put(self, heads: slice, begin: int, end: int, shared: Tensor, private: Tensor) -> None:
        """Store the lists chosen for a chunk of queries."""
        tile = self.problem.tile
        self.shared[heads, begin // tile : end // tile] = shared
        self.private[heads, begin:end] = private

    def of(self, heads: slice, begin: int, end: int) -> list[Tensor]:
        """The lists of a chunk: the shared ones, and the private ones if there are any."""
        tile = self.problem.tile
        shared = self.shared[heads, begin // tile : end // tile]
        private = self.private[heads, begin:end]
        return [x.contiguous() for x in (shared, private) if x.shape[-1] or x is shared]


def _padded(index: Tensor, length: int) -> Tensor:
    """[B, tiles, K, n] as [B K, length, n], padded with empty lists."""
    rows = index.transpose(1, 2).flatten(0, 1)
    return torch.nn.functional.pad(rows, (0, 0, 0, length - rows.shape[1]), value=-1).contiguous()


def _public(index: Tensor, batch: int, length: int) -> Tensor:
    """[B K, tiles, n] in the form of the public interface, [B, length, K, n]."""
    return index.unflatten(0, (batch, -1)).transpose(1, 2)[:, :length].contiguous()
