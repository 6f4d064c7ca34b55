"""Sliding branch: a band of key blocks behind each block of queries, as one batched product."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from .operands import Gradients, Operands, Problem, product


def forward(x: Operands, begin: int, end: int) -> Tensor:
    """Output of the queries [begin, end): [N, C, G, D]."""
    out = x.empty(begin, end)
    for head, lo, hi in _steps(x, begin, end):
        rows = _query_blocks(x.problem, x.q, head, lo, hi)
        p = _probabilities(x.problem, rows, _bands(x.problem, x.k, head, lo, hi), lo)
        o = product(p.to(x.v.dtype), _bands(x.problem, x.v, head, lo, hi))
        out[head, lo - begin : hi - begin] = o.view(hi - lo, *x.q.shape[2:])
    return out


def backward(x: Operands, grads: Gradients, begin: int, end: int) -> None:
    """Add the branch's gradients with respect to the queries [begin, end), in a fixed order."""
    problem, scale = x.problem, x.problem.scale
    for head, lo, hi in _steps(x, begin, end):
        rows = _query_blocks(problem, x.q, head, lo, hi)
        row_grads = _query_blocks(problem, grads.out, head, lo, hi)
        keys = _bands(problem, x.k, head, lo, hi)
        p = _probabilities(problem, rows, keys, lo)
        dp = product(row_grads, _bands(problem, x.v, head, lo, hi).transpose(1, 2))
        mean = (p * dp).sum(-1, keepdim=True)
        gated = p.mul_(x.gate("sliding", lo, hi)[head].reshape(mean.shape))
        ds = dp.sub_(mean).mul_(gated).to(x.q.dtype)
        grads.q[head, lo:hi] += product(ds, keys, scale).view(hi - lo, *x.q.shape[2:])
        grads.gates[head, lo:hi, :, 2] += mean.view(hi - lo, -1)
        _add_bands(problem, grads.k[head], product(ds.transpose(1, 2), rows, scale), lo)
        dv = product(gated.to(x.q.dtype).transpose(1, 2), row_grads)
        _add_bands(problem, grads.v[head], dv, lo)


def _steps(x: Operands, begin: int, end: int) -> Iterator[tuple[int, int, int]]:
    per_block = x.problem.config.block_size * x.problem.group * _span(x.problem)
    for head in range(x.q.shape[0]):
        for lo, hi in x.problem.steps(begin, end, per_block):
            yield head, lo, hi


def _window(problem: Problem) -> int:
    """Most keys that a query can have in its window."""
    return min(problem.config.window, problem.padded_len)


def _span(problem: Problem) -> int:
    """Keys in the band of one block of queries: the block itself and the whole blocks behind it."""
    size = problem.config.block_size
    return size - (-(_window(problem) - 1) // size) * size


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
    size, span, window = problem.config.block_size, _span(problem), _window(problem)
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
