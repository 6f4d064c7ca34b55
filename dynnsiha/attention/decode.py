"""Attention of new tokens against a cache: equal, token by token, to one forward over all of them.

The first tokens of an empty cache go through the core as ever, by the backend of the caller. Later
ones see the summaries that have ended, the tokens of their listed blocks and their window. A few
gather their blocks, each its own; many at once, such as a next question, read each block once for
all that list it. Sums and softmaxes are in float32 or wider.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from .api import check_backend, native_sparse_attention
from .blockwise import selected_after
from .cache import KVCache, Summarise
from .checks import check_operands
from .config import NSAConfig
from .importance import compressed_probabilities, importance
from .lists import private_list, private_size, shared_list
from .outputs import NSAAux
from .summaries import window_count

_STEP_ELEMENTS = 1 << 24
"""Numbers of a step's largest tensor; a step of one token may exceed it."""

_FEW = 8
"""So many tokens gather their blocks; for more, sorting the lists costs less than copies."""


@torch.no_grad()
def cached_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    gates: Tensor,
    cache: KVCache,
    *,
    backend: str = "auto",
    summarise: tuple[Summarise, Summarise] | None = None,
) -> tuple[Tensor, NSAAux]:
    """The sparse core for the next n tokens of each sequence, which the cache takes over.

    Args:
        q: [B, n, H, D]; k, v: [B, n, K, D]; gates: [B, n, H, 3]. Keys are rotated by the tokens'
            positions, ``cache.positions(n)``.
        cache: what came before, and the configuration.
        backend: of the core, for the tokens that fill an empty cache.
        summarise: compression networks for k and v; the means if None.

    Returns:
        o [B, n, H, D] in the dtype of q, and NSAAux. Lists of tokens that came after others are one
        a query, int32 [B, n, L, slots], in hybrid configurations too, where the shared slots come
        first.

    Raises:
        ValueError: the shapes are not the cache's, the tokens do not fit in it, or the backend does
            not take them. Whatever is raised, the cache is as it was.
        TypeError: dtypes or devices differ, or are not served; likewise.
    """
    config = cache.config
    if config is None:
        raise ValueError("cache: is one of dense attention; make it with a config")
    check_operands(q, k, v, gates)
    cache.require_queries(q)
    check_backend(backend)
    before = cache.lengths
    with cache.unless_it_fails():
        cache.append(k, v, summarise)
        if q.shape[1] > 1 and not any(before):
            return _prefill(q, k, v, gates, cache, config, backend, summarise is not None)
        return _after(before, q, gates, cache, config)


def _after(
    before: tuple[int, ...], q: Tensor, gates: Tensor, cache: KVCache, config: NSAConfig
) -> tuple[Tensor, NSAAux]:
    """Tokens that follow others, of which there are ``before``; the cache holds them already."""
    few = q.shape[1] <= _FEW
    rows = _rows_of_a_step(q, cache, config, few)
    parts = []
    with torch.autocast(q.device.type, enabled=False):  # as the core does
        for begin in range(0, q.shape[1], rows):
            at = slice(begin, begin + rows)
            step = _Step(q[:, at], cache, config, [length + begin for length in before])
            parts.append(step.attend(gates[:, at], few))
    out, indices, lse = (torch.cat(part, 1) for part in zip(*parts, strict=True))
    return out, NSAAux(indices, (indices >= 0).sum(-1, dtype=torch.int32), lse, "cached")


