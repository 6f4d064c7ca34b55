"""What one attention layer keeps of the tokens so far, so that a next token costs one step."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial

import torch
from torch import Tensor

from .config import NSAConfig
from .lists import shared_size
from .summaries import mean_summaries, window_count

Summarise = Callable[[Tensor], Tensor]
"""Tokens [B, T, K, D] → summaries of the windows that are complete, [B, n, K, D]."""


class KVCache:
    """Keys, values, block summaries and shared lists of a batch of sequences, in one layer.

    A layer makes its own (``layer.new_cache(batch, max_len)``) and fills it::

        cache = layer.new_cache(batch=1, max_len=4096)
        y = layer(prompt, cache=cache)  # [1, T, d_model]: any number of tokens
        y = layer(token, cache=cache)  # [1, 1, d_model]: the next ones see all before

    Sequences may differ in length: feed prompts padded on the right, then ``truncate`` each row to
    its own length; what is fed next continues every row where it ends. ``truncate`` also takes back
    tokens, ``select`` drops or repeats rows. No gradient flows through a cache.

    Memory is allocated at once: 2 B K D numbers for each of max_len tokens (rounded up to whole
    blocks) and, for sparse attention, for each of its windows (1 / compress_stride of the tokens);
    lists of 4 (top_n - private_blocks) bytes for each K/V head and tile of query_tile tokens.
    ``nbytes`` is the sum.

    Args:
        batch, max_len: sequences, and most tokens of each.
        q_heads, kv_heads, head_dim: H, K and D of the layer.
        config: of sparse attention, None for dense attention.
        dtype, device: of keys, values and summaries.

    Attributes:
        k, v: [B, K, capacity, D]; keys are rotated already.
        k_cmp, v_cmp: [B, K, windows, D], None for dense attention.
        shared: the lists of all tiles, int32 [B, L, tiles, s]; None unless query_tile > 1.
        pending: for ``tile_scoring="aggregate"``, the scores of the queries since the last leader,
            [B, L, blocks]; else None.

    Raises:
        ValueError: a size below 1, or kv_heads does not divide q_heads.
    """

    def __init__(
        self,
        batch: int,
        max_len: int,
        q_heads: int,
        kv_heads: int,
        head_dim: int,
        *,
        config: NSAConfig | None = None,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str | None = None,
    ) -> None:
        sizes = {"batch": batch, "max_len": max_len, "kv_heads": kv_heads, "head_dim": head_dim}
        for name, size in sizes.items():
            if size < 1:
                raise ValueError(f"{name}={size}: must be at least 1")
        if q_heads < 1 or q_heads % kv_heads:
            raise ValueError(f"kv_heads={kv_heads}: must divide q_heads={q_heads}")
        self.max_len, self.q_heads = max_len, q_heads
        self.config = None if config is None else config.resolved(q_heads, kv_heads)
        self._lengths = [0] * batch
        capacity = max_len
        if self.config is not None:
            capacity = -(-max_len // self.config.block_size) * self.config.block_size

        def zeros(tokens: int) -> Tensor:
            # Never uninitialised: what a mask shuts out must not be NaN.
            return torch.zeros(batch, kv_heads, tokens, head_dim, dtype=dtype, device=device)

        self.k, self.v = zeros(capacity), zeros(capacity)
        self.k_cmp: Tensor | None = None
        self.v_cmp: Tensor | None = None
        self.shared: Tensor | None = None
        self.pending: Tensor | None = None
        if self.config is None:
            return
        c = self.config
        assert isinstance(c.query_tile, int)
        windows = window_count(max_len, c.compress_block, c.compress_stride)
        self.k_cmp, self.v_cmp = zeros(windows), zeros(windows)
        if c.query_tile == 1 or "selected" not in c.branches:
            return
        lists = (batch, c.list_heads(q_heads, kv_heads))
        tiles = -(-max_len // c.query_tile)
        self.shared = torch.full(
            (*lists, tiles, shared_size(c)), -1, dtype=torch.int32, device=device
        )
        if c.tile_scoring == "aggregate":
            wide = torch.promote_types(dtype, torch.float32)
            blocks = capacity // c.block_size
            self.pending = torch.zeros(*lists, blocks, dtype=wide, device=device)

    @property
    def lengths(self) -> tuple[int, ...]:
        """Tokens of each sequence so far."""
        return tuple(self._lengths)

    @property
    def uniform(self) -> bool:
        """Whether all sequences are equally long."""
        return len(set(self._lengths)) == 1

    @property
    def nbytes(self) -> int:
        """Bytes of all that is kept."""
        return sum(x.nbytes for x in vars(self).values() if isinstance(x, Tensor))

    @property
    def held_bytes(self) -> int:
        """Bytes of what the tokens so far fill: keys, values, summaries and lists.

        Of ``nbytes``, without the room for tokens to come. Of a tile that has begun, the list.
        """
        _, kv_heads, _, head_dim = self.k.shape
        numbers, list_bytes = 2 * sum(self._lengths), 0
        if self.config is not None:
            c = self.config
            numbers += 2 * sum(
                window_count(length, c.compress_block, c.compress_stride)
                for length in self._lengths
            )
            if self.shared is not None:
                assert isinstance(c.query_tile, int)
                tiles = sum(-(-length // c.query_tile) for length in self._lengths)
                list_bytes = tiles * self.shared[0, :, 0].nbytes
        pending = 0 if self.pending is None else self.pending.nbytes
        return numbers * kv_heads * head_dim * self.k.element_size() + list_bytes + pending

    def positions(self, count: int) -> Tensor:
        """Where the next ``count`` tokens stand: int64 [B, count], [1, count] if ``uniform``."""
        first = self._lengths[:1] if self.uniform else self._lengths
        begin = torch.tensor(first, device=self.k.device)[:, None]
        return begin + torch.arange(count, device=self.k.device)

    def append(
        self, k: Tensor, v: Tensor, summarise: tuple[Summarise, Summarise] | None = None
    ) -> None:
        """Take over the next tokens' k and v [B, n, K, D], and summarise windows that they end.

        ``summarise`` makes summaries of k and of v; the means if None.

        Raises:
            ValueError: another shape, or more tokens than there is room for. Whatever is raised,
                the cache has no more tokens than before.
        """
        batch, kv_heads, _, head_dim = self.k.shape
        count = k.shape[1]
        if k.shape != v.shape or k.shape != (batch, count, kv_heads, head_dim):
            raise ValueError(
                f"k and v: have shapes {list(k.shape)} and {list(v.shape)}; the cache takes "
                f"[{batch}, n, {kv_heads}, {head_dim}]"
            )
        self.require_room(count)
        before = self.lengths
        after = [length + count for length in before]
        for kept, new in ((self.k, k), (self.v, v)):
            if self.uniform:
                kept[:, :, before[0] : before[0] + count] = new.detach().transpose(1, 2)
            else:
                rows = torch.arange(batch, device=kept.device)[:, None]
                kept[rows, :, self.positions(count)] = new.detach().to(kept.dtype)
        if self.config is not None:
            self._summarise(before, after, summarise, k.dtype)
        self._lengths = after

    def require_queries(self, q: Tensor) -> None:
        """Refuse q unless it is [B, n, H, D] with the cache's batch, heads and width, and device.

        Raises:
            ValueError: another shape.
            TypeError: another device.
        """
        batch, _, _, head_dim = self.k.shape
        if q.dim() != 4 or (q.shape[0], *q.shape[2:]) != (batch, self.q_heads, head_dim):
            raise ValueError(
                f"q: has shape {list(q.shape)}; the cache takes [{batch}, n, {self.q_heads}, "
                f"{head_dim}]"
            )
        if q.device != self.k.device:
            raise TypeError(
                f"q: is on {q.device}, the cache on {self.k.device}; move them to one device"
            )

    def require_room(self, count: int) -> None:
        """Raise ValueError unless ``count`` more tokens fit."""
        if max(self._lengths) + count > self.max_len:
            raise ValueError(
                f"max_len={self.max_len}: {count} more tokens after {max(self._lengths)} do not "
                "fit; make a longer cache"
            )

    @contextmanager
    def unless_it_fails(self) -> Iterator[None]:
        """Take over what is appended within, or nothing of it if anything is raised."""
        lengths = self._lengths
        # Only these sums hold earlier tokens too: all else is written behind the lengths.
        pending = None if self.pending is None else self.pending.clone()
        try:
            yield
        except BaseException:  # no memory, or an interrupt
            self._lengths = lengths
            if self.pending is not None and pending is not None:
                self.pending.copy_(pending)
            raise

    @torch.no_grad()
    def _summarise(
        self,
        before: Sequence[int],
        after: Sequence[int],
        summarise: tuple[Summarise, Summarise] | None,
        dtype: torch.dtype,
    ) -> None:
        """Fill in the windows that end between the lengths ``before`` and ``after``.

        Networks get tokens in ``dtype``, that of their layer, which may not be the cache's.
        """
        c = self.config
        assert c is not None
        assert self.k_cmp is not None
        assert self.v_cmp is not None
        size, stride = c.compress_block, c.compress_stride
        if summarise is None:
            means = partial(mean_summaries, compress_block=size, compress_stride=stride)
            summarise, dtype = (means, means), self.k.dtype
        had = [window_count(length, size, stride) for length in before]
        have = [window_count(length, size, stride) for length in after]
        kinds = (self.k, self.k_cmp, summarise[0]), (self.v, self.v_cmp, summarise[1])
        if had == have:
            return
        if len(set(before)) == 1:
            tokens = slice(had[0] * stride, (have[0] - 1) * stride + size)
            for kept, summaries, of in kinds:
                new = of(kept[:, :, tokens].transpose(1, 2).to(dtype))
                summaries[:, :, had[0] : have[0]] = new.transpose(1, 2)
            return
        ended = [(row, w) for row in range(len(had)) for w in range(had[row], have[row])]
        row, window = torch.tensor(ended, device=self.k.device).unbind(1)
        at = window[:, None] * stride + torch.arange(size, device=row.device)
        for kept, summaries, of in kinds:
            new = of(kept[row[:, None], :, at].to(dtype))[:, 0]
            summaries[row, :, window] = new.to(kept.dtype)

    def can_cut(self, kept: int, length: int) -> bool:
        """Whether `truncate` can make ``length`` of ``kept`` tokens: not inside of a tile's sum."""
        if self.pending is None or length in (0, kept):
            return True
        assert self.config is not None
        assert isinstance(self.config.query_tile, int)
        return length % self.config.query_tile == 1

    def truncate(self, lengths: Sequence[int]) -> None:
        """Forget what stands behind each sequence's length: padding, or tokens taken back.

        Raises:
            ValueError: not one length a sequence, a length above the present one, or with
                ``tile_scoring="aggregate"`` one that is not right after a tile's leader.
        """
        new = [int(length) for length in lengths]
        if len(new) != len(self._lengths):
            raise ValueError(f"lengths: has {len(new)} entries; must have {len(self._lengths)}")
        for kept, length in zip(self._lengths, new, strict=True):
            if not 0 <= length <= kept:
                raise ValueError(f"lengths: {length} must be from 0 to {kept}, the present length")
        if self.pending is not None:
            for row, (kept, length) in enumerate(zip(self._lengths, new, strict=True)):
                if not self.can_cut(kept, length):
                    assert self.config is not None
                    raise ValueError(
                        f"lengths: {length} is in the middle of a sum of tile_scoring='aggregate'; "
                        f"truncate to a multiple of {self.config.query_tile} plus 1, or use "
                        "tile_scoring='leader'"
                    )
                if length != kept:
                    self.pending[row] = 0.0
        self._lengths = new

    def select(self, rows: Sequence[int]) -> None:
        """Keep these sequences, in this order, a sequence as often as it is named (beam search).

        Raises:
            ValueError: no row, or one that does not exist.
        """
        rows = [int(row) for row in rows]
        batch = len(self._lengths)
        if not rows or not all(0 <= row < batch for row in rows):
            raise ValueError(f"rows={rows}: must name at least one of the rows 0 to {batch - 1}")
        index = torch.tensor(rows, device=self.k.device)
        for name, kept in list(vars(self).items()):
            if isinstance(kept, Tensor):
                setattr(self, name, kept.index_select(0, index))
        self._lengths = [self._lengths[row] for row in rows]

    def reset(self) -> None:
        """Forget all tokens; the memory stays."""
        self._lengths = [0] * len(self._lengths)
        if self.pending is not None:
            self.pending.zero_()
