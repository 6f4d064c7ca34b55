"""Before the backward kernels: gradients of the gates, and per row what probabilities come from."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from .problem import Gradients, Outputs, Problem

NEAR = 3  # line of the keys that both the selected and the sliding branch see


def prepare(
    problem: Problem, outputs: Outputs, gates: Tensor, grad: Tensor
) -> tuple[Gradients, Tensor]:
    """The gradient's companions, and the gradient of the gates [tokens, H, 3]."""
    tokens, heads, width = grad.shape
    logs = torch.empty(4, tokens, heads, dtype=torch.float32, device=grad.device)
    delta = torch.empty_like(logs)
    dgates = torch.zeros_like(gates)
    branches = (
        ("compressed", outputs.compressed, outputs.lse_compressed),
        ("selected", outputs.selected, outputs.lse_selected),
        ("sliding", outputs.sliding, outputs.lse_sliding),
    )
    rows = 32
    for i, (name, out, lse) in enumerate(branches):
        if name in problem.config.branches:
            prepare_branch[(triton.cdiv(tokens * heads, rows),)](
                grad, out, lse, gates, logs[i], delta[i], dgates, tokens * heads, i, D=width, N=rows
            )
    if {"selected", "sliding"} <= set(problem.config.branches):
        count = tokens * heads
        combine_branches[(triton.cdiv(count, 1024),)](logs, delta, count, N=1024)
    elif "selected" in problem.config.branches:
        logs[NEAR].copy_(logs[1])
        delta[NEAR].copy_(delta[1])
    return Gradients(grad, logs, delta), dgates


@triton.jit
def prepare_branch(
    grad, out, lse, gates, logs, delta, dgates, count, branch, D: tl.constexpr, N: tl.constexpr
):
    """Delta, gate gradient and log-sum-exp less log2(gate) of one branch."""
    line = tl.program_id(0).to(tl.int64) * N + tl.arange(0, N)
    live = line < count
    at = line[:, None] * D + tl.arange(0, D)[None, :]
    product = tl.load(grad + at, mask=live[:, None], other=0.0).to(tl.float32)
    product *= tl.load(out + at, mask=live[:, None], other=0.0).to(tl.float32)
    inner = tl.sum(product, 1)
    tl.store(dgates + line * 3 + branch, inner.to(dgates.dtype.element_ty), mask=live)
    tl.store(delta + line, inner, mask=live)
    gate = tl.load(gates + line * 3 + branch, mask=live, other=0.0).to(tl.float32)
    log = tl.load(lse + line, mask=live, other=float("-inf"))
    # Rows that saw nothing, and shut gates, get +inf: their probabilities are 0.
    open_ = (log > float("-inf")) & (gate > 0)
    log = tl.where(open_, log - tl.log2(tl.where(open_, gate, 1.0)), float("inf"))
    tl.store(logs + line, log, mask=live)


@triton.jit
def combine_branches(logs, delta, count, N: tl.constexpr):
    """What two branches' probabilities of one key sum up to: one exponential stands for both.

    With p1 = 2^(s - l1) and p2 = 2^(s - l2): p1 + p2 = 2^(s - l), and the gradient of the logits,
    p1 (dp - d1) + p2 (dp - d2), is (p1 + p2) (dp - d) with d the mean of d1, d2 by weight.
    """
    at = tl.program_id(0).to(tl.int64) * N + tl.arange(0, N)
    live = at < count
    total = tl.cast(count, tl.int64)
    first = tl.load(logs + total + at, mask=live, other=float("inf"))
    second = tl.load(logs + 2 * total + at, mask=live, other=float("inf"))
    least = tl.minimum(first, second)
    some = least < float("inf")
    least = tl.where(some, least, 0.0)
    a, b = tl.exp2(least - first), tl.exp2(least - second)
    weight = tl.where(some, a + b, 1.0)
    shift = a * tl.load(delta + total + at, mask=live, other=0.0)
    shift += b * tl.load(delta + 2 * total + at, mask=live, other=0.0)
    log = tl.where(some, least - tl.log2(weight), float("inf"))
    tl.store(logs + 3 * total + at, log, mask=live)
    tl.store(delta + 3 * total + at, shift / weight, mask=live)
