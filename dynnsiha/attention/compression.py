"""Compression networks: what summarises a window of keys, or of values (NSA, equation 7).

Every network maps k or v [B, T, K, D] to summaries [B, n, K, D], one for each complete window of
``compress_block`` tokens, a new one every ``compress_stride``. A summary reads the tokens of its
own window alone, so whoever sees only windows that have ended sees nothing of the future. All
networks but the plain mean add a learned position inside the window to its tokens, and each K/V
head has weights of its own where nothing else is said. Two networks make a layer's summaries: one
for k, one for v.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .packed import bounds_of
from .summaries import mean_summaries, window_count

_POSITION_STD = 0.02


class BlockCompression(nn.Module):
    """What the six networks share: windows, positions inside them, packed sequences.

    Args:
        kv_heads, head_dim: of the keys or values, K and D.
        compress_block, compress_stride: tokens in a window, and between windows' starts; the
            stride divides the block.

    Raises:
        ValueError: a number below 1, or a stride that does not divide the block.
    """

    def __init__(
        self, kv_heads: int, head_dim: int, compress_block: int = 32, compress_stride: int = 16
    ) -> None:
        super().__init__()
        self.kv_heads, self.head_dim = kv_heads, head_dim
        self.compress_block, self.compress_stride = compress_block, compress_stride
        for name in ("kv_heads", "head_dim", "compress_block", "compress_stride"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)}: must be at least 1")
        if compress_block % compress_stride:
            raise ValueError(
                f"compress_stride={compress_stride}: must be a divisor of "
                f"compress_block={compress_block}"
            )

    def forward(self, x: Tensor, cu_seqlens: Tensor | None = None) -> Tensor:
        """x [B, T, K, D] → summaries [B, n, K, D] in its dtype; n may be 0.

        ``cu_seqlens`` int [S + 1] are the boundaries of sequences packed into one batch row; their
        summaries lie one sequence after the other, as ``native_sparse_attention`` takes them.

        Raises:
            ValueError: x or cu_seqlens has another shape.
        """
        if x.dim() != 4 or x.shape[2:] != (self.kv_heads, self.head_dim):
            raise ValueError(
                f"x: has shape {list(x.shape)}; must be "
                f"[batch, seq_len, {self.kv_heads}, {self.head_dim}]"
            )
        if cu_seqlens is not None:
            bounds = bounds_of(cu_seqlens, x.shape[0], x.shape[1])
            lengths = [end - begin for begin, end in pairwise(bounds)]
            return torch.cat([self(part) for part in x.split(lengths, 1)], 1)
        if window_count(x.shape[1], self.compress_block, self.compress_stride) == 0:
            return x[:, :0]
        return self.compress(x).to(x.dtype)

    def compress(self, x: Tensor) -> Tensor:
        """x [B, T, K, D] of at least one window → [B, n, K, D]."""
        raise NotImplementedError

    def extra_repr(self) -> str:
        return (
            f"{self.kv_heads}, {self.head_dim}, compress_block={self.compress_block}, "
            f"compress_stride={self.compress_stride}"
        )


CompressionFactory = Callable[[int, int, int, int], nn.Module]
"""(kv_heads, head_dim, compress_block, compress_stride) → a network: each class below, or a
``functools.partial`` of it with its options."""


class MeanPoolCompress(BlockCompression):
    """The mean of the window, without parameters or positions: what the core does by itself."""

    def compress(self, x: Tensor) -> Tensor:
        return mean_summaries(x, self.compress_block, self.compress_stride)


class _Positioned(BlockCompression):
    """With a position embedding [block, K, D] for the tokens of a window."""

    def __init__(
        self, kv_heads: int, head_dim: int, compress_block: int = 32, compress_stride: int = 16
    ) -> None:
        super().__init__(kv_heads, head_dim, compress_block, compress_stride)
        self.positions = nn.Parameter(torch.empty(compress_block, kv_heads, head_dim))
        nn.init.normal_(self.positions, std=_POSITION_STD)

    def windows(self, x: Tensor) -> Tensor:
        """Every window's tokens with their positions: [B, T, K, D] → [B, n, block, K, D]."""
        cut = x.unfold(1, self.compress_block, self.compress_stride)  # [B, n, K, D, block], a view
        return cut.movedim(-1, 2) + self.positions


def _weights(kv_heads: int, fan_in: int, fan_out: int) -> nn.Parameter:
    """A matrix for each head, [K, fan_in, fan_out], uniform with a variance of 1 / (3 fan_in)."""
    bound = fan_in**-0.5
    return nn.Parameter(torch.empty(kv_heads, fan_in, fan_out).uniform_(-bound, bound))


class ConvLinearCompress(_Positioned):
    """A strided convolution over the window, SiLU, then a linear map; D → D channels each."""

    def __init__(
        self, kv_heads: int, head_dim: int, compress_block: int = 32, compress_stride: int = 16
    ) -> None:
        super().__init__(kv_heads, head_dim, compress_block, compress_stride)
        self.convolution = nn.Conv1d(
            kv_heads * head_dim,
            kv_heads * head_dim,
            compress_block,
            stride=compress_stride,
            groups=kv_heads,
        )
        self.weight = _weights(kv_heads, head_dim, head_dim)
        self.bias = nn.Parameter(torch.zeros(kv_heads, head_dim))

    def compress(self, x: Tensor) -> Tensor:
        # Convolution is linear: positions convolve by themselves, once, to the same in each window.
        wide = torch.promote_types(x.dtype, self.positions.dtype)  # as their sum has
        tokens, positions = (y.to(wide).flatten(-2).transpose(-1, -2) for y in (x, self.positions))
        offset = F.conv1d(positions, self.convolution.weight, groups=self.kv_heads)
        hidden = F.silu(self.convolution(tokens) + offset)
        hidden = hidden.transpose(1, 2).unflatten(-1, (self.kv_heads, self.head_dim))
        return torch.einsum("bnki,kij->bnkj", hidden, self.weight) + self.bias


