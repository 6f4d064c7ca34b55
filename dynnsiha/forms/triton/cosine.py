"""Cosine prototype routing from the input to the choice of experts, in one launch.

A program holds the logits of its tokens for all experts, so they are not rounded on the way to the
choice: products and squares are added up in float32 while the width is walked.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from dynnsiha.synthesis.sbl import NORM_EPS

from .choice import TILE, VARYING, Weights, best_of, group_pairs

_STEP = 64  # features at a time
_EPS = tl.constexpr(NORM_EPS)


def choose_by_cosine(
    x: Tensor,
    proto: Tensor,
    gate: Tensor,
    scale: Tensor,
    active: int,
    logits_of: Callable[[Tensor], Tensor],
    weights_of: Callable[[Tensor], Tensor],
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Choose for N tokens among E <= 256 experts as `CosinePrototypeRouting` routes them.

    Args:
        x: [N, d].
        proto, gate, scale: of the router, in the dtype of x: [E, d], [E] and one number.
        active: k, from 1 to E.
        logits_of: the logits of x by plain torch. Second derivatives go through it.
        weights_of: likewise the weights of logits [N, k], best first.

    Returns:
        Logits [N, E], in the graph of x, proto and gate; weights [N, k], in that of the logits;
        experts, best first, int64 [N, k]; then ``order``, ``inverse`` and ``ends`` of `Dispatch`.
    """
    logits, weights, indices, counts = _Route.apply(
        x.contiguous(), proto, gate, scale, active, logits_of
    )
    weights = Weights.apply(weights, logits, indices, scale, weights_of)
    return logits, weights, indices, *group_pairs(indices, counts, _rows(len(proto)))


def _padded(experts: int) -> int:
    return max(16, triton.next_power_of_2(experts))  # as many columns as a matrix product has


