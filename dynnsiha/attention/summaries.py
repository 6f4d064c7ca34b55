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
