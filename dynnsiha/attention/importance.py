"""Compressed attention of some queries, and the importance of blocks that it yields."""

from __future__ import annotations

import torch
from torch import Tensor

from .config import NSAConfig
from .summaries import block_scores


def compressed_probabilities(
    q: Tensor, k_cmp: Tensor, positions: Tensor, config: NSAConfig, scale: float
) -> Tensor:
    """Probabilities over summaries, [B, K, G, N, n], in float32 or wider; 0 for the unseen.

    Args:
        q: [B, H, N, D], queries anywhere in their sequences.
        k_cmp: [B, K, n, D], summaries of the windows 0 ... n - 1.
        positions: int64 [B or 1, N], where the queries stand.
    """
    wide = torch.promote_types(q.dtype, torch.float32)  # ranks do not survive bfloat16
    grouped = q.to(wide).unflatten(1, (k_cmp.shape[1], -1))
    logits = grouped @ k_cmp.to(wide)[:, :, None].transpose(-1, -2) * scale
    starts = torch.arange(k_cmp.shape[2], device=q.device) * config.compress_stride
    unseen = (starts + config.compress_block - 1 > positions[..., None])[:, None, None]
    # A query that sees nothing would be uniform over what is masked, hence the second fill.
    p = logits.masked_fill_(unseen, torch.finfo(wide).min).softmax(-1)
    return p.masked_fill(unseen, 0.0) if p.requires_grad else p.masked_fill_(unseen, 0.0)


def importance(p: Tensor, list_heads: int, config: NSAConfig) -> Tensor:
    """Probabilities [B, K, G, N, n] on blocks, summed over the heads of a list: [B, L, N, blocks].

    ``blocks`` is as far as the windows reach, and at least 1.
    """
    if p.shape[-1] == 0:
        return p.new_zeros(p.shape[0], list_heads, p.shape[3], 1)
    per_list = p.flatten(1, 2).unflatten(1, (list_heads, -1)).sum(2)
    return block_scores(per_list, config.block_size, config.compress_block, config.compress_stride)
