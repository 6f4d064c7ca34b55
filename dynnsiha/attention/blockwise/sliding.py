"""Sliding branch: a band of key blocks behind each block of queries, as one batched product."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from .operands import Gradients, Operands, Problem, product

_COPIED = 8
"""Share of a step's budget, 1 over this, up to which copies cost less than calls (measured)."""


def forward(x: Operands, begin: int, end: int) -> Tensor:
    """Output of the queries [begin, end): [N, C, G, D]."""
    out = x.empty(begin, end)
    for heads, lo, hi in _steps(x, begin, end):
        rows = _query_blocks(x.problem, x.q, heads, lo, hi)
        p = _probabilities(x.problem, rows, _bands(x.problem, x.k, heads, lo, hi), lo, hi)
        o = product(p.to(x.v.dtype), _bands(x.problem, x.v, heads, lo, hi))
        at = out[heads, lo - begin : hi - begin]
        at.copy_(o.view(at.shape))
    return out


def backward(x: Operands, grads: Gradients, begin: int, end: int) -> None:
    """Add the branch's gradients with respect to the queries [begin, end), in a fixed order."""
    problem, scale = x.problem, x.problem.scale
    for heads, lo, hi in _steps(x, begin, end):
        rows = _query_blocks(problem, x.q, heads, lo, hi)
        row_grads = _query_blocks(problem, grads.out, heads, lo, hi)
        keys = _bands(problem, x.k, heads, lo, hi)
        p = _probabilities(problem, rows, keys, lo, hi)
        dp = product(row_grads, _bands(problem, x.v, heads, lo, hi).transpose(1, 2))
        mean = (p * dp).sum(-1, keepdim=True)
        gated = p.mul_(x.gate("sliding", lo, hi)[heads].reshape(mean.shape))
        ds = dp.sub_(mean).mul_(gated).to(x.q.dtype)
        dq, dgate = grads.q[heads, lo:hi], grads.gates[heads, lo:hi, :, 2]
        dq += product(ds, keys, scale).view(dq.shape)
        dgate += mean.view(dgate.shape)
        _add_bands(problem, grads.k[heads], product(ds.transpose(1, 2), rows, scale), lo)
        dv = product(gated.to(x.q.dtype).transpose(1, 2), row_grads)
        _add_bands(problem, grads.v[heads], dv, lo)


def _steps(x: Operands, begin: int, end: int) -> Iterator[tuple[slice, int, int]]:
    """(heads, lo, hi): of long sequences a piece of one row of heads, of short ones several rows.

    Several rows copy their bands, which a single one reads in place; one by one, short ones would
    cost more calls than work.
    """
    per_block = x.problem.config.block_size * x.problem.group * _span(x.problem)
    per_row = per_block * ((end - begin) // x.problem.config.block_size)
    together = max(1, x.problem.step_elements // _COPIED // per_row)
    for first in range(0, len(x.q), together):
        for lo, hi in x.problem.steps(begin, end, per_block):
            yield slice(first, min(first + together, len(x.q))), lo, hi


def _window(problem: Problem) -> int:
    """Most keys that a query can have in its window."""
    return min(problem.config.window, problem.padded_len)


def _span(problem: Problem) -> int:
    """Keys in the band of one block of queries: the block itself and the whole blocks behind it."""
    size = problem.config.block_size
    return size - (-(_window(problem) - 1) // size) * size


def _query_blocks(problem: Problem, x: Tensor, heads: slice, begin: int, end: int) -> Tensor:
    """[N, T, G, D] as the rows of each block of queries: [heads C / block, block G, D]."""
    return x[heads, begin:end].reshape(-1, problem.config.block_size * problem.group, x.shape[-1])


def _bands(problem: Problem, x: Tensor, heads: slice, begin: int, end: int) -> Tensor:
    """The keys of each block's band: [heads C / block, span, D], overlapping views of one head."""
    size, span = problem.config.block_size, _span(problem)
    first = begin + size - span
    keys = x[heads, max(0, first) : end]
    if first < 0:
        keys = torch.nn.functional.pad(keys, (0, 0, -first, 0))
    rows, _, width = keys.shape
    shape = (rows, (end - begin) // size, span, width)
    return keys.as_strided(shape, (keys.stride(0), size * width, width, 1)).flatten(0, 1)


def _add_bands(problem: Problem, total: Tensor, bands: Tensor, begin: int) -> None:
    """Add [heads C / block, span, D] onto the keys [heads, T, D] of the bands, in a fixed order."""
    size, span = problem.config.block_size, _span(problem)
    blocks, bands = total.unflatten(1, (-1, size)), bands.unflatten(0, (len(total), -1))
    for i in range(span // size):
        first = begin // size + 1 - span // size + i
        missing = max(0, -first)
        if missing < bands.shape[1]:
            part = bands[:, missing:, i * size : (i + 1) * size]
            blocks[:, first + missing : first + bands.shape[1]] += part


def _probabilities(problem: Problem, rows: Tensor, bands: Tensor, begin: int, end: int) -> Tensor:
    """Probabilities over the bands: [heads C / block, block G, span]."""
    size, span, window = problem.config.block_size, _span(problem), _window(problem)
    logits = product(rows, bands.transpose(1, 2), problem.scale)
    lowest = torch.finfo(logits.dtype).min
    offset = torch.arange(size, device=rows.device).repeat_interleave(problem.group)[:, None]
    distance = offset + span - size - torch.arange(span, device=rows.device)
    # Only the band's two ends are ever cut: on the left by the window, on the right by causality.
    logits[..., span - size :].masked_fill_(distance[:, span - size :] < 0, lowest)
    cut = span - window
    logits[..., :cut].masked_fill_(distance[:, :cut] >= window, lowest)
    by_block = logits.unflatten(0, (-1, (end - begin) // size))
    for i in range(min(by_block.shape[1], max(0, (span - begin) // size - 1))):
        by_block[:, i, :, : span - size - begin - i * size] = lowest  # before the first token
    return torch.softmax(logits, -1, out=logits)
