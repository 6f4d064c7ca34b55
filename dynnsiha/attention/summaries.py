"""Parameter-free block summaries, and how summary windows map onto selection blocks."""

from __future__ import annotations

import torch
from torch import Tensor


def window_count(seq_len: int, compress_block: int, compress_stride: int) -> int:
    """Complete summary windows in a sequence: [w * stride, w * stride + block) for w = 0, 1, ..."""
    return max(0, (seq_len - compress_block) // compress_stride + 1)


def mean_summaries(x: Tensor, compress_block: int, compress_stride: int) -> Tensor:
    """Mean of every complete window: [B, T, K, D] -> [B, n, K, D] (docs/architecture.md).

    Differentiable. Low-precision inputs are averaged in float32 and rounded once.
    """
    n = window_count(x.shape[1], compress_block, compress_stride)
    if n == 0:
        return x[:, :0]
    wide = x.float() if x.dtype in (torch.float16, torch.bfloat16) else x
    used = wide[:, : n * compress_stride + compress_block - compress_stride]
    strides = used.unflatten(1, (-1, compress_stride)).sum(2)
    per_window = compress_block // compress_stride
    total = sum(strides[:, i : i + n] for i in range(per_window))
    return (total / compress_block).to(x.dtype)


def block_scores(
    per_window: Tensor, block_size: int, compress_block: int, compress_stride: int
) -> Tensor:
    """Windows' scores [..., n], n >= 1, on selection blocks [..., blocks] (NSA, equation 9).

    The product with ``window_block_weights`` for as many blocks as the windows reach, by sums of
    slices; the scores themselves, not a copy, where windows and blocks are the same.
    """
    per_block, strides = block_size // compress_stride, compress_block // compress_stride
    if per_block == strides == 1:
        return per_window
    # A stride is covered by the windows that begin 0 ... strides - 1 strides before it.
    n = per_window.shape[-1]
    blocks = -(-(n + strides - 1) // per_block)
    padded = torch.nn.functional.pad(per_window, (strides - 1, blocks * per_block - n))
    shifted = [padded[..., i : i + blocks * per_block] for i in range(strides)]
    return sum(shifted[1:], shifted[0]).unflatten(-1, (blocks, per_block)).sum(-1)


def window_scores(
    per_block: Tensor, windows: int, block_size: int, compress_block: int, compress_stride: int
) -> Tensor:
    """The transpose of ``block_scores``: [..., blocks] -> [..., windows]."""
    strides = per_block.repeat_interleave(block_size // compress_stride, -1)
    count = compress_block // compress_stride
    missing = max(0, windows + count - 1 - strides.shape[-1])
    strides = torch.nn.functional.pad(strides, (0, missing))
    shifted = [strides[..., i : i + windows] for i in range(count)]
    return sum(shifted[1:], shifted[0])


def window_block_weights(
    windows: int, blocks: int, block_size: int, compress_block: int, compress_stride: int
) -> Tensor:
    """How often a window counts for a selection block: [windows, blocks] (NSA, equation 9).

    The weight is the number of strides that the window and the block share: for windows of 32 every
    16 and blocks of 64, block j takes windows 4j - 1 ... 4j + 3 with weights 1, 2, 2, 2, 1.
    """
    start = torch.arange(windows)[:, None] * compress_stride
    block_start = torch.arange(blocks)[None] * block_size
    shared = torch.minimum(start + compress_block, block_start + block_size)
    shared = shared - torch.maximum(start, block_start)
    return (shared.clamp(min=0) // compress_stride).float()