def _rows(experts: int) -> int:
    return max(16, min(64, TILE // _padded(experts)))


class _Route(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        proto: Tensor,
        gate: Tensor,
        scale: Tensor,
        active: int,
        logits_of: Callable[[Tensor], Tensor],
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        (tokens, width), experts = x.shape, len(proto)
        chunks = max(1, triton.cdiv(tokens, _rows(experts)))
        logits = x.new_empty(tokens, experts)
        weights = x.new_empty(tokens, active)
        indices = x.new_empty((tokens, active), dtype=torch.int64)
        counts = x.new_empty((experts, chunks), dtype=torch.int32)
        lengths = x.new_empty(tokens + experts, dtype=torch.float32)
        route_by_cosine[(chunks,)](
            *(x, proto.contiguous(), gate.contiguous(), scale),
            *(logits, weights, indices, counts, lengths),
            *(tokens, chunks, width),
            E=experts,
            K=active,
            EP=_padded(experts),
            ROWS=_rows(experts),
            STEP=_STEP,
        )
        ctx.save_for_backward(x, proto, gate, scale, logits, lengths)
        ctx.logits_of = logits_of
        ctx.mark_non_differentiable(weights, indices, counts)
        return logits, weights, indices, counts

    @staticmethod
    def backward(ctx: Any, d_logits: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
        # As forward: in the precision of the parameters, wherever gradients are asked for.
        with torch.autocast(d_logits.device.type, enabled=False):
            return *_gradients(ctx, d_logits), None, None, None


def _gradients(ctx: Any, d_logits: Tensor) -> tuple[Tensor | None, ...]:
    """Those of x, proto and gate."""
    x, proto, gate, scale, logits, lengths = ctx.saved_tensors
    if torch.is_grad_enabled():  # somebody wants the gradient of this gradient
        leaves = (x, proto, gate)
        wanted = [i for i in range(3) if ctx.needs_input_grad[i]]
        found = torch.autograd.grad(
            ctx.logits_of(x), [leaves[i] for i in wanted], d_logits, create_graph=True
        )
        gradients = dict(zip(wanted, found, strict=True))
        return tuple(gradients.get(i) for i in range(3))
    (tokens, width), experts = x.shape, len(proto)
    rows = _rows(experts)
    chunks = max(1, triton.cdiv(tokens, rows))
    slopes = torch.empty_like(logits)
    along = x.new_empty(tokens, 1)
    sums = lengths.new_empty(2, experts, chunks)
    slopes_of_cosine[(chunks,)](
        *(logits, gate.contiguous(), scale, lengths, d_logits.contiguous()),
        *(slopes, along, sums),
        *(tokens, chunks),
        E=experts,
        EP=_padded(experts),
        ROWS=rows,
    )
    d_x = torch.mm(slopes, proto).addcmul_(along, x) if ctx.needs_input_grad[0] else None
    d_proto, d_gate = torch.mm(slopes.t(), x), gate.new_empty(experts)
    finish_prototypes[(experts,)](
        *(proto.contiguous(), gate.contiguous(), scale, lengths, sums, d_proto, d_gate),
        *(tokens, chunks, width),
        N=1024,
    )
    return d_x, d_proto, d_gate


@triton.jit(do_not_specialize=VARYING)
def route_by_cosine(
    x,
    proto,
    gate,
    scale,
    logits,
    weights,
    indices,
    counts,
    lengths,
    tokens,
    chunks,
    width,
    E: tl.constexpr,
    K: tl.constexpr,
    EP: tl.constexpr,
    ROWS: tl.constexpr,
    STEP: tl.constexpr,
):
    """Logits of a chunk of tokens, the best K experts and their weights.

    ``lengths`` keeps the norms of the tokens, then those of the prototypes.
    """
    chunk = tl.program_id(0)
    row, e = chunk.to(tl.int64) * ROWS + tl.arange(0, ROWS), tl.arange(0, EP)
    here = row < tokens
    products = tl.zeros([ROWS, EP], tl.float32)
    squares, own_squares = tl.zeros([ROWS], tl.float32), tl.zeros([EP], tl.float32)
    for start in range(0, width, STEP):
        d = start + tl.arange(0, STEP)
        rows = tl.load(
            x + row[:, None] * width + d[None],
            mask=here[:, None] & (d < width)[None],
            other=0.0,
        )
        directions = tl.load(
            proto + e[None] * width + d[:, None],
            mask=(e < E)[None] & (d < width)[:, None],
            other=0.0,
        )
        products = tl.dot(rows, directions, products, input_precision="ieee")
        wide, own = rows.to(tl.float32), directions.to(tl.float32)
        squares += tl.sum(wide * wide, 1)
        own_squares += tl.sum(own * own, 0)
    length, own_length = tl.sqrt(squares), tl.sqrt(own_squares)
    tl.store(lengths + row, length, mask=here)
    tl.store(lengths + tokens + e, own_length, mask=(e < E) & (chunk == 0))
    c = tl.load(scale).to(tl.float32)
    opening = tl.sigmoid(tl.load(gate + e, mask=e < E, other=0.0).to(tl.float32))
    cosine = products / tl.maximum(length, _EPS)[:, None] / tl.maximum(own_length, _EPS)[None]
    z = c * (cosine - opening[None])
    real = here[:, None] & (e < E)[None]
    tl.store(logits + row[:, None] * E + e[None], z.to(logits.dtype.element_ty), mask=real)
    taken = best_of(z, c, weights, indices, row, tokens, True, E, K, EP, ROWS)
    tl.store(counts + e * chunks + chunk, tl.sum(taken, 0), mask=e < E)


@triton.jit(do_not_specialize=VARYING)
def slopes_of_cosine(
    logits,
    gate,
    scale,
    lengths,
    d_logits,
    slopes,
    along,
    sums,
    tokens,
    chunks,
    E: tl.constexpr,
    EP: tl.constexpr,
    ROWS: tl.constexpr,
):
    """From the gradient g of the logits: what x and proto are multiplied by in each other's.

        slopes = c g / (|x| |proto|)        d_x = slopes proto + along x
        along  = -Σ_e c g cos / |x|²        d_proto = slopesᵀ x - Σ_t c g cos / |proto|² proto

    ``sums`` gets Σ_t c g cos and Σ_t g of the chunk. A length below the bound of the norm is a
    constant there, so its direction gets no gradient of its own.
    """
    chunk = tl.program_id(0)
    row, e = chunk.to(tl.int64) * ROWS + tl.arange(0, ROWS), tl.arange(0, EP)
    here = row < tokens
    real = here[:, None] & (e < E)[None]
    at = row[:, None] * E + e[None]
    c = tl.load(scale).to(tl.float32)
    opening = tl.sigmoid(tl.load(gate + e, mask=e < E, other=0.0).to(tl.float32))
    length = tl.load(lengths + row, mask=here, other=1.0)
    own_length = tl.load(lengths + tokens + e, mask=e < E, other=1.0)
    g = tl.load(d_logits + at, mask=real, other=0.0).to(tl.float32)
    z = tl.load(logits + at, mask=real, other=0.0).to(tl.float32)
    scaled = c * g
    turned = scaled * (z / c + opening[None])
    bound = tl.maximum(length, _EPS)
    slope = scaled / bound[:, None] / tl.maximum(own_length, _EPS)[None]
    tl.store(slopes + at, slope.to(slopes.dtype.element_ty), mask=real)
    back = tl.where(length > _EPS, -tl.sum(turned, 1) / (bound * bound), 0.0)
    tl.store(along + row, back.to(along.dtype.element_ty), mask=here)
    tl.store(sums + e * chunks + chunk, tl.sum(turned, 0), mask=e < E)
    tl.store(sums + (E + e) * chunks + chunk, tl.sum(g, 0), mask=e < E)


@triton.jit(do_not_specialize=VARYING)
def finish_prototypes(
    proto, gate, scale, lengths, sums, d_proto, d_gate, tokens, chunks, width, N: tl.constexpr
):
    """What ``slopes_of_cosine`` left to add up over chunks, for one expert."""
    e = tl.program_id(0)
    experts = tl.num_programs(0)
    turned, pushed = tl.zeros([N], tl.float32), tl.zeros([N], tl.float32)
    for start in range(0, chunks, N):
        chunk = start + tl.arange(0, N)
        turned += tl.load(sums + e * chunks + chunk, mask=chunk < chunks, other=0.0)
        pushed += tl.load(sums + (experts + e) * chunks + chunk, mask=chunk < chunks, other=0.0)
    length = tl.load(lengths + tokens + e)
    bound = tl.maximum(length, _EPS)
    back = tl.where(length > _EPS, tl.sum(turned, 0) / (bound * bound), 0.0)
    for start in range(0, width, N):
        d = start + tl.arange(0, N)
        at = e.to(tl.int64) * width + d
        own = tl.load(proto + at, mask=d < width, other=0.0).to(tl.float32)
        found = tl.load(d_proto + at, mask=d < width, other=0.0).to(tl.float32)
        tl.store(d_proto + at, (found - back * own).to(d_proto.dtype.element_ty), mask=d < width)
    opening = tl.sigmoid(tl.load(gate + e).to(tl.float32))
    slope = -tl.load(scale).to(tl.float32) * opening * (1 - opening) * tl.sum(pushed, 0)
    tl.store(d_gate + e, slope.to(d_gate.dtype.element_ty))