def _rows_of_a_step(q: Tensor, cache: KVCache, config: NSAConfig, few: bool) -> int:
    """Tokens of each sequence to take at a time, for the cache that holds all of them already."""
    batch, count, q_heads, width = q.shape
    windows = window_count(max(cache.lengths), config.compress_block, config.compress_stride)
    # Of each slot, the keys that are copied or the partial outputs of all heads.
    slot = config.list_heads(q_heads, cache.k.shape[1]) * config.block_size if few else q_heads
    largest = batch * max(slot * config.top_n * width, q_heads * windows)
    # The products of a step's windows are square: longer steps would compute more that is masked.
    return max(1, min(count, max(_FEW, config.window), _STEP_ELEMENTS // largest))


@torch.no_grad()
def cached_dense_attention(q: Tensor, k: Tensor, v: Tensor, cache: KVCache) -> Tensor:
    """Dense causal attention of the next tokens, q [B, n, H, D], k, v [B, n, K, D] → o as q.

    The cache takes over k and v.

    Raises:
        ValueError: the shapes are not the cache's, or the tokens do not fit in it.
        TypeError: the cache is on another device.
    """
    cache.require_queries(q)
    positions = cache.positions(q.shape[1])
    cache.append(k, v)
    longest = max(cache.lengths)
    keys, values = (x[:, :, :longest].to(q.dtype) for x in (cache.k, cache.v))
    seen = torch.arange(longest, device=q.device) <= positions[..., None]
    o = F.scaled_dot_product_attention(
        q.transpose(1, 2),
        keys,
        values,
        attn_mask=None if q.shape[1] == 1 and cache.uniform else seen[:, None],
        enable_gqa=q.shape[2] != k.shape[2],
    )
    return o.transpose(1, 2)


def _prefill(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    gates: Tensor,
    cache: KVCache,
    config: NSAConfig,
    backend: str,
    networks: bool,
) -> tuple[Tensor, NSAAux]:
    """The first tokens of every sequence, by the core; the cache holds them already."""
    assert cache.k_cmp is not None
    assert cache.v_cmp is not None
    length = q.shape[1]
    options: dict[str, Any] = {}
    if networks:
        n = window_count(length, config.compress_block, config.compress_stride)
        kept = (x[:, :, :n].transpose(1, 2).to(k.dtype) for x in (cache.k_cmp, cache.v_cmp))
        options = dict(zip(("k_cmp", "v_cmp"), kept, strict=True))
    out, aux = native_sparse_attention(
        q, k, v, gates, config, backend=backend, return_aux=True, **options
    )
    if cache.shared is not None:
        shared = aux.block_indices[0].transpose(1, 2)
        cache.shared[:, :, : shared.shape[2]] = shared
    if cache.pending is not None:
        assert isinstance(config.query_tile, int)
        behind = (length - 1) // config.query_tile * config.query_tile + 1
        if behind < length:
            with torch.autocast(q.device.type, enabled=False):
                step = _Step(q[:, behind:], cache, config, [behind] * len(q))
                scores = step.scores().sum(2)
            cache.pending[..., : scores.shape[-1]] = scores
    return out, aux


class _Step:
    """New queries at consecutive positions of each sequence, whose keys the cache holds already.

    q [B, n, H, D]; ``before`` is where the first of them stands in each sequence.
    """

    def __init__(self, q: Tensor, cache: KVCache, config: NSAConfig, before: list[int]) -> None:
        assert cache.k_cmp is not None
        assert cache.v_cmp is not None
        self.cache, self.config, self.before, self.dtype = cache, config, before, q.dtype
        self.count, q_heads = q.shape[1], q.shape[2]
        kv_heads = cache.k.shape[1]
        self.kv_heads, self.list_heads = kv_heads, config.list_heads(q_heads, kv_heads)
        self.wide = torch.promote_types(q.dtype, torch.float32)
        self.q = q.transpose(1, 2).to(self.wide)
        self.scale = q.shape[-1] ** -0.5
        begin = torch.tensor(before, device=q.device)[:, None]
        self.positions = begin + torch.arange(self.count, device=q.device)  # [B, n]
        windows = window_count(
            max(before) + self.count, config.compress_block, config.compress_stride
        )
        self.k_cmp, self.v_cmp = cache.k_cmp[:, :, :windows], cache.v_cmp[:, :, :windows]
        self._p: Tensor | None = None

    def attend(self, gates: Tensor, few: bool) -> tuple[Tensor, Tensor, Tensor]:
        """o [B, n, H, D], lists [B, n, L, slots] and lse [B, n, H] of the selected branch."""
        branches = self.config.branches
        gate = gates.transpose(1, 2).to(self.wide)[..., None].unbind(-2)
        out = torch.zeros_like(self.q)
        lse = torch.full_like(out[..., 0], float("-inf"))
        lists = torch.full(
            (len(out), self.list_heads, self.count, self.config.top_n),
            -1,
            dtype=torch.int32,
            device=out.device,
        )
        if "compressed" in branches:
            o = self.probabilities() @ self.v_cmp[:, :, None].to(self.wide)
            out += gate[0] * o.flatten(1, 2)
        if "selected" in branches:
            lists = self.choose()
            o, lse = self.gathered(lists) if few else self.by_block(lists)
            out += gate[1] * o
        if "sliding" in branches:
            out += gate[2] * self.sliding()
        return out.transpose(1, 2).to(self.dtype), lists.transpose(1, 2), lse.transpose(1, 2)

    def probabilities(self) -> Tensor:
        """Of the compressed branch, [B, K, G, n, windows]."""
        if self._p is None:
            self._p = compressed_probabilities(
                self.q, self.k_cmp, self.positions, self.config, self.scale
            )
        return self._p

    def scores(self) -> Tensor:
        """Importance of the blocks for every query: [B, L, n, blocks]."""
        return importance(self.probabilities(), self.list_heads, self.config)

    def choose(self) -> Tensor:
        """The lists of the queries, int32 [B, L, n, slots]; refreshes the cache's shared lists."""
        c, kept = self.config, self.cache.shared
        if kept is None:
            return _by_sequence(shared_list(*_in_a_row(self.scores(), self.positions), c), self)
        self._refresh(kept)
        tile = c.query_tile
        assert isinstance(tile, int)
        rows = torch.arange(len(kept), device=kept.device)[:, None]
        shared = kept[rows, :, self.positions // tile].transpose(1, 2)
        if not private_size(c):
            return shared
        scores, positions = _in_a_row(self.scores(), self.positions)
        private = private_list(scores, _in_a_row(shared, self.positions)[0], positions, c)
        return torch.cat([shared, _by_sequence(private, self)], -1)

    def _refresh(self, kept: Tensor) -> None:
        """Choose the shared lists of the tiles that begin among the queries."""
        c, pending, tile = self.config, self.cache.pending, self.config.query_tile
        assert isinstance(tile, int)
        leaders = [
            (row, i)
            for row, first in enumerate(self.before)
            for i in range(-first % tile, self.count, tile)
        ]
        if pending is None and not leaders:
            return
        scores = self.scores()
        if pending is not None:
            scores = _summed(scores, pending, self.before, tile)
        if leaders:
            row, i = torch.tensor(leaders, device=kept.device).unbind(1)
            at = self.positions[row, i]
            chosen = shared_list(scores[row, :, i].transpose(0, 1).contiguous(), at, c)
            kept[row, :, at // tile] = chosen.transpose(0, 1)

    def by_block(self, lists: Tensor) -> tuple[Tensor, Tensor]:
        """As ``gathered``, for many queries: sequences of different length one by one."""
        operands = self.q, self.cache.k, self.cache.v, lists
        together = len(self.before) if len(set(self.before)) == 1 else 1
        parts = [
            selected_after(
                q.transpose(1, 2).to(self.dtype), k, v, chosen.transpose(1, 2), first, self.config
            )
            for q, k, v, chosen, first in zip(
                *(x.split(together) for x in operands), self.before[::together], strict=True
            )
        ]
        o, lse = (torch.cat(part).transpose(1, 2) for part in zip(*parts, strict=True))
        return o, lse

    def gathered(self, lists: Tensor) -> tuple[Tensor, Tensor]:
        """Attention over the tokens of the listed blocks: o [B, H, n, D] and lse [B, H, n]."""
        size = self.config.block_size
        batch = torch.arange(len(lists), device=lists.device)[:, None, None, None]
        head = torch.arange(self.list_heads, device=lists.device)[:, None, None]
        head = head // (self.list_heads // self.kv_heads)
        keys, values = (
            x.unflatten(2, (-1, size))[batch, head, lists.clamp(min=0)].flatten(3, 4)
            for x in (self.cache.k, self.cache.v)
        )  # [B, L, n, slots block, D]
        token = lists[..., None] * size + torch.arange(size, device=lists.device)
        seen = (lists >= 0)[..., None] & (token <= self.positions[:, None, :, None, None])
        q = self.q.unflatten(1, (self.list_heads, -1)).transpose(2, 3)  # [B, L, n, G, D]
        logits = q @ keys.to(self.wide).transpose(-1, -2) * self.scale
        logits.masked_fill_(~seen.flatten(3)[:, :, :, None], float("-inf"))
        o = logits.softmax(-1) @ values.to(self.wide)  # the own block is in every list
        lse = logits.logsumexp(-1)
        return o.transpose(2, 3).flatten(1, 2), lse.transpose(2, 3).flatten(1, 2)

    def sliding(self) -> Tensor:
        """Attention over the window: o [B, H, n, D]."""
        width, longest = self.config.window, max(self.before) + self.count
        span = min(width - 1 + self.count, longest)
        first = [max(0, length + self.count - span) for length in self.before]
        if len(set(first)) == 1:
            at = torch.arange(first[0], first[0] + span, device=self.q.device)[None]
            keys, values = (
                x[:, :, first[0] : first[0] + span] for x in (self.cache.k, self.cache.v)
            )
        else:
            begin = torch.tensor(first, device=self.q.device)[:, None]
            at = begin + torch.arange(span, device=self.q.device)
            index = at.clamp(max=self.cache.k.shape[2] - 1)[:, None, :, None]
            keys, values = (x.take_along_dim(index, 2) for x in (self.cache.k, self.cache.v))
        ahead = self.positions[:, :, None] - at[:, None]  # [B, n, span]
        seen = (ahead >= 0) & (ahead < width)
        q = self.q.unflatten(1, (self.kv_heads, -1))  # [B, K, G, n, D]
        logits = q @ keys[:, :, None].to(self.wide).transpose(-1, -2) * self.scale
        logits.masked_fill_(~seen[:, None, None], float("-inf"))
        return (logits.softmax(-1) @ values[:, :, None].to(self.wide)).flatten(1, 2)


def _in_a_row(x: Tensor, positions: Tensor) -> tuple[Tensor, Tensor]:
    """[B, L, n, ...] as [L, B n, ...], a copy, and the positions as [B n]: lists know one row."""
    return x.transpose(0, 1).flatten(1, 2).clone(), positions.flatten()


def _by_sequence(x: Tensor, step: _Step) -> Tensor:
    """[L, B n, ...] as [B, L, n, ...]."""
    return x.unflatten(1, (-1, step.count)).transpose(0, 1)


def _summed(scores: Tensor, pending: Tensor, before: list[int], tile: int) -> Tensor:
    """Scores [B, L, n, blocks] summed over the queries since the last leader; keeps the rest.

    At a leader that is the sum over the ``tile`` queries that end at it.
    """
    width = scores.shape[-1]
    total = torch.empty_like(scores)
    for row, first in enumerate(before):
        running = pending[row, :, :width].clone()
        for i in range(scores.shape[2]):
            running = running + scores[row, :, i]
            total[row, :, i] = running
            if (first + i) % tile == 0:
                running = torch.zeros_like(running)
        pending[row] = 0.0
        pending[row, :, :width] = running
    return total
