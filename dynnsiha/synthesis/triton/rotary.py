"""Rotary positions in one pass: each number of q or k is read once and written once.

Plain torch makes eight passes, most of them in float32: at 64k tokens and 32 heads of 128 that is
as much memory traffic as the sparse attention's own.
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

_TILE = 2048  # pairs that one program turns at a time


def turned(x: Tensor, cos: Tensor, sin: Tensor, *, back: bool = False) -> Tensor:
    """x [B, T, H, D], dense in D, turned by float32 tables [..., T, D / 2] of one sequence or of B.

    ``back`` turns by the negative angles. The result is contiguous, in the dtype of x.
    """
    batch, seq_len, heads, width = x.shape
    common = cos.numel() == seq_len * (width // 2)  # to all sequences
    out = x.new_empty(x.shape)
    if out.numel():
        padded = triton.next_power_of_2(width // 2)
        at_once = max(1, min(triton.next_power_of_2(heads), _TILE // padded))
        turn_pairs[(batch * seq_len, triton.cdiv(heads, at_once))](
            *(x, out, cos.contiguous(), sin.contiguous()),
            *(x.stride(0), x.stride(1), x.stride(2)),
            *(seq_len, 0 if common else seq_len, heads),
            BACK=back,
            HALF=width // 2,
            HP=padded,
            HEADS=at_once,
            num_warps=max(1, min(4, at_once * padded // 256)),
        )
    return out


@triton.jit(do_not_specialize=["seq_len", "table_rows"])
def turn_pairs(
    x,
    out,
    cos,
    sin,
    x_b,
    x_t,
    x_h,
    seq_len,
    table_rows,
    heads,
    BACK: tl.constexpr,
    HALF: tl.constexpr,
    HP: tl.constexpr,
    HEADS: tl.constexpr,
):
    """Some heads of one token; ``table_rows`` is how many rows of the tables a sequence has."""
    row = tl.program_id(0).to(tl.int64)
    sequence, token = row // seq_len, row % seq_len
    head, d = tl.program_id(1) * HEADS + tl.arange(0, HEADS), tl.arange(0, HP)
    angle = (sequence * table_rows + token) * HALF + d
    c = tl.load(cos + angle, mask=d < HALF, other=0.0)[None]
    s = tl.load(sin + angle, mask=d < HALF, other=0.0)[None]
    if BACK:
        s = -s
    inside = (head < heads)[:, None] & (d < HALF)[None]
    at = x + sequence * x_b + token * x_t + head[:, None] * x_h + d[None]
    first = tl.load(at, mask=inside, other=0.0).to(tl.float32)
    second = tl.load(at + HALF, mask=inside, other=0.0).to(tl.float32)
    to = out + (row * heads + head[:, None]) * (2 * HALF) + d[None]
    tl.store(to, (first * c - second * s).to(out.dtype.element_ty), mask=inside)
    tl.store(to + HALF, (second * c + first * s).to(out.dtype.element_ty), mask=inside)
