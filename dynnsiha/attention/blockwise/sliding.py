"""Sliding branch: a band of key blocks behind each block of queries, as one batched product."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from .shapes import Problem, accumulation_dtype, product


def forward(problem: Problem, q: Tensor, k: Tensor, v: Tensor, begin: int, end: int) -> Tensor:
    """Output of the queries [begin, end): [N, C, G, D] in the accumulation dtype.

    Args:
        q: [N, T, G, D]; k, v: [N, T, D], T in whole blocks.
    """
    out = torch.empty(q[:, begin:end].shape, dtype=accumulation_dtype(q.dtype), device=q.device)
    for head, lo, hi in _steps(problem, q, begin, end):
        rows = _query_blocks(problem, q, head, lo, hi)
        p = _probabilities(problem, rows, _bands(problem, k, head, lo, hi), lo)
        o = product(p.to(v.dtype), _bands(problem, v, head, lo, hi))
        out[head, lo - begin : hi - begin] = o.view(hi - lo, *q.shape[2:])
    return out


def backward(
    problem: Problem,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    gate: Tensor,
    grad: Tensor,
    begin: int,
    end: int,
    dk: Tensor,
    dv: Tensor,
) -> tuple[Tensor, Tensor]:
    """Gradients of the queries [begin, end); adds to dk, dv [N, T, D] in place.

    Args:
        q, grad: [N, T, G, D], grad of the layer's output; gate: [N, T, G] of this branch.

    Returns:
        dq [N, C, G, D] and dgate [N, C, G].
    """
    wide = accumulation_dtype(q.dtype)
    dq = torch.empty(q[:, begin:end].shape, dtype=wide, device=q.device)
    dgate = torch.empty(gate[:, begin:end].shape, dtype=wide, device=q.device)
    for head, lo, hi in _steps(problem, q, begin, end):
        at = slice(lo - begin, hi - begin)
        rows = _query_blocks(problem, q, head, lo, hi)
        row_grad = _query_blocks(problem, grad, head, lo, hi)
        keys = _bands(problem, k, head, lo, hi)
        p = _probabilities(problem, rows, keys, lo)
        dp = product(row_grad, _bands(problem, v, head, lo, hi).transpose(1, 2))
        mean = (p * dp).sum(-1, keepdim=True)
        gated = p.mul_(gate[head, lo:hi].reshape(mean.shape))
        ds = dp.sub_(mean).mul_(gated).to(q.dtype)
        dq[head, at] = product(ds, keys, problem.scale).view(hi - lo, *q.shape[2:])
        dgate[head, at] = mean.view(hi - lo, -1)
        _add_bands(problem, dk[head], product(ds.transpose(1, 2), rows, problem.scale), lo)
        _add_bands(problem, dv[head], product(gated.to(q.dtype).transpose(1, 2), row_grad), lo)
    return dq, dgate


def _steps(problem: Problem, q: Tensor, begin: int, end: int) -> Iterator[tuple[int, int, int]]:
    per_block = problem.config.block_size * problem.group * _span(problem)
    for head in range(q.shape[0]):
        for lo, hi in problem.steps(begin, end, per_block):
            yield head, lo, hi


def _span(problem: Problem) -> int:
    """Keys in the band of one block of queries: the block itself and the whole blocks behind it."""
    size = problem.config.block_size
    return size - (-(problem.config.window - 1) // size) * size


def _query_blocks(problem: Problem, x: Tensor, head: int, begin: int, end: int) -> Tensor:
    """[N, T, G, D] as the rows of each block of queries: [C / block, block G, D]."""
    return x[head, begin:end].reshape(-1, problem.config.block_size * problem.group, x.shape[-1])


def _bands(problem: Problem, x: Tensor, head: int, begin: int, end: int) -> Tensor:
    """Overlapping views on the keys of each block's band: [C / block, span, D]."""
    size, span = problem.config.block_size, _span(problem)
    first = begin + size - span
    keys = x[head, max(0, first) : end]
    if first < 0:
        keys = torch.nn.functional.pad(keys, (0, 0, -first, 0))
    width = x.shape[-1]
    return keys.as_strided(((end - begin) // size, span, width), (size * width, width, 1))


def _add_bands(problem: Problem, total: Tensor, bands: Tensor, begin: int) -> None:
    """Add [C / block, span, D] onto the keys [T, D] that the bands cover, in a fixed order."""
    size, span = problem.config.block_size, _span(problem)
    blocks = total.view(-1, size, total.shape[-1])
    for i in range(span // size):
        first = begin // size + 1 - span // size + i
        missing = max(0, -first)
        if missing < len(bands):
            part = bands[missing:, i * size : (i + 1) * size]
            blocks[first + missing : first + len(bands)] += part


def _probabilities(problem: Problem, rows: Tensor, bands: Tensor, begin: int) -> Tensor:
    """Probabilities over the bands: [C / block, block G, span]."""
    size, span, window = problem.config.block_size, _span(problem), problem.config.window
    logits = product(rows, bands.transpose(1, 2), problem.scale)
    lowest = torch.finfo(logits.dtype).min
    offset = torch.arange(size, device=rows.device).repeat_interleave(problem.group)[:, None]
    distance = offset + span - size - torch.arange(span, device=rows.device)
    # Only the band's two ends are ever cut: on the left by the window, on the right by causality.
    logits[..., span - size :].masked_fill_(distance[:, span - size :] < 0, lowest)
    cut = span - window
    logits[..., :cut].masked_fill_(distance[:, :cut] >= window, lowest)
    for i in range(min(len(logits), max(0, (span - begin) // size - 1))):
        logits[i, :, : span - size - begin - i * size] = lowest  # before the first token
    return torch.softmax(logits, -1, out=logits)
