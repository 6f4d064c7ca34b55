"""Block lists by brute force: float64 importance, and what a list must hold by the definition.

Kernels rank 16-bit inputs in float32, so near ties may fall either way: the chosen blocks' exact
scores, as a multiset, may differ from the best ones by 2 % of the worst score that belongs in.
"""

from __future__ import annotations

import torch
from torch import Tensor

from dynnsiha import NSAConfig
from dynnsiha.attention import NSAAux

from .cases import Case, Inputs
from .oracle import lists_of

MOST_OFF = 0.02


def importance(inputs: Inputs, config: NSAConfig) -> Tensor:
    """NSA, equation 9, of one sequence in float64: [B, T, K, blocks].

    Every summary window gives its probability, summed over the group, once to each of its strides;
    a stride belongs to one block.
    """
    c = config
    q, k = (x.double() for x in inputs.operands[:2])
    length, kv_heads = k.shape[1], k.shape[2]
    blocks = -(-length // c.block_size)
    q = q.unflatten(2, (kv_heads, -1))
    if length < c.compress_block:
        return q.new_zeros(q.shape[0], length, kv_heads, blocks)
    k_cmp = inputs.options.get("k_cmp")
    means = k.unfold(1, c.compress_block, c.compress_stride).mean(-1)
    means = means if k_cmp is None else k_cmp.double()
    scale = inputs.options.get("scale", q.shape[-1] ** -0.5)
    logits = torch.einsum("btkgd,bwkd->btkgw", q, means) * scale
    windows = torch.arange(means.shape[1], device=q.device)
    ended = windows * c.compress_stride + c.compress_block - 1
    seen = ended <= torch.arange(length, device=q.device)[:, None]
    logits = logits.masked_fill(~seen[:, None, None], float("-inf"))
    p = logits.softmax(-1).nan_to_num(0.0).sum(3)
    scores = p.new_zeros(*p.shape[:3], blocks)
    for i in range(c.compress_block // c.compress_stride):
        scores.index_add_(3, (windows + i) * c.compress_stride // c.block_size, p)
    return scores


def assert_lists(aux: NSAAux, case: Case, inputs: Inputs) -> None:
    """Every sequence's lists are what the definition says."""
    lists, tile = lists_of(aux), case.config.query_tile
    tiles_before = 0
    for begin, end in case.bounds:
        tiles = -(-(end - begin) // tile)
        own = [lists[0][:, tiles_before : tiles_before + tiles], *lists[1:]]
        own[1:] = [x[:, begin:end] for x in own[1:]]
        part = Inputs([x[:, begin:end] for x in inputs.operands], inputs.grad, inputs.options)
        _assert_sequence(own, aux.block_counts[:, begin:end], part, case.config)
        tiles_before += tiles


def _assert_sequence(
    lists: list[Tensor], counts: Tensor, inputs: Inputs, config: NSAConfig
) -> None:
    length, tile = inputs.operands[0].shape[1], config.query_tile
    blocks = -(-length // config.block_size)
    batch, kv_heads = counts.shape[0], counts.shape[2]
    private_slots = config.private_blocks if len(lists) > 1 else 0
    slots = (config.top_n - private_slots, private_slots)[: len(lists)]
    steps = (tile, 1)[: len(lists)]
    assert all(x.dtype == torch.int32 for x in (*lists, counts))
    for x, step, n in zip(lists, steps, slots, strict=True):
        assert x.shape == (batch, -(-length // step), kv_heads, n), f"list of {list(x.shape)}"
    shared = lists[0].repeat_interleave(tile, 1)[:, :length]
    private = lists[1] if len(lists) > 1 else shared[..., :0]
    own = torch.arange(length, device=shared.device) // config.block_size
    chosen = _members(torch.cat([shared, private], -1), blocks, own)
    assert torch.equal(chosen.sum(-1).int(), counts), "counts are not the lists' lengths"
    block = torch.arange(blocks, device=own.device)
    forced = (block < config.init_blocks) | (block > own[:, None] - config.local_blocks)
    forced = (forced & (block <= own[:, None]))[None, :, None].expand_as(chosen)
    assert not (forced & ~chosen).any(), "a forced block is missing"
    if tile > 1:
        head = shared[..., : config.init_blocks + config.local_blocks]
        assert torch.equal(_members(head, blocks, own), forced), "forced blocks do not come first"
    candidate = (~forced) & (block < own[:, None])[None, :, None]
    scores = importance(inputs, config)
    room = slots[0] - config.init_blocks - config.local_blocks
    leaders = scores[:, ::tile]
    if config.tile_scoring == "aggregate":
        before = torch.nn.functional.pad(scores, (0, 0, 0, 0, tile - 1, 0))
        leaders = before.unfold(1, tile, 1).sum(-1)[:, ::tile]
    leaders = leaders.repeat_interleave(tile, 1)[:, :length]
    in_shared = _members(shared, blocks, own) & candidate
    if config.top_p is None:
        _assert_best(leaders, in_shared, candidate, room)
    else:
        _assert_enough(leaders, in_shared, candidate, forced, own, room, config)
    if len(lists) > 1:
        in_private = _members(private, blocks, own)
        left = candidate & ~in_shared
        assert not (in_private & ~left).any(), "a private block is forced or shared already"
        _assert_best(scores, in_private, left, slots[1])


def _members(lists: Tensor, blocks: int, own: Tensor) -> Tensor:
    """Which blocks a list holds, [B, T, K, blocks]; no block twice, and none in the future."""
    assert (lists >= -1).all(), "below -1"
    assert (lists <= own[:, None, None]).all(), "a block in the future"
    times = torch.zeros(*lists.shape[:-1], blocks + 1, dtype=torch.int32, device=lists.device)
    slot = torch.where(lists >= 0, lists, blocks).long()
    times.scatter_add_(-1, slot, torch.ones_like(slot, dtype=torch.int32))
    assert (times[..., :blocks] <= 1).all(), "a block twice"
    return times[..., :blocks] > 0


def _assert_best(scores: Tensor, chosen: Tensor, candidate: Tensor, room: int) -> None:
    """The ``room`` best candidates, or all: scores [B, T, K, blocks] as a multiset."""
    n = min(room, scores.shape[-1])
    got, best = (scores.masked_fill(~x, -1.0).topk(n, -1).values for x in (chosen, candidate))
    assert torch.equal(chosen.sum(-1), (best >= 0).sum(-1)), "too many or too few blocks"
    if n == 0:
        return
    worst = best.masked_fill(best < 0, float("inf")).amin(-1, keepdim=True)
    off = ((got - best).abs() / worst).masked_fill(best < 0, 0.0).max().item()
    assert off <= MOST_OFF, f"a chosen score is off by {off:.3f} of the last one that belongs in"


def _assert_enough(
    scores: Tensor,
    chosen: Tensor,
    candidate: Tensor,
    forced: Tensor,
    own: Tensor,
    room: int,
    config: NSAConfig,
) -> None:
    """DynNSA: the best candidates, and the fewest whose shares, forced ones first, reach top_p."""
    block = torch.arange(scores.shape[-1], device=own.device)
    # The own block is complete at its last token only; then it counts.
    position = torch.arange(len(own), device=own.device)
    if config.query_tile > 1:
        position = position // config.query_tile * config.query_tile
    complete = ((block + 1) * config.block_size <= position[:, None] + 1)[None, :, None]
    weights = scores.masked_fill(~complete, 0.0)
    total = weights.sum(-1, keepdim=True)
    share = torch.where(total > 0, weights / total, 0.0)
    ahead = share.masked_fill(~forced, 0.0).sum(-1)
    n = min(room, scores.shape[-1])
    got, best = (share.masked_fill(~x, -1.0).topk(n, -1).values for x in (chosen, candidate))
    count, most = chosen.sum(-1), (best >= 0).sum(-1)
    assert (count <= most).all(), "more blocks than there is room for"
    kept = torch.arange(n, device=own.device) < count[..., None]
    off = ((got - best).abs() / best.clamp(min=1e-9)).masked_fill(~kept, 0.0).max().item()
    assert off <= MOST_OFF, f"a chosen share is off by {off:.3f}"
    private = 0 if config.query_tile == 1 else config.private_blocks
    least = (config.min_blocks - private - forced.sum(-1)).clamp(min=0)
    # Reached by the kept ones, and not yet reached without the last of them.
    kept_share = best.clamp(min=0).masked_fill(~kept, 0.0)
    reached = ahead + kept_share.sum(-1)
    last = best.clamp(min=0).gather(-1, (count - 1).clamp(min=0)[..., None])[..., 0]
    tolerance = MOST_OFF * config.top_p
    enough = (count == most) | (reached >= config.top_p - tolerance)
    assert enough.all(), "top_p is not reached"
    needed = (count <= least) | (reached - last <= config.top_p + tolerance)
    assert (needed | (count == 0)).all(), "more blocks than top_p needs"
    assert (count >= torch.minimum(least, most)).all(), "fewer blocks than min_blocks"