class AttentionPoolCompress(_Positioned):
    """A weighted mean of the window's tokens: softmax of their match with a learned query.

    The query starts at 0, so that a new network is the mean (of tokens with their positions).
    """

    def __init__(
        self, kv_heads: int, head_dim: int, compress_block: int = 32, compress_stride: int = 16
    ) -> None:
        super().__init__(kv_heads, head_dim, compress_block, compress_stride)
        self.query = nn.Parameter(torch.zeros(kv_heads, head_dim))

    def compress(self, x: Tensor) -> Tensor:
        tokens = self.windows(x)
        score = torch.einsum("bnwkd,kd->bnwk", tokens, self.query) / math.sqrt(self.head_dim)
        weight = score.softmax(2)
        return torch.einsum("bnwk,bnwkd->bnkd", weight.to(tokens.dtype), tokens)


class GroupedMLPCompress(_Positioned):
    """An MLP over the window's tokens side by side: block * D → hidden → D, for each head.

    Args:
        hidden: width between the two maps; 4 * head_dim by default.
    """

    def __init__(
        self,
        kv_heads: int,
        head_dim: int,
        compress_block: int = 32,
        compress_stride: int = 16,
        *,
        hidden: int | None = None,
    ) -> None:
        super().__init__(kv_heads, head_dim, compress_block, compress_stride)
        hidden = 4 * head_dim if hidden is None else hidden
        if hidden < 1:
            raise ValueError(f"hidden={hidden}: must be at least 1")
        self.inner = _weights(kv_heads, compress_block * head_dim, hidden)
        self.inner_bias = nn.Parameter(torch.zeros(kv_heads, hidden))
        self.outer = _weights(kv_heads, hidden, head_dim)
        self.outer_bias = nn.Parameter(torch.zeros(kv_heads, head_dim))

    def compress(self, x: Tensor) -> Tensor:
        tokens = self.windows(x).transpose(2, 3).flatten(3)
        hidden = F.silu(torch.einsum("bnki,kij->bnkj", tokens, self.inner) + self.inner_bias)
        return torch.einsum("bnkj,kjd->bnkd", hidden, self.outer) + self.outer_bias


class SingleProjectionCompress(_Positioned):
    """One linear map of the window's tokens side by side: block * D → D, for each head."""

    def __init__(
        self, kv_heads: int, head_dim: int, compress_block: int = 32, compress_stride: int = 16
    ) -> None:
        super().__init__(kv_heads, head_dim, compress_block, compress_stride)
        self.weight = _weights(kv_heads, compress_block * head_dim, head_dim)
        self.bias = nn.Parameter(torch.zeros(kv_heads, head_dim))

    def compress(self, x: Tensor) -> Tensor:
        tokens = self.windows(x).transpose(2, 3).flatten(3)
        return torch.einsum("bnki,kij->bnkj", tokens, self.weight) + self.bias


class TransformerCompress(_Positioned):
    """A small transformer inside each window, then the mean of its tokens.

    Pre-normalised layers of attention among the window's tokens (both ways: a window counts only
    once it has ended) and a SiLU MLP of 4 D. The K/V heads share its weights, not their positions.

    Args:
        layers: number of layers.
        heads: attention heads; a divisor of head_dim.
    """

    def __init__(
        self,
        kv_heads: int,
        head_dim: int,
        compress_block: int = 32,
        compress_stride: int = 16,
        *,
        layers: int = 1,
        heads: int = 1,
    ) -> None:
        super().__init__(kv_heads, head_dim, compress_block, compress_stride)
        if layers < 1:
            raise ValueError(f"layers={layers}: must be at least 1")
        if heads < 1 or head_dim % heads:
            raise ValueError(f"heads={heads}: must be a divisor of head_dim={head_dim}")
        self.layers = nn.ModuleList(_WindowLayer(head_dim, heads) for _ in range(layers))

    def compress(self, x: Tensor) -> Tensor:
        tokens = self.windows(x).transpose(2, 3)  # [B, n, K, block, D]
        windows = tokens.flatten(0, 2)
        for layer in self.layers:
            windows = layer(windows)
        return windows.mean(1).unflatten(0, tokens.shape[:3])


class _WindowLayer(nn.Module):
    """x [windows, block, D] → the same shape."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.attention_norm = nn.RMSNorm(width, eps=1e-6)
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.output = nn.Linear(width, width, bias=False)
        self.feed_forward_norm = nn.RMSNorm(width, eps=1e-6)
        self.inner = nn.Linear(width, 4 * width)
        self.outer = nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        qkv = self.qkv(self.attention_norm(x)).unflatten(-1, (3, self.heads, -1))
        q, k, v = (part.transpose(1, 2) for part in qkv.unbind(2))
        attended = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        x = x + self.output(attended)
        return x + self.outer(F.silu(self.inner(self.feed_forward_norm(x))))
