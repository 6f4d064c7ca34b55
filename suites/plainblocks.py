"""Plain transformer blocks: what the forms with experts are compared with."""

from __future__ import annotations

from collections.abc import Callable

import torch.nn.functional as F
from torch import Tensor, nn

from dynnsiha.forms import AttentionLayer, DenseCore, HeadLayout, linear_projections


class PlainBlock(nn.Module):
    """Attention and SiLU feed-forward, each on a normalised input: x [B, T, d] → its update.

    Args:
        d_model: d.
        layout: heads and their width.
        width: hidden width of the feed-forward.
        attention: of (q, k, v), see `DenseCore`.
    """

    def __init__(
        self,
        d_model: int,
        layout: HeadLayout,
        width: int,
        attention: Callable[[Tensor, Tensor, Tensor], Tensor],
    ) -> None:
        super().__init__()
        self.heads_norm = nn.RMSNorm(d_model, eps=1e-6)
        self.heads = AttentionLayer(
            layout, linear_projections(d_model, layout), DenseCore(attention)
        )
        self.mlp_norm = nn.RMSNorm(d_model, eps=1e-6)
        self.inner = nn.Linear(d_model, width, bias=False)
        self.outer = nn.Linear(width, d_model, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """The sum of what both parts add to x."""
        attended = self.heads(self.heads_norm(x))
        return attended + self.mlp(self.mlp_norm(x + attended))

    def mlp(self, x: Tensor) -> Tensor:
        """The feed-forward alone."""
        return self.outer(F.silu(self.inner(x)))


class PlainBlocks(nn.Module):
    """Blocks one after another, x [B, T, d] → what they add to it, as the refining forms do."""

    def __init__(self, blocks: list[PlainBlock]) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(blocks)

    def forward(self, x: Tensor) -> Tensor:
        """Sum of the blocks' updates."""
        y = x.new_zeros(x.shape)
        for block in self.blocks:
            y = y + block(x + y)
        return y
