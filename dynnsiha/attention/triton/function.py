"""The differentiable operator: which kernel runs when, and what is kept for the backward pass."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..config import NSAConfig
from ..lists import private_size, shared_size
from ..outputs import BlockIndices, NSAAux
from ..stages import stage
from . import choice, compressed, keys, pairs, summaries, sums, tiles
from .geometry import Geometry
from .lists import Lists, plan
from .order import Order, Segments, by_block
from .prepare import prepare
from .problem import Operands, Outputs, Piece, Problem
from .sources import bulk_copies_serve

_SEGMENT_ROWS = 2048  # queries times heads that one program takes for its block
_LN2 = 0.6931471805599453


def triton_kernels(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    gates: Tensor,
    config: NSAConfig,
    *,
    bounds: list[int] | None = None,
    block_indices: BlockIndices | None = None,
    k_cmp: Tensor | None = None,
    v_cmp: Tensor | None = None,
    scale: float | None = None,
) -> tuple[Tensor, NSAAux]:
    """The core on a GPU (docs/architecture.md); as ``native_sparse_attention``.

    ``bounds`` are those of packed sequences; without them each batch row is one sequence.
    """
    flat = [None if x is None else _flat(x) for x in (q, k, v, gates, k_cmp, v_cmp)]
    batch, seq_len, heads, width = q.shape
    kv_heads = k.shape[2]
    if bounds is None:
        bounds = [seq_len * i for i in range(batch + 1)]
    assert isinstance(config.query_tile, int)
    geometry = Geometry(
        tuple(bounds),
        config.block_size,
        config.compress_block,
        config.compress_stride,
        config.query_tile,
        q.device,
    )
    problem = Problem(
        geometry,
        config,
        kv_heads,
        heads // kv_heads,
        width,
        width**-0.5 if scale is None else scale,
        block_indices is not None,
        torch.is_grad_enabled(),
        len(set(geometry.lengths)) == 1 and bulk_copies_serve(len(bounds) - 1, *flat[:3]),
    )
    lists = (None, None)
    if block_indices is not None:
        given = block_indices if isinstance(block_indices, tuple) else (block_indices, None)
        lists = tuple(None if x is None else _flat(x) for x in given)
    out, lse, shared, private = _Core.apply(*flat, problem, *lists)
    shared, private = (x.view(batch, len(x) // batch, *x.shape[1:]) for x in (shared, private))
    aux = NSAAux(
        shared if problem.tile == 1 else (shared, private),
        _counts(problem, shared, private),
        lse.view(batch, seq_len, heads),
        "triton",
    )
    return out.view(q.shape), aux


def _flat(x: Tensor) -> Tensor:
    """[B, T, ...] as [B T, ...] with the last dimension dense."""
    x = x.flatten(0, 1)
    return x if x.stride(-1) == 1 else x.contiguous()


class _Core(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        gates: Tensor,
        k_cmp: Tensor | None,
        v_cmp: Tensor | None,
        problem: Problem,
        shared: Tensor | None,
        private: Tensor | None,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        training = problem.differentiate and any(ctx.needs_input_grad)
        branches = problem.config.branches
        ctx.problem, ctx.pooled = problem, k_cmp is None
        gates = gates.contiguous()
        if k_cmp is None or v_cmp is None:
            with stage("summaries"):
                k_cmp, v_cmp = summaries.mean_summaries(k, v, problem.geometry)
        k_cmp, v_cmp = k_cmp.contiguous(), v_cmp.contiguous()
        operands = Operands(q, k, v, k_cmp, v_cmp, gates)
        choose = shared is None and "selected" in branches
        o_cmp = lse_cmp = None
        if choose or "compressed" in branches:
            with stage("compressed"):
                o_cmp, lse_cmp = compressed.forward(problem, q, k_cmp, v_cmp)
        if choose:
            assert lse_cmp is not None
            with stage("choice"):
                shared, private = choice.choose(problem, q, k_cmp, lse_cmp)
        shared, private = _public(problem, q.device, shared, private)
        lists = plan(problem, shared, private)
        outputs = _room(operands, o_cmp, lse_cmp, training)
        for piece in problem.pieces(lists.private.shape[-1]):
            parts = None
            if lists.private.shape[-1]:
                with stage("lists"):
                    order = _pairs_of(problem, piece, lists)
                with stage("pairs"):
                    parts = pairs.forward(problem, piece, lists, operands, order)
            with stage("tiles"):
                tiles.forward(problem, piece, operands, lists, parts, outputs)
        ctx.save_for_backward(
            *(q, k, v, k_cmp, v_cmp, gates, shared, private),
            *(outputs.compressed, outputs.selected, outputs.sliding),
            *(outputs.lse_compressed, outputs.lse_selected, outputs.lse_sliding),
        )
        lse = outputs.lse_selected * _LN2
        ctx.mark_non_differentiable(lse, shared, private)
        return outputs.out, lse, shared, private

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
        problem: Problem = ctx.problem
        q, k, v, k_cmp, v_cmp, gates, shared, private, *saved = ctx.saved_tensors
        operands = Operands(q, k, v, k_cmp, v_cmp, gates)
        outputs = Outputs(grad, *saved)
        branches = problem.config.branches
        with stage("prepare"):
            grads, dgates = prepare(problem, outputs, gates, grad.to(q.dtype).contiguous())
        dk_cmp = dv_cmp = None
        if "compressed" in branches:
            with stage("dkdv compressed"):
                dk_cmp, dv_cmp = compressed.backward(problem, operands, grads)
        lists = plan(problem, shared, private)
        dq = torch.empty(q.shape, dtype=q.dtype, device=q.device)
        dk, dv = (torch.empty(k.shape, dtype=k.dtype, device=k.device) for _ in range(2))
        pooled = (dk_cmp, dv_cmp) if ctx.pooled and dk_cmp is not None else None
        for pieces in problem.pieces_by_head(lists.private.shape[-1]):
            segments: list[Segments] = []
            for piece in pieces:
                part = None
                if lists.private.shape[-1]:
                    with stage("lists"):
                        order = _pairs_of(problem, piece, lists)
                    with stage("pairs backward"):
                        part, new = pairs.backward(problem, piece, lists, operands, grads, order)
                    segments = sums.joined(problem, piece, segments, new, last=piece is pieces[-1])
                with stage("dq"):
                    tiles.backward(problem, piece, operands, grads, lists, part, dq)
                del part
            whole = pieces[0]
            if lists.slots:
                with stage("lists"):
                    order = _units_of(problem, whole, lists)
                with stage("dkdv shared"):
                    segments.append(
                        pairs.backward_shared(problem, whole, lists, operands, grads, order)
                    )
            if lists.local or "sliding" in branches:
                with stage("dkdv sliding"):
                    segments.append(keys.backward(problem, whole, operands, grads, lists.local))
            with stage("finish"):
                sums.finish(problem, whole, segments, pooled, (dk, dv))
        none = (None, None, None)
        summaries_grad: tuple[Tensor | None, Tensor | None] = (None, None)
        if not ctx.pooled:
            summaries_grad = (
                torch.zeros_like(k_cmp) if dk_cmp is None else dk_cmp.mul_(problem.scale),
                torch.zeros_like(v_cmp) if dv_cmp is None else dv_cmp,
            )
            summaries_grad = tuple(x.to(k.dtype) for x in summaries_grad)
        return dq, dk, dv, dgates, *summaries_grad, *none


def _public(
    problem: Problem, device: torch.device, shared: Tensor | None, private: Tensor | None
) -> tuple[Tensor, Tensor]:
    """The lists as they are returned: empty ones where the selected branch is off."""
    config, geometry = problem.config, problem.geometry
    options = {"dtype": torch.int32, "device": device}
    if shared is None:
        shape = (geometry.tiles, problem.kv_heads, shared_size(config))
        shared = torch.full(shape, -1, **options)
        shape = (geometry.tokens, problem.kv_heads, private_size(config))
        private = torch.full(shape, -1, **options)
    if private is None:
        private = torch.empty(geometry.tokens, problem.kv_heads, 0, **options)
    return shared, private


def _room(
    operands: Operands, o_cmp: Tensor | None, lse_cmp: Tensor | None, training: bool
) -> Outputs:
    """Memory for what ``tiles`` writes: outputs of single branches for a backward pass only."""
    q = operands.q

    def rows() -> Tensor:
        return torch.empty(q.shape, dtype=q.dtype, device=q.device)

    def logs() -> Tensor:
        shape = q.shape[:2]
        return torch.full(shape, float("-inf"), dtype=torch.float32, device=q.device)

    if not training:
        return Outputs(rows(), o_cmp, None, None, None, logs(), None)
    return Outputs(rows(), o_cmp, rows(), rows(), lse_cmp, logs(), logs())


def _pairs_of(problem: Problem, piece: Piece, lists: Lists) -> Order:
    """Queries and the blocks that they chose alone, by block."""
    chosen = piece.of(lists.private)
    first = problem.first_blocks(piece.first_row, piece.rows)
    length = max(1, _SEGMENT_ROWS // problem.padded_group)
    return by_block(chosen, first, problem.geometry.blocks, length)


def _units_of(problem: Problem, piece: Piece, lists: Lists) -> Order:
    """Tiles and the blocks that they share, by block."""
    units, span = lists.units(problem)
    units = units[:, piece.first_head : piece.first_head + piece.heads]
    first = problem.geometry.programs(span)[:, 3] if span > 1 else problem.first_blocks(0, None)
    length = max(1, _SEGMENT_ROWS // (span * problem.padded_group))
    return by_block(units, first, problem.geometry.blocks, length)


def _counts(problem: Problem, shared: Tensor, private: Tensor) -> Tensor:
    """Blocks of each query: int32 [B, T, K]."""
    count = (shared >= 0).sum(-1, dtype=torch.int32)
    if problem.tile == 1:
        return count
    per_query = count.flatten(0, 1)[problem.geometry.tile_of_token()].view(private.shape[:3])
    return per_query + (private >= 0).sum(-1, dtype=torch.int32)
