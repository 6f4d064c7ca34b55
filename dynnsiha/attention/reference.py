"""The specification of the native-sparse-attention core: explicit masks, any float dtype.

Readable before fast: every branch is a masked softmax over all keys, so memory grows with the
number of rows times T. ``reference_rows`` computes chosen rows only, which is how long sequences
are checked. Differentiable by autograd, twice too; no gradient flows through the choice of blocks,
but with ``differentiable_topk`` one flows through the scores of the chosen ones.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .config import NSAConfig
from .lists import private_list, private_size, shared_list, shared_size, tile_lists
from .outputs import BlockIndices, NSAAux
from .summaries import mean_summaries, window_block_weights


def reference(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    gates: Tensor,
    config: NSAConfig,
    *,
    block_indices: BlockIndices | None = None,
    k_cmp: Tensor | None = None,
    v_cmp: Tensor | None = None,
    scale: float | None = None,
) -> tuple[Tensor, NSAAux]:
    """All rows of :func:`reference_rows`, with the lists in the form of the public interface."""
    seq_len = q.shape[1]
    rows = torch.arange(seq_len, device=q.device)
    core = _Core(q, k, v, config, k_cmp, v_cmp, scale)
    if block_indices is None:
        per_query, scores = core.lists(rows)
        block_indices = _public(per_query, config)
    else:
        per_query, scores = _per_query(block_indices, config, seq_len), None
    out, lse = core.attend(rows, gates, per_query, scores)
    counts = (per_query >= 0).sum(-1, dtype=torch.int32).transpose(1, 2)
    return out, NSAAux(block_indices, counts, lse, "reference")


def reference_rows(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    gates: Tensor,
    config: NSAConfig,
    rows: Tensor,
    *,
    block_indices: BlockIndices | None = None,
    k_cmp: Tensor | None = None,
    v_cmp: Tensor | None = None,
    scale: float | None = None,
    return_importance: bool = False,
) -> Tensor | tuple[Tensor, Tensor]:
    """Output of the queries at ``rows`` only (docs/architecture.md).

    Args:
        q: [B, T, H, D]; k, v: [B, T, K, D]; gates: [B, T, H, 3].
        rows: int64 [N], positions of queries.
        block_indices: lists of all T queries, as in the public interface; chosen here if None.
        k_cmp, v_cmp: summaries [B, n, K, D] in place of the means.
        return_importance: also return what the rows' own blocks are chosen by, [B, N, K, blocks]
            (H in place of K with ``per_head_lists``).

    Returns:
        o [B, N, H, D], in the dtype of q.
    """
    core = _Core(q, k, v, config, k_cmp, v_cmp, scale)
    if block_indices is None:
        lists, scores = core.lists(rows)
    else:
        lists, scores = _per_query(block_indices, config, q.shape[1])[:, :, rows], None
    out, _ = core.attend(rows, gates[:, rows], lists, scores)
    return (out, core.importance(rows).transpose(1, 2)) if return_importance else out


class _Core:
    """Operands, heads first: q [B, K, G, T, D], k, v [B, K, T, D], summaries [B, K, n, D].

    L is the number of lists of a token: K, or H with ``per_head_lists``.
    """

    def __init__(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        config: NSAConfig,
        k_cmp: Tensor | None,
        v_cmp: Tensor | None,
        scale: float | None,
    ) -> None:
        self.config = config
        self.seq_len, kv_heads = k.shape[1], k.shape[2]
        self.list_heads = config.list_heads(q.shape[2], kv_heads)
        if k_cmp is None:
            k_cmp = mean_summaries(k, config.compress_block, config.compress_stride)
        if v_cmp is None:
            v_cmp = mean_summaries(v, config.compress_block, config.compress_stride)
        self.q = q.unflatten(2, (kv_heads, -1)).permute(0, 2, 3, 1, 4)
        self.k, self.v, self.k_cmp, self.v_cmp = (x.transpose(1, 2) for x in (k, v, k_cmp, v_cmp))
        self.scale = q.shape[-1] ** -0.5 if scale is None else scale

    def attend(
        self, rows: Tensor, gates: Tensor, lists: Tensor, scores: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """Gated sum of the branches, [B, N, H, D], and the selected branch's lse, [B, N, H].

        ``gates`` [B, N, H, 3], ``lists`` [B, L, N, n] and ``scores``, by which the lists' blocks
        were chosen, are those of the rows.
        """
        keys = torch.arange(self.seq_len, device=rows.device)
        causal = keys <= rows[:, None]
        sliding = causal & (keys > rows[:, None] - self.config.window)
        kv_heads, size = self.k.shape[1], self.config.block_size
        selected = (_listed(lists, self.seq_len, size) & causal).unflatten(1, (kv_heads, -1))
        log_weights = None
        if scores is not None and self.config.differentiable_topk:
            # 0, with the gradient of the score: a straight-through weight of 1.
            log_weights = _on_keys(torch.log1p(scores - scores.detach()), lists, self.seq_len, size)
            log_weights = log_weights.unflatten(1, (kv_heads, -1))
        q = self.q[:, :, :, rows]
        o_slc, lse = _masked_attention(q, self.k, self.v, selected, self.scale, log_weights)
        o_cmp, _ = _masked_attention(q, self.k_cmp, self.v_cmp, self._ended(rows), self.scale)
        o_win, _ = _masked_attention(q, self.k, self.v, sliding, self.scale)
        if "selected" not in self.config.branches:
            lse = torch.full_like(lse, float("-inf"))
        branches = {"compressed": o_cmp, "selected": o_slc, "sliding": o_win}
        gate = gates.unflatten(2, (q.shape[1], -1)).permute(4, 0, 2, 3, 1)[..., None]
        out = torch.zeros_like(o_slc)
        for i, (name, branch) in enumerate(branches.items()):
            if name in self.config.branches:
                out = out + gate[i] * branch
        out = out.permute(0, 3, 1, 2, 4).flatten(2, 3).to(self.q.dtype)
        return out, lse.permute(0, 3, 1, 2).flatten(2, 3)

    def importance(self, rows: Tensor) -> Tensor:
        """Compressed probabilities on selection blocks, summed over G or not: [B, L, N, blocks]."""
        with torch.set_grad_enabled(torch.is_grad_enabled() and self.config.differentiable_topk):
            return self._importance(rows)

    def _importance(self, rows: Tensor) -> Tensor:
        c = self.config
        wide = torch.promote_types(self.q.dtype, torch.float32)  # ranks do not survive bfloat16
        q, k_cmp = self.q[:, :, :, rows].to(wide), self.k_cmp.to(wide)
        p = _masked_softmax(_logits(q, k_cmp, self.scale), self._ended(rows))
        blocks = -(-self.seq_len // c.block_size)
        weights = window_block_weights(
            p.shape[-1], blocks, c.block_size, c.compress_block, c.compress_stride
        )
        per_list = p.flatten(1, 2).unflatten(1, (self.list_heads, -1)).sum(2)
        return per_list @ weights.to(p)

    def lists(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Blocks of each row's query, int32 [B, L, N, top_n], and the scores that chose them.

        The score of a shared block is its tile's, of a private one the query's own; 0 where a block
        is forced or a slot empty.
        """
        c = self.config
        tile = c.query_tile
        assert isinstance(tile, int)
        if "selected" not in c.branches:
            shape = (len(self.k), self.list_heads, len(rows), shared_size(c) + private_size(c))
            none = torch.full(shape, -1, dtype=torch.int32, device=rows.device)
            return none, torch.zeros_like(none, dtype=self.q.dtype)
        leaders = rows // tile * tile
        scored = self.importance(leaders)
        if c.tile_scoring == "aggregate":
            for back in range(1, tile):
                earlier = self.importance((leaders - back).clamp(min=0))
                scored = scored + earlier * (leaders >= back)[:, None]
        shared = shared_list(scored.detach().clone(), leaders, c)
        scores = _at(scored, shared)
        scores[..., : c.init_blocks + c.local_blocks] = 0.0
        if not private_size(c):
            return shared, scores
        own = self.importance(rows)
        private = private_list(own.detach().clone(), shared, rows, c)
        return torch.cat([shared, private], -1), torch.cat([scores, _at(own, private)], -1)

    def _ended(self, rows: Tensor) -> Tensor:
        """Which windows have ended at each row: bool [N, n]."""
        c = self.config
        starts = torch.arange(self.k_cmp.shape[2], device=rows.device) * c.compress_stride
        return starts + c.compress_block - 1 <= rows[:, None]


