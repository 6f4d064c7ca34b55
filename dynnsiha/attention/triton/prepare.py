"""Before the backward kernels: gradients of the gates, and per row what probabilities come from."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from .geometry import VARYING
from .problem import Gradients, Outputs, Problem

NEAR = tl.constexpr(3)  # line of the keys that both the selected and the sliding branch see
_ROWS = 32


def prepare(
    problem: Problem, outputs: Outputs, gates: Tensor, grad: Tensor
) -> tuple[Gradients, Tensor]:
    """The gradient's companions, and the gradient of the gates [tokens, H, 3]."""
    tokens, heads, width = grad.shape
    logs = torch.empty(4, tokens, heads, dtype=torch.float32, device=grad.device)
    delta = torch.empty_like(logs)
    dgates = torch.zeros_like(gates)
    branches = problem.config.branches
    prepare_rows[(triton.cdiv(tokens * heads, _ROWS),)](
        grad,
        outputs.compressed,
        outputs.selected,
        outputs.sliding,
        outputs.lse_compressed,
        outputs.lse_selected,
        outputs.lse_sliding,
        gates,
        logs,
        delta,
        dgates,
        tokens * heads,
        D=width,
        N=_ROWS,
        COMPRESSED="compressed" in branches,
        SELECTED="selected" in branches,
        SLIDING="sliding" in branches,
    )
    return Gradients(grad, logs, delta), dgates


@triton.jit
def _branch(
    grad, out, lse, gates, logs, delta, dgates, line, at, live, count, BRANCH: tl.constexpr
):
    """Delta and lse - log2(gate) of one branch, stored with the gradient of its gate."""
    inner = tl.sum(grad * tl.load(out + at, mask=live[:, None], other=0.0).to(tl.float32), 1)
    gate = tl.load(gates + line * 3 + BRANCH, mask=live, other=0.0).to(tl.float32)
    log = tl.load(lse + line, mask=live, other=float("-inf"))
    # Rows that saw nothing, and shut gates, get +inf: their probabilities are 0.
    open_ = (log > float("-inf")) & (gate > 0)
    log = tl.where(open_, log - tl.log2(tl.where(open_, gate, 1.0)), float("inf"))
    tl.store(dgates + line * 3 + BRANCH, inner.to(dgates.dtype.element_ty), mask=live)
    tl.store(delta + count * BRANCH + line, inner, mask=live)
    tl.store(logs + count * BRANCH + line, log, mask=live)
    return log, inner


@triton.jit
def _together(first, first_shift, second, second_shift):
    """What two branches' probabilities of one key sum up to: one exponential stands for both.

    With p1 = 2^(s - l1) and p2 = 2^(s - l2): p1 + p2 = 2^(s - l), and the gradient of the logits,
    p1 (dp - d1) + p2 (dp - d2), is (p1 + p2) (dp - d) with d the mean of d1, d2 by weight.
    """
    least = tl.minimum(first, second)
    some = least < float("inf")
    least = tl.where(some, least, 0.0)
    a, b = tl.exp2(least - first), tl.exp2(least - second)
    weight = tl.where(some, a + b, 1.0)
    log = tl.where(some, least - tl.log2(weight), float("inf"))
    return log, (a * first_shift + b * second_shift) / weight


@triton.jit(do_not_specialize=VARYING)
def prepare_rows(
    grad, o_cmp, o_slc, o_win, lse_cmp, lse_slc, lse_win, gates, logs, delta, dgates, count,
    D: tl.constexpr, N: tl.constexpr,
    COMPRESSED: tl.constexpr, SELECTED: tl.constexpr, SLIDING: tl.constexpr,
):  # fmt: skip
    """All that is known of N rows before the backward kernels; the gradient is read once."""
    line = tl.program_id(0).to(tl.int64) * N + tl.arange(0, N)
    live = line < count
    total = tl.cast(count, tl.int64)
    at = line[:, None] * D + tl.arange(0, D)[None, :]
    rows = tl.load(grad + at, mask=live[:, None], other=0.0).to(tl.float32)
    if COMPRESSED:
        _branch(rows, o_cmp, lse_cmp, gates, logs, delta, dgates, line, at, live, total, 0)
    if SELECTED:
        log, shift = _branch(
            rows, o_slc, lse_slc, gates, logs, delta, dgates, line, at, live, total, 1
        )
    if SLIDING:
        w_log, w_shift = _branch(
            rows, o_win, lse_win, gates, logs, delta, dgates, line, at, live, total, 2
        )
    if SELECTED:
        if SLIDING:
            log, shift = _together(log, shift, w_log, w_shift)
        tl.store(logs + total * NEAR + line, log, mask=live)
        tl.store(delta + total * NEAR + line, shift, mask=live)
