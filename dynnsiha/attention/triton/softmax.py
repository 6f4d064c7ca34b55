"""Pieces that the attention kernels share: tiles of rows, and softmax in base 2.

A tile is BQ neighbouring queries times the G query heads of one key/value head, padded to a power
of two GP; row r holds query r // GP and head r % GP. Log-sum-exps are in base 2 inside of the
kernels, -inf where a row saw nothing. The running maximum starts at a finite value, so that a row
that has seen nothing yields exp2(-inf) = 0 and no NaN; it stays 0 where nothing is subtracted.
"""

from __future__ import annotations

import triton
import triton.language as tl
from triton import knobs

_INTERPRETED = tl.constexpr(knobs.runtime.interpret)


@triton.jit
def rows_of(pointer, token, head, live, stride_t, stride_h, D: tl.constexpr):
    """Rows [M, D] of a tensor [tokens, heads, D]; 0 where a row is not ``live``."""
    d = tl.arange(0, D)
    at = token.to(tl.int64)[:, None] * stride_t + (head * stride_h)[:, None] + d[None, :]
    return tl.load(pointer + at, mask=live[:, None], other=0.0)


@triton.jit
def store_rows(pointer, value, token, head, live, stride_t, stride_h, D: tl.constexpr):
    """Counterpart of ``rows_of``."""
    d = tl.arange(0, D)
    at = token.to(tl.int64)[:, None] * stride_t + (head * stride_h)[:, None] + d[None, :]
    tl.store(pointer + at, value.to(pointer.dtype.element_ty), mask=live[:, None])


@triton.jit
def fresh(M: tl.constexpr, D: tl.constexpr, SHIFTED: tl.constexpr):
    """Running maximum, sum and output of a row that has seen nothing."""
    return (
        tl.full([M], -1.0e30 if SHIFTED else 0.0, tl.float32),
        tl.zeros([M], tl.float32),
        tl.zeros([M, D], tl.float32),
    )


@triton.jit
def absorb(s, v, scale2, top, total, acc, SHIFTED: tl.constexpr):
    """Softmax so far: take products s [M, N] and values v [N, D] into the running state.

    s scale2, with scale2 > 0, are the logits in base 2. SHIFTED by their running maximum they may
    be anything. Otherwise a third of the instructions is gone, and the product with v need not be
    waited for before the next one; ``overflown`` tells afterwards whether that was right.
    """
    if SHIFTED:
        higher = tl.maximum(top, tl.max(s, 1) * scale2)
        p = tl.exp2(s * scale2 - higher[:, None])
        fade = tl.exp2(top - higher)
        total, acc = total * fade, acc * fade[:, None]
        top = higher
    else:
        p = tl.exp2(s * scale2)
    total += tl.sum(p, 1)
    return top, total, tl.dot(p.to(v.dtype), v, acc)


@triton.jit
def overflown(total, live, dtype: tl.constexpr):
    """Whether exponentials that were not shifted left the range of a 16-bit dtype in a live row.

    Sums within these bounds have terms that bfloat16, as wide as float32, represents with a margin
    for the product with v; float16 rounds terms below 2^-14 by what no longer counts beside 1.
    """
    LEAST: tl.constexpr = 1.0 if dtype == tl.float16 else 2.0**-60
    MOST: tl.constexpr = 2.0**15 if dtype == tl.float16 else 2.0**100
    wrong = live & ~((total >= LEAST) & (total <= MOST))
    return tl.max(wrong.to(tl.int32), 0) > 0


@triton.jit
def closed(top, total):
    """What the output is multiplied with, and the log-sum-exp; 0 and -inf where nothing was seen.

    A division takes five times the instructions of a product: one a row, and none an element.
    """
    some = total > 0
    total = tl.where(some, total, 1.0)
    return 1.0 / total, tl.where(some, top + tl.log2(total), float("-inf"))


@triton.jit
def finished(top, total, acc):
    """Output and log-sum-exp of the running state; 0 and -inf where nothing was seen."""
    factor, log = closed(top, total)
    return acc * factor[:, None], log


@triton.jit
def packed(x, dtype: tl.constexpr):
    """x [M, D], rounded to a 16-bit dtype, two neighbours in one integer: int32 [M, D / 2].

    The compiler gives a 16-bit number a whole register, and would round only where the number is
    used, keeping 32 bits through all loops before: hence instructions that it may not move.
    """
    M: tl.constexpr = x.shape[0]
    HALF: tl.constexpr = x.shape[1] // 2
    bits = x.to(dtype).to(tl.int16, bitcast=True).to(tl.int32)
    low, high = tl.split(tl.reshape(bits, [M, HALF, 2]))
    pairs = (low & 0xFFFF) | (high << 16)
    if not _INTERPRETED:
        pairs = tl.inline_asm_elementwise("mov.b32 $0, $1;", "=r,r", [pairs], tl.int32, False, 1)
    return pairs


@triton.jit
def unpacked(pairs, dtype: tl.constexpr):
    """Counterpart of ``packed``: float32 [M, D]."""
    M: tl.constexpr = pairs.shape[0]
    HALF: tl.constexpr = pairs.shape[1]
    bits = tl.join(pairs, pairs >> 16).to(tl.int16)
    return tl.reshape(bits, [M, 2 * HALF]).to(dtype, bitcast=True).to(tl.float32)
