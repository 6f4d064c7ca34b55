"""Block summaries: the mean of K and V over every complete window (docs/architecture.md)."""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from .geometry import Geometry


def mean_summaries(k: Tensor, v: Tensor, geometry: Geometry) -> tuple[Tensor, Tensor]:
    """[tokens, K, D] -> [windows, K, D], averaged in float32 and rounded once."""
    _, heads, width = k.shape
    shape = (geometry.windows, heads, width)
    k_cmp, v_cmp = k.new_empty(shape), v.new_empty(shape)
    if shape[0]:
        mean_of_window[(shape[0], heads)](
            k,
            v,
            k_cmp,
            v_cmp,
            geometry.window_rows(),
            k.stride(0),
            k.stride(1),
            v.stride(0),
            v.stride(1),
            heads,
            D=width,
            CB=geometry.compress_block,
            N=triton.next_power_of_2(geometry.compress_block),
        )
    return k_cmp, v_cmp


@triton.jit
def mean_of_window(
    k,
    v,
    k_cmp,
    v_cmp,
    rows,
    k_t,
    k_h,
    v_t,
    v_h,
    heads,
    D: tl.constexpr,
    CB: tl.constexpr,
    N: tl.constexpr,
):
    """The mean of K and V over one window."""
    window, head = tl.program_id(0), tl.program_id(1)
    row = tl.load(rows + window).to(tl.int64)
    n, d = tl.arange(0, N), tl.arange(0, D)
    inside = (n < CB)[:, None]
    at = (window.to(tl.int64) * heads + head) * D + d
    keys = tl.load(k + row * k_t + head * k_h + n[:, None] * k_t + d[None], mask=inside, other=0.0)
    tl.store(k_cmp + at, (tl.sum(keys.to(tl.float32), 0) / CB).to(k_cmp.dtype.element_ty))
    values = tl.load(
        v + row * v_t + head * v_h + n[:, None] * v_t + d[None], mask=inside, other=0.0
    )
    tl.store(v_cmp + at, (tl.sum(values.to(tl.float32), 0) / CB).to(v_cmp.dtype.element_ty))
