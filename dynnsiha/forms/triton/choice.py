"""The k best experts of each token, their weights, and the order that groups tokens by expert.

A counting sort in two launches: chunks of tokens count how often they take each expert, the counts
are added up, and each chunk places its pairs. Pairs of a token and an expert are numbered token by
token, and those of one expert keep that order, so that the same logits give the same bits.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

TILE = 4096  # logits that one program holds
_LOWEST = tl.constexpr(-3.0e38)  # of a logit: below it are only those that were taken
VARYING = ["tokens", "chunks"]


def choose(
    logits: Tensor, active: int, weights_of: Callable[[Tensor], Tensor]
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Choose for N tokens among E <= 256 experts by their logits.

    Args:
        logits: [N, E], float32, bfloat16 or float16.
        active: k, from 1 to E.
        weights_of: relu by plain torch, of logits [N, k]. Second derivatives go through it.

    Returns:
        Weights [N, k], in the graph of ``logits``; experts, best first, int64 [N, k]; then
        ``order``, ``inverse`` and ``ends`` of `Dispatch`.
    """
    tokens, experts = logits.shape
    sizes = _sizes(experts, active)
    chunks = max(1, triton.cdiv(tokens, sizes["ROWS"]))
    weights = logits.new_empty(tokens, active)
    indices = logits.new_empty((tokens, active), dtype=torch.int64)
    counts = logits.new_empty((experts, chunks), dtype=torch.int32)
    logits = logits.contiguous()
    best_experts[(chunks,)](logits, weights, indices, counts, tokens, chunks, **sizes)
    weights = Weights.apply(weights, logits, indices, None, weights_of)
    return weights, indices, *group_pairs(indices, counts, sizes["ROWS"])


