"""The differentiable operator: which kernel runs when, and what is kept for the backward pass."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from itertools import chain
from typing import Any

import torch
import triton
from torch import Tensor

from ...triton_device import aligned, kernels_operand
from ..config import NSAConfig
from ..first_order import first_order
from ..lists import private_size, shared_size
from ..outputs import BlockIndices, NSAAux
from ..stages import stage
from . import choice, compressed, compressed_choice, keys, pairs, summaries, sums, tiles
from .geometry import geometry_of
from .lists import Lists, plan
from .order import Order, Segments, by_block
from .prepare import prepare
from .problem import Operands, Outputs, Piece, Problem
from .sources import bulk_copies_serve

_SEGMENT_ROWS = 2048  # queries times heads that one program takes for its block
_QUERY_BYTES = 16 << 20  # of queries that are gathered again and again, so that a cache holds them
_LEAST_PAIRS = 48  # of a block and a part of the queries: they must pay for loading the block
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
    rows = [*(_flat(x) for x in (q, k, v)), _flat(gates).contiguous()]
    means = [None if x is None else aligned(_flat(x)) for x in (k_cmp, v_cmp)]
    given: list[Tensor | None] = [None, None]
    if isinstance(block_indices, Tensor):
        given[0] = _flat(block_indices).int()
    elif block_indices is not None:
        given = [_flat(x).int() for x in block_indices]
    with torch.cuda.device_of(q):  # launches go to the current device
        problem = _problem(q, k, rows, config, bounds, block_indices is not None, scale)
        out, lse, shared, private = _Core.apply(*rows, *means, problem, *given)
    batch = q.shape[0]
    shared, private = (x.view(batch, len(x) // batch, *x.shape[1:]) for x in (shared, private))
    aux = NSAAux(
        shared if problem.tile == 1 else (shared, private),
        partial(_counts, problem, shared, private),
        lse.view(q.shape[:3]),
        "triton",
    )
    return out.view(q.shape), aux


def _problem(
    q: Tensor,
    k: Tensor,
    rows: list[Tensor],
    config: NSAConfig,
    bounds: list[int] | None,
    given: bool,
    scale: float | None,
) -> Problem:
    """Sizes and settings; ``rows`` are q, k, v and gates without their batch dimension."""
    batch, seq_len, heads, width = q.shape
    assert isinstance(config.query_tile, int)
    geometry = geometry_of(
        tuple(seq_len * i for i in range(batch + 1)) if bounds is None else tuple(bounds),
        config.block_size,
        config.compress_block,
        config.compress_stride,
        config.query_tile,
        q.device,
    )
    return Problem(
        geometry,
        config,
        kv_heads=k.shape[2],
        group=heads // k.shape[2],
        head_dim=width,
        scale=width**-0.5 if scale is None else scale,
        given=given,
        differentiate=torch.is_grad_enabled(),
        bulk=geometry.uniform and bulk_copies_serve(len(geometry.lengths), *rows[:3]),
    )


def _flat(x: Tensor) -> Tensor:
    """[B, T, ...] as [B T, ...] with strides that kernels take."""
    return kernels_operand(x.flatten(0, 1))


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
        if k_cmp is None or v_cmp is None:
            with stage("summaries"):
                k_cmp, v_cmp = summaries.mean_summaries(k, v, problem.geometry)
        operands = Operands(q, k, v, k_cmp, v_cmp, gates)
        choose = shared is None and "selected" in branches
        o_cmp = lse_cmp = None
        if choose and compressed_choice.serves(problem):
            with stage("choice"):
                shared = choice.choose_shared(problem, q, k_cmp)
            with stage("compressed"):
                o_cmp, lse_cmp, private = compressed_choice.forward(
                    problem, q, k_cmp, v_cmp, shared
                )
        elif choose or "compressed" in branches:
            with stage("compressed"):
                o_cmp, lse_cmp = compressed.forward(problem, q, k_cmp, v_cmp)
            if choose:
                with stage("choice"):
                    shared, private = choice.choose(problem, q, k_cmp, lse_cmp)
        shared, private = _public(problem, q.device, shared, private)
        lists = plan(problem, shared, private)
        outputs = _room(problem, q, o_cmp, lse_cmp, training)
        pieces = problem.pieces(lists.private.shape[-1])
        orders = _pairs_by_block(problem, pieces, lists, _parts(problem, pieces, lists))
        for piece in chain(*pieces):
            parts = None
            if orders is not None:
                with stage("pairs"):
                    parts = pairs.forward(problem, piece, lists, operands, next(orders))
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
    @first_order
    def backward(ctx: Any, saved: Sequence[Any], grad: Tensor) -> tuple[Tensor | None, ...]:
        problem: Problem = ctx.problem
        q, k, v, k_cmp, v_cmp, gates, shared, private, *kept = saved
        operands = Operands(q, k, v, k_cmp, v_cmp, gates)
        outputs = Outputs(grad, *kept)
        branches = problem.config.branches
        with stage("prepare"):
            grads, dgates = prepare(problem, operands, outputs, aligned(grad.to(q.dtype)))
        of_means = None
        if "compressed" in branches:
            with stage("dkdv compressed"):
                of_means = compressed.backward(problem, operands, grads)
        lists = plan(problem, shared, private)
        dq = torch.empty(q.shape, dtype=q.dtype, device=q.device)
        dk, dv = (torch.empty(k.shape, dtype=k.dtype, device=k.device) for _ in range(2))
        pieces = problem.pieces(lists.private.shape[-1], backward=True)
        orders = _pairs_by_block(problem, pieces, lists)
        shared_orders = _units_by_block(problem, pieces, lists)
        for same_heads in pieces:
            whole = same_heads[0]
            segments: list[Segments] = []
            for piece in same_heads:
                part = None
                if orders is not None:
                    with stage("pairs backward"):
                        order = next(orders)
                        part, new = pairs.backward(problem, piece, lists, operands, grads, order)
                        last = piece is same_heads[-1]
                        segments = sums.joined(problem, piece, segments, new, last)
                with stage("dq"):
                    tiles.backward(problem, piece, operands, grads, lists, part, dq)
                del part
            if shared_orders is not None:
                with stage("dkdv shared"):
                    order = next(shared_orders)
                    new = pairs.backward_shared(problem, whole, lists, operands, grads, order)
                    segments.append(new)
            if lists.local or "sliding" in branches:
                with stage("dkdv sliding"):
                    segments.append(keys.backward(problem, whole, operands, grads, lists.local))
            with stage("finish"):
                sums.finish(problem, whole, segments, of_means if ctx.pooled else None, (dk, dv))
        dk_cmp = dv_cmp = None
        if not ctx.pooled:
            of_means = of_means or (torch.zeros_like(k_cmp), torch.zeros_like(v_cmp))
            dk_cmp = (of_means[0] * problem.scale).to(k.dtype)
            dv_cmp = of_means[1].to(v.dtype)
        return dq, dk, dv, dgates, dk_cmp, dv_cmp, None, None, None


def _public(
    problem: Problem, device: torch.device, shared: Tensor | None, private: Tensor | None
) -> tuple[Tensor, Tensor]:
    """The lists as they are returned: empty ones where the selected branch is off."""
    config, geometry, heads = problem.config, problem.geometry, problem.kv_heads

    def empty(units: int, slots: int) -> Tensor:
        return torch.full((units, heads, slots), -1, dtype=torch.int32, device=device)

    if shared is None:
        return empty(geometry.tiles, shared_size(config)), empty(
            geometry.tokens, private_size(config)
        )
    return shared, empty(geometry.tokens, 0) if private is None else private


def _room(
    problem: Problem, q: Tensor, o_cmp: Tensor | None, lse_cmp: Tensor | None, training: bool
) -> Outputs:
    """Memory for what ``tiles`` writes: outputs of single branches for a backward pass only."""

    def rows() -> Tensor:
        return torch.empty(q.shape, dtype=q.dtype, device=q.device)

    def logs(branch: str) -> Tensor:
        lse = torch.empty(q.shape[:2], dtype=torch.float32, device=q.device)
        return lse if branch in problem.config.branches else lse.fill_(float("-inf"))

    if not training:
        return Outputs(rows(), o_cmp, None, None, None, logs("selected"), None)
    lse = lse_cmp, logs("selected"), logs("sliding")
    return Outputs(rows(), o_cmp, rows(), rows(), *lse)


def _parts(problem: Problem, pieces: list[list[Piece]], lists: Lists) -> int:
    """Parts that the queries of a piece are gathered in, one after the other.

    Each query is gathered once a slot, for blocks that lie anywhere: from memory each time, unless
    all of those that are gathered meanwhile fit the cache.
    """
    rows, slots = pieces[0][0].rows, lists.private.shape[-1]
    wanted = triton.cdiv(2 * rows * problem.group * problem.head_dim, _QUERY_BYTES)
    most = rows * slots // (_LEAST_PAIRS * problem.geometry.blocks)
    return max(1, min(wanted, most))


def _pairs_by_block(
    problem: Problem, pieces: list[list[Piece]], lists: Lists, parts: int = 1
) -> Iterator[Order] | None:
    """What queries chose alone, by block, for every piece; None if they chose nothing alone."""
    if not lists.private.shape[-1]:
        return None
    length = max(1, _SEGMENT_ROWS // problem.padded_group)
    sizes = tuple(piece.rows for piece in pieces[0])
    with stage("lists"):
        first, blocks = problem.first_blocks(), problem.geometry.blocks
        orders = by_block(lists.private, first, blocks, length, pieces[0][0].heads, sizes, parts)
    return iter(orders)


def _units_by_block(
    problem: Problem, pieces: list[list[Piece]], lists: Lists
) -> Iterator[Order] | None:
    """What tiles share, by block, for every group of heads; None if nothing is shared."""
    if not lists.slots:
        return None
    with stage("lists"):
        units, span = lists.units(problem)
        first = problem.geometry.programs(span)[:, 3] if span > 1 else problem.first_blocks()
        length = max(1, _SEGMENT_ROWS // (span * problem.padded_group))
        heads, blocks = pieces[0][0].heads, problem.geometry.blocks
        orders = by_block(units, first, blocks, length, heads, (len(units),))
    return iter(orders)


def _counts(problem: Problem, shared: Tensor, private: Tensor) -> Tensor:
    """Blocks of each query: int32 [B, T, K]."""
    count = (shared >= 0).sum(-1, dtype=torch.int32)
    if problem.tile == 1:
        return count
    per_query = count.flatten(0, 1)[problem.geometry.tile_of_token()].view(private.shape[:3])
    return per_query + (private >= 0).sum(-1, dtype=torch.int32)
