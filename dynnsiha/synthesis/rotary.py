"""Rotary positions (RoFormer, arXiv 2104.09864), on q and k, by absolute position."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from dynnsiha.triton_device import kernels_operand, kernels_serve


def rotary_tables(
    positions: Tensor, head_dim: int, *, base: float = 10_000.0, dtype: torch.dtype = torch.float32
) -> tuple[Tensor, Tensor]:
    """Cosine and sine of every angle position * base^(-2i / head_dim), each [..., T, head_dim / 2].

    Angles are computed in float64: in float32 those at position 8191 are off by 0.0002.

    Args:
        positions: absolute positions, [T] or [B, T], any integer or float dtype.
        head_dim: width of a head; even.
        base: the slowest pair turns once in about 2π * base tokens.
        dtype: of the tables: float32, or float64 for float64 inputs.

    Raises:
        ValueError: head_dim is odd.
    """
    if head_dim % 2:
        raise ValueError(f"head_dim={head_dim}: rotary positions need an even width")
    exponent = torch.arange(0, head_dim, 2, device=positions.device, dtype=torch.float64) / head_dim
    angle = positions.double()[..., None] * base**-exponent
    return angle.cos().to(dtype), angle.sin().to(dtype)


def apply_rotary(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turn each pair (x_i, x_{i + D/2}) of x [B, T, heads, D] by its position's angle; keeps dtype.

    ``cos`` and ``sin`` come from `rotary_tables`, [T, D / 2], [1, T, D / 2] or [B, T, D / 2]. On a
    GPU a Triton kernel makes one pass of it where the tables are float32 and ask for no gradient.

    Raises:
        ValueError: D is odd, or the tables are of another shape.
    """
    batch, seq_len, _, width = x.shape
    if width % 2:
        raise ValueError(f"x: has heads of width {width}; rotary positions need an even width")
    shapes = [(*lead, seq_len, width // 2) for lead in ((), (1,), (batch,))]
    if cos.shape not in shapes or sin.shape != cos.shape:
        raise ValueError(
            f"cos, sin: are {list(cos.shape)} and {list(sin.shape)}; x {list(x.shape)} takes"
            f" {list(shapes[0])} or {list(shapes[2])}, from rotary_tables"
        )
    constant = not (cos.requires_grad or sin.requires_grad)
    if constant and cos.dtype == torch.float32 and kernels_serve(x):
        return _Turn.apply(x, cos, sin, False)
    cos, sin = cos.unsqueeze(-2), sin.unsqueeze(-2)
    first, second = x.chunk(2, dim=-1)
    turned = (first * cos - second * sin, second * cos + first * sin)
    return torch.cat(turned, dim=-1).to(x.dtype)


class _Turn(torch.autograd.Function):
    """By the kernel; the gradient is turned back."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, cos: Tensor, sin: Tensor, back: bool) -> Tensor:
        from dynnsiha.synthesis.triton import turned

        ctx.save_for_backward(cos, sin)
        ctx.back = back
        return turned(kernels_operand(x), cos, sin, back=back)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        return _Turn.apply(grad, *ctx.saved_tensors, not ctx.back), None, None, None