def _sizes(experts: int, active: int) -> dict[str, int]:
    padded = triton.next_power_of_2(experts)
    return {"E": experts, "K": active, "EP": padded, "ROWS": max(1, TILE // padded)}


def group_pairs(indices: Tensor, counts: Tensor, rows: int) -> tuple[Tensor, Tensor, Tensor]:
    """Indices int64 [N, k], and how often chunks of ``rows`` tokens took each expert, int32 [E,
    chunks] → ``order``, ``inverse`` and ``ends`` of `Dispatch`."""
    (tokens, active), (experts, chunks) = indices.shape, counts.shape
    order, inverse = indices.new_empty((2, tokens * active))
    ends = counts.new_empty(experts)
    padded = triton.next_power_of_2(experts)
    place_pairs[(chunks,)](
        *(indices, counts, counts.view(-1).cumsum(0, dtype=torch.int32), order, inverse, ends),
        *(tokens, chunks),
        E=experts,
        K=active,
        EP=padded,
        ROWS=rows,
        num_warps=8 if padded * rows >= TILE else 4,
    )
    return order, inverse, ends


class Weights(torch.autograd.Function):
    """Weights [N, k] that a kernel made of ``logits`` [N, E], in their graph.

    ``scale`` is c of `CosinePrototypeRouting`, whose weights they are; without it they are
    relu(logits). ``weights_of`` makes the same of logits [N, k], best first, by plain torch.
    """

    @staticmethod
    def forward(
        ctx: Any,
        weights: Tensor,
        logits: Tensor,
        indices: Tensor,
        scale: Tensor | None,
        weights_of: Callable[[Tensor], Tensor],
    ) -> Tensor:
        ctx.save_for_backward(logits, indices, scale)
        ctx.weights_of = weights_of
        return weights.view_as(weights)

    @staticmethod
    def backward(ctx: Any, d_weights: Tensor) -> tuple[Tensor | None, ...]:
        logits, indices, scale = ctx.saved_tensors
        if torch.is_grad_enabled():  # somebody wants the gradient of this gradient
            weights = ctx.weights_of(logits.gather(-1, indices))
            (d_logits,) = torch.autograd.grad(weights, logits, d_weights, create_graph=True)
        else:
            tokens, experts = logits.shape
            sizes = _sizes(experts, indices.shape[1])
            d_logits = torch.empty_like(logits)
            best_experts_backward[(max(1, triton.cdiv(tokens, sizes["ROWS"])),)](
                *(logits, logits if scale is None else scale, indices),
                *(d_weights.contiguous(), d_logits, tokens),
                COSINE=scale is not None,
                **sizes,
            )
        return None, d_logits, None, None, None


@triton.jit(do_not_specialize=VARYING)
def best_experts(
    logits,
    weights,
    indices,
    counts,
    tokens,
    chunks,
    E: tl.constexpr,
    K: tl.constexpr,
    EP: tl.constexpr,
    ROWS: tl.constexpr,
):
    """The best K of E logits, their weights, and how often a chunk of tokens took each expert."""
    chunk = tl.program_id(0)
    row, e = chunk.to(tl.int64) * ROWS + tl.arange(0, ROWS), tl.arange(0, EP)
    real = (row < tokens)[:, None] & (e < E)[None]
    z = tl.load(logits + row[:, None] * E + e[None], mask=real, other=0.0).to(tl.float32)
    taken = best_of(z, 1.0, weights, indices, row, tokens, False, E, K, EP, ROWS)
    tl.store(counts + e * chunks + chunk, tl.sum(taken, 0), mask=e < E)


@triton.jit
def best_of(
    z,
    c,
    weights,
    indices,
    row,
    tokens,
    COSINE: tl.constexpr,
    E: tl.constexpr,
    K: tl.constexpr,
    EP: tl.constexpr,
    ROWS: tl.constexpr,
):
    """Store the best K of logits [ROWS, EP] and their weights; which were taken, 0 or 1."""
    e = tl.arange(0, EP)
    here = row < tokens
    # Without what is no number: experts of one token must differ, whatever the logits.
    left = tl.where(z > _LOWEST, z, _LOWEST)
    left = tl.where(e[None] < E, left, -float("inf"))
    taken = tl.zeros([ROWS, EP], tl.int32)
    for j in tl.static_range(K):
        winner = tl.argmax(left, 1)
        hit = e[None] == winner[:, None]
        best = tl.sum(tl.where(hit, z, 0.0), 1)
        weight = tl.where(best < 0, 0.0, best)
        if COSINE and j == 0:
            weight = tl.where(best <= 0, tl.sigmoid(best / c), weight)
        tl.store(indices + row * K + j, winner.to(tl.int64), mask=here)
        tl.store(weights + row * K + j, weight.to(weights.dtype.element_ty), mask=here)
        taken += (hit & here[:, None]).to(tl.int32)
        left = tl.where(hit, -float("inf"), left)
    return taken


@triton.jit(do_not_specialize=VARYING)
def place_pairs(
    indices,
    counts,
    upto,
    order,
    inverse,
    ends,
    tokens,
    chunks,
    E: tl.constexpr,
    K: tl.constexpr,
    EP: tl.constexpr,
    ROWS: tl.constexpr,
):
    """The pair of each sorted row, and the sorted row of each pair of a chunk.

    ``upto`` counts the pairs of all experts before one, and of that expert those of the chunks up
    to this one.
    """
    chunk = tl.program_id(0)
    row, e = chunk.to(tl.int64) * ROWS + tl.arange(0, ROWS), tl.arange(0, EP)
    taken = tl.zeros([ROWS, EP], tl.int32)
    for j in tl.static_range(K):
        expert = tl.load(indices + row * K + j, mask=row < tokens, other=EP)
        taken += (e[None] == expert[:, None]).to(tl.int32)
    at = e * chunks + chunk
    last = tl.load(upto + at, mask=e < E, other=0)
    begin = last - tl.load(counts + at, mask=e < E, other=0)
    place = begin[None] + tl.cumsum(taken, 0) - taken
    for j in tl.static_range(K):
        pair = row * K + j
        expert = tl.load(indices + pair, mask=row < tokens, other=EP)
        own = tl.sum(tl.where(e[None] == expert[:, None], place, 0), 1)
        tl.store(inverse + pair, own.to(tl.int64), mask=row < tokens)
        tl.store(order + own, pair, mask=row < tokens)
    tl.store(ends + e, last, mask=(e < E) & (chunk == chunks - 1))


@triton.jit(do_not_specialize=VARYING)
def best_experts_backward(
    logits,
    scale,
    indices,
    d_weights,
    d_logits,
    tokens,
    COSINE: tl.constexpr,
    E: tl.constexpr,
    K: tl.constexpr,
    EP: tl.constexpr,
    ROWS: tl.constexpr,
):
    """Gradients of the weights at the experts taken, zeros at all others."""
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    e = tl.arange(0, EP)
    total = tl.zeros([ROWS, EP], tl.float32)
    for j in tl.static_range(K):
        at = row * K + j
        expert = tl.load(indices + at, mask=row < tokens, other=0)
        d = tl.load(d_weights + at, mask=row < tokens, other=0.0).to(tl.float32)
        z = tl.load(logits + row * E + expert, mask=row < tokens, other=0.0).to(tl.float32)
        if not COSINE:
            d = tl.where(z > 0, d, 0.0)
        elif j == 0:
            c = tl.load(scale).to(tl.float32)
            sigmoid = tl.sigmoid(z / c)
            d = tl.where(z <= 0, d * sigmoid * (1 - sigmoid) / c, d)
        total += tl.where(e[None] == expert[:, None], d[:, None], 0.0)
    real = (row < tokens)[:, None] & (e < E)[None]
    tl.store(d_logits + row[:, None] * E + e[None], total.to(d_logits.dtype.element_ty), mask=real)