def _logits(q: Tensor, k: Tensor, scale: float) -> Tensor:
    """[B, K, G, N, D] x [B, K, S, D] -> [B, K, G, N, S]."""
    return q @ k[:, :, None].transpose(-1, -2) * scale


def _masked_softmax(logits: Tensor, mask: Tensor) -> Tensor:
    """Softmax over the allowed keys; a row that may see none is all zeros, in its gradient too."""
    shut = logits.masked_fill(~mask, float("-inf"))
    shut = shut.masked_fill(~mask.any(-1, keepdim=True), 0.0)
    return shut.softmax(-1).masked_fill(~mask, 0.0)


def _masked_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    mask: Tensor,
    scale: float,
    log_weights: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Attention over the allowed keys, weighted: o [B, K, G, N, D] and lse [B, K, G, N]."""
    logits = _logits(q, k, scale)
    if log_weights is not None:
        logits = logits + log_weights.to(logits)
    out = _masked_softmax(logits, mask) @ v[:, :, None]
    wide = logits.detach().to(torch.promote_types(logits.dtype, torch.float32))
    lse = wide.masked_fill(~mask, float("-inf")).logsumexp(-1)
    return out, lse


def _listed(lists: Tensor, seq_len: int, block_size: int) -> Tensor:
    """Keys that a list covers: bool [B, L, N, T]."""
    blocks = -(-seq_len // block_size)
    chosen = torch.zeros(*lists.shape[:-1], blocks + 1, dtype=torch.bool, device=lists.device)
    chosen.scatter_(-1, torch.where(lists >= 0, lists, blocks).long(), True)
    return chosen[..., :blocks].repeat_interleave(block_size, -1)[..., :seq_len]


def _at(scores: Tensor, lists: Tensor) -> Tensor:
    """Scores [..., blocks] of the listed blocks [..., n]; 0 in empty slots."""
    return scores.gather(-1, lists.clamp(min=0).long()).masked_fill(lists < 0, 0.0)


def _on_keys(per_slot: Tensor, lists: Tensor, seq_len: int, block_size: int) -> Tensor:
    """What each slot of a list says, on the keys of its block: [B, L, N, n] -> [B, L, N, T]."""
    blocks = -(-seq_len // block_size)
    index = torch.where(lists >= 0, lists, blocks).long()
    per_block = per_slot.new_zeros(*lists.shape[:-1], blocks + 1).scatter(-1, index, per_slot)
    return per_block[..., :blocks].repeat_interleave(block_size, -1)[..., :seq_len]


def _per_query(block_indices: BlockIndices, config: NSAConfig, seq_len: int) -> Tensor:
    """Lists of the public interface as [B, L, T, n], one list a query."""
    if isinstance(block_indices, Tensor):
        return block_indices.transpose(1, 2)
    shared, private = (x.transpose(1, 2) for x in block_indices)
    assert isinstance(config.query_tile, int)
    return torch.cat([tile_lists(shared, config.query_tile, seq_len), private], -1)


def _public(lists: Tensor, config: NSAConfig) -> BlockIndices:
    """Lists of all queries, [B, L, T, n], in the form of the public interface."""
    if config.query_tile == 1:
        return lists.transpose(1, 2)
    private = private_size(config)
    shared = lists[:, :, :: config.query_tile, : lists.shape[-1] - private]
    return shared.transpose(1, 2), lists[..., lists.shape[-1] - private :].transpose(1, 2)
