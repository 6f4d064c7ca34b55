"""The differentiable operator over all chunks of queries."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..config import BRANCHES, NSAConfig
from ..lists import tile_lists
from ..outputs import BlockIndices, NSAAux
from ..summaries import mean_summaries
from . import compressed, selected, sliding
from .shapes import Problem, accumulation_dtype, heads_first, heads_last


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
    """The core on any device (semantics.md, section 3). Arguments as ``native_sparse_attention``."""
    if k_cmp is None or v_cmp is None:
        k_cmp = mean_summaries(k, config.compress_block, config.compress_stride)
        v_cmp = mean_summaries(v, config.compress_block, config.compress_stride)
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
        operands = _Operands(problem, q, k, v, k_cmp, v_cmp, gates)
        choose = shared is None
        lists = _Lists(problem, operands.q, shared, private)
        wide = accumulation_dtype(q.dtype)
        out = torch.empty_like(operands.q, dtype=wide)
        o_slc = torch.empty_like(operands.q)
        lse = torch.full(operands.q.shape[:-1], float("-inf"), dtype=wide, device=q.device)
        for heads, begin, end in problem.chunks(lists.slots):
            here = operands.of(heads)
            o_cmp, chosen, own = compressed.forward(
                problem, here.q, here.k_cmp, here.v_cmp, begin, end, choose
            )
            if chosen is not None and own is not None:
                lists.put(heads, begin, end, chosen, own)
            used = "compressed" in problem.config.branches
            total = o_cmp.mul_(here.gate("compressed", begin, end)) if used else o_cmp.zero_()
            if "selected" in problem.config.branches:
                chunk = here.q[:, begin:end]
                o, lse[heads, begin:end] = selected.forward(
                    problem, chunk, here.k, here.v, lists.of(heads, begin, end), begin
                )
                o_slc[heads, begin:end] = o
                total += o.mul_(here.gate("selected", begin, end))
            if "sliding" in problem.config.branches:
                o = sliding.forward(problem, here.q, here.k, here.v, begin, end)
                total += o.mul_(here.gate("sliding", begin, end))
            out[heads, begin:end] = total
        batch = q.shape[0]
        ctx.problem = problem
        ctx.save_for_backward(q, k, v, k_cmp, v_cmp, gates, o_slc, lse, lists.shared, lists.private)
        results = (
            heads_last(out, batch, problem.seq_len).to(q.dtype),
            heads_last(lse[..., None], batch, problem.seq_len)[..., 0].contiguous(),
            lists.public(lists.shared, batch, -(-problem.seq_len // problem.tile)),
            lists.public(lists.private, batch, problem.seq_len),
        )
        ctx.mark_non_differentiable(*results[1:])
        return results

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
        problem = ctx.problem
        q, k, v, k_cmp, v_cmp, gates, o_slc, lse, shared, private = ctx.saved_tensors
        operands = _Operands(problem, q, k, v, k_cmp, v_cmp, gates)
        lists = _Lists(problem, operands.q, shared, private, public=False)
        wide = accumulation_dtype(q.dtype)
        grads = heads_first(grad, k.shape[2], problem.padded_len)
        dq = torch.empty_like(operands.q, dtype=wide)
        dgates = torch.zeros_like(operands.gates)
        dk, dv, dk_cmp, dv_cmp = (
            torch.zeros_like(x, dtype=wide)
            for x in (operands.k, operands.v, operands.k_cmp, operands.v_cmp)
        )
        for heads, begin, end in problem.chunks(lists.slots):
            here, rows = operands.of(heads), slice(begin, end)
            total = torch.zeros(here.q[:, rows].shape, dtype=wide, device=q.device)
            if "compressed" in problem.config.branches:
                part, dgates[heads, rows, :, 0] = compressed.backward(
                    problem,
                    here.q,
                    here.k_cmp,
                    here.v_cmp,
                    here.gates[..., 0],
                    grads[heads],
                    begin,
                    end,
                    dk_cmp[heads],
                    dv_cmp[heads],
                )
                total += part
            if "selected" in problem.config.branches:
                delta = (grads[heads, rows].to(wide) * o_slc[heads, rows]).sum(-1)
                dgates[heads, rows, :, 1] = delta
                total += selected.backward(
                    problem, here.q[:, rows], here.k, here.v, grads[heads, rows], lse[heads, rows], delta, here.gates[:, rows, :, 1],
                    lists.of(heads, begin, end), begin, dk[heads], dv[heads],
                )  # fmt: skip
            if "sliding" in problem.config.branches:
                part, dgates[heads, rows, :, 2] = sliding.backward(
                    problem,
                    here.q,
                    here.k,
                    here.v,
                    here.gates[..., 2],
                    grads[heads],
                    begin,
                    end,
                    dk[heads],
                    dv[heads],
                )
                total += part
            dq[heads, rows] = total
        batch, length = q.shape[0], problem.seq_len
        return (
            heads_last(dq, batch, length).to(q.dtype),
            *(heads_last(x[:, :, None], batch, length).to(q.dtype) for x in (dk, dv)),
            *(heads_last(x[:, :, None], batch, x.shape[1]).to(q.dtype) for x in (dk_cmp, dv_cmp)),
            heads_last(dgates, batch, length).to(gates.dtype),
            None,
            None,
            None,
        )


class _Operands:
    """Operands heads first: q [N, T', G, D], k, v [N, T', D], summaries [N, n, D], gates [N, T', G, 3]."""

    def __init__(
        self,
        problem: Problem,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        k_cmp: Tensor,
        v_cmp: Tensor,
        gates: Tensor,
    ) -> None:
        kv_heads, length = k.shape[2], problem.padded_len
        self.q = heads_first(q, kv_heads, length)
        self.k, self.v = (heads_first(x, kv_heads, length)[:, :, 0] for x in (k, v))
        self.k_cmp, self.v_cmp = (
            heads_first(x, kv_heads, x.shape[1])[:, :, 0] for x in (k_cmp, v_cmp)
        )
        self.gates = heads_first(gates.to(accumulation_dtype(q.dtype)), kv_heads, length)

    def of(self, heads: slice) -> _Operands:
        """The operands of some rows of heads."""
        part = object.__new__(_Operands)
        for name, tensor in vars(self).items():
            setattr(part, name, tensor[heads])
        return part

    def gate(self, branch: str, begin: int, end: int) -> Tensor:
        """Gate of a branch for a chunk of queries: [N, C, G, 1]."""
        return self.gates[:, begin:end, :, BRANCHES.index(branch), None]


class _Lists:
    """Shared [N, tiles, s] and private [N, T', m] lists, given or filled chunk by chunk."""

    def __init__(
        self,
        problem: Problem,
        q: Tensor,
        shared: Tensor | None,
        private: Tensor | None,
        public: bool = True,
    ) -> None:
        self.problem = problem
        config: NSAConfig = problem.config
        heads, length = problem.heads, problem.padded_len
        if shared is None:
            mine = 0 if problem.tile == 1 else config.private_blocks
            sizes = ((length // problem.tile, config.top_n - mine), (length, mine))
            self.shared, self.private = (
                torch.empty(heads, *size, dtype=torch.int32, device=q.device) for size in sizes
            )
        elif public:
            none = shared.new_empty(*shared.shape[:1], problem.seq_len, shared.shape[2], 0)
            self.shared = self._padded(shared, length // problem.tile)
            self.private = self._padded(none if private is None else private, length)
        else:
            assert private is not None
            self.shared, self.private = shared, private
        self.slots = max(1, self.shared.shape[-1], self.private.shape[-1])

    @staticmethod
    def _padded(index: Tensor, length: int) -> Tensor:
        """[B, tiles, K, n] as [B K, length, n], padded with empty lists."""
        rows = index.transpose(1, 2).flatten(0, 1)
        return torch.nn.functional.pad(
            rows, (0, 0, 0, length - rows.shape[1]), value=-1
        ).contiguous()

    def put(self, heads: slice, begin: int, end: int, shared: Tensor, private: Tensor) -> None:
        """Store the lists chosen for a chunk of queries."""
        tile = self.problem.tile
        self.shared[heads, begin // tile : end // tile] = shared
        self.private[heads, begin:end] = private

    def of(self, heads: slice, begin: int, end: int) -> list[Tensor]:
        """The lists of a chunk that have slots."""
        tile = self.problem.tile
        both = (self.shared[heads, begin // tile : end // tile], self.private[heads, begin:end])
        return [x.contiguous() for x in both if x.shape[-1]] or [
            both[0].new_full((*both[0].shape[:2], 1), -1)
        ]

    @staticmethod
    def public(index: Tensor, batch: int, length: int) -> Tensor:
        """[B K, tiles, n] in the form of the public interface, [B, length, K, n]."""
        return index.unflatten(0, (batch, -1)).transpose(1, 2)[:, :length].contiguous()
