"""Before the backward kernels: gradients of the gates, and per row what probabilities come from."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from .geometry import VARYING, line_of, windows_seen
from .problem import Gradients, Operands, Outputs, Problem
from .softmax import rows_of

NEAR = tl.constexpr(3)  # line of the keys that both the selected and the sliding branch see
_ROWS = 32
_FEW_WINDOWS = 3
_FEW_ROWS = 16


def prepare(
    problem: Problem, operands: Operands, outputs: Outputs, grad: Tensor
) -> tuple[Gradients, Tensor]:
    """The gradient's companions, and the gradient of the gates [tokens, H, 3]."""
    tokens, heads, width = grad.shape
    gates = operands.gates
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
    if "compressed" in branches:
        _few_windows(problem, operands, outputs, grad, delta, dgates)
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


def _few_windows(
    problem: Problem,
    operands: Operands,
    outputs: Outputs,
    grad: Tensor,
    delta: Tensor,
    dgates: Tensor,
) -> None:
    """Correct what ``prepare_rows`` wrote of the compressed branch at the first windows' tokens."""
    config, q = problem.config, operands.q
    seen_by = config.compress_block - 1 + _FEW_WINDOWS * config.compress_stride
    table = problem.geometry.programs(_FEW_ROWS, seen_by)
    few_windows[(len(table), q.shape[1])](
        q,
        operands.k_cmp,
        operands.v_cmp,
        grad,
        outputs.lse_compressed,
        delta,
        dgates,
        table,
        problem.scale2,
        q.stride(0),
        q.stride(1),
        problem.kv_heads,
        G=problem.group,
        D=problem.head_dim,
        N=_FEW_ROWS,
        CB=config.compress_block,
        ST=config.compress_stride,
        MOST=_FEW_WINDOWS,
    )


@triton.jit
def few_windows(
    q, k_cmp, v_cmp, grad, lse, delta, dgates, table, scale2, q_t, q_h, kv_heads,
    G: tl.constexpr, D: tl.constexpr, N: tl.constexpr, CB: tl.constexpr, ST: tl.constexpr,
    MOST: tl.constexpr,
):  # fmt: skip
    """Delta in rows of one head that see up to MOST windows, from probabilities, in float32.

    The gradient of a logit is p (dp - delta). Where few windows overlap, dp and delta are nearly
    equal, and delta from an output of 16 bits would be wrong by as much as they differ.
    """
    row, start, end, _b, window, _t, _n = line_of(table, tl.program_id(0))
    head = tl.program_id(1)
    heads = kv_heads * G
    token = row + tl.arange(0, N)
    seen = windows_seen(token - start, CB, ST)
    live = (token < end) & (seen > 0) & (seen <= MOST)
    all_heads = head + tl.zeros([N], tl.int32)
    tile = rows_of(q, token, all_heads, live, q_t, q_h, D).to(tl.float32)
    rows = rows_of(grad, token, all_heads, live, heads * D, D, D).to(tl.float32)
    line = token.to(tl.int64) * heads + head
    log = tl.load(lse + line, mask=live, other=float("inf"))
    inner = tl.zeros([N], tl.float32)
    for i in tl.static_range(MOST):
        at = (tl.cast(window + i, tl.int64) * kv_heads + head // G) * D + tl.arange(0, D)
        some = i < tl.max(tl.where(live, seen, 0), 0)
        k = tl.load(k_cmp + at, mask=some, other=0.0).to(tl.float32)
        v = tl.load(v_cmp + at, mask=some, other=0.0).to(tl.float32)
        p = tl.exp2(tl.sum(tile * k[None, :], 1) * scale2 - log)
        inner += tl.where(i < seen, p * tl.sum(rows * v[None, :], 1), 0.0)
    tl.store(delta + line, inner, mask=live)
    tl.store(dgates + line * 3, inner.to(dgates.dtype.element_ty), mask=live)
