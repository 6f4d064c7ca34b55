"""From importance to block lists: forced, shared and private blocks (docs/architecture.md).

A list is int32, -1 where empty. A query's blocks are those of its tile's shared list, which begins
with the forced blocks (the own block is the same for the whole tile, since tiles divide blocks),
and of its private list. With ``query_tile == 1`` there is one list, of NSA's top_n blocks.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .config import NSAConfig


def shared_size(config: NSAConfig) -> int:
    """Slots of the shared list, the forced blocks included."""
    return config.top_n - private_size(config)


def private_size(config: NSAConfig) -> int:
    """Slots of the private list: none for exact lists, where it is one choice with the shared."""
    return 0 if config.query_tile == 1 else config.private_blocks


def forced_blocks(positions: Tensor, config: NSAConfig) -> Tensor:
    """Forced blocks of the queries at ``positions`` [N]: int64 [N, init + local], -1 if doubled."""
    own = positions[:, None] // config.block_size
    local = own - torch.arange(config.local_blocks, device=positions.device)
    init = torch.arange(config.init_blocks, device=positions.device).expand(len(positions), -1)
    init = init.masked_fill(init > own - config.local_blocks, -1)
    return torch.cat([init, local.clamp(min=-1)], 1)


def shared_list(importance: Tensor, positions: Tensor, config: NSAConfig, first: int = 0) -> Tensor:
    """Forced blocks, then the best complete ones: int32 [..., N, shared_size].

    Args:
        importance: [..., N, blocks] >= 0, of each tile's leader; overwritten.
        positions: int64 [N], none before ``first``.
    """
    forced = forced_blocks(positions, config).expand(*importance.shape[:-1], -1)
    room = shared_size(config) - forced.shape[-1]
    if config.top_p is None:
        best, _ = _best(only_candidates(importance, positions, config, first), room)
    else:
        total, ahead = _forced_share(importance, positions, config)
        best, value = _best(only_candidates(importance, positions, config, first), room)
        shares = torch.where(total > 0, value.clamp(min=0) / total, 0.0)
        reached = ahead + shares.cumsum(-1) - shares  # by what stands ahead of each block
        count = (forced >= 0).sum(-1, keepdim=True) + torch.arange(room, device=best.device)
        kept = (reached < config.top_p) | (count < config.min_blocks - private_size(config))
        best = best.masked_fill(~kept, -1)
    return torch.cat([forced.int(), best], -1)


def private_list(
    importance: Tensor, shared: Tensor, positions: Tensor, config: NSAConfig, first: int = 0
) -> Tensor:
    """Each query's best complete blocks that its tile's list lacks: int32 [..., N, private_size].

    Args:
        importance: [..., N, blocks], of each query itself; overwritten.
        shared: int [..., N, s], the list of each query's tile, forced blocks first.
        positions: int64 [N], none before ``first``.
    """
    candidates = only_candidates(importance, positions, config, first)
    chosen = shared[..., config.init_blocks + config.local_blocks :]
    # An empty slot stands at block 0 with a score that changes nothing.
    score = torch.where(chosen >= 0, -1.0, torch.inf).to(candidates)
    candidates.scatter_reduce_(-1, chosen.clamp(min=0).long(), score, "amin")
    return _best(candidates, private_size(config))[0]


def tile_lists(shared: Tensor, query_tile: int, seq_len: int) -> Tensor:
    """A list per tile, [..., tiles, s], as a list per query, [..., seq_len, s]."""
    return shared.repeat_interleave(query_tile, -2)[..., :seq_len, :]


def only_candidates(importance: Tensor, positions: Tensor, config: NSAConfig, first: int) -> Tensor:
    """Overwrite with -1 what may not be chosen: forced, incomplete and future blocks.

    ``first`` spares the mask on columns that are complete and unforced for every position.
    """
    importance[..., : config.init_blocks] = -1.0
    settled = max(0, first // config.block_size - config.local_blocks + 1)
    blocks = torch.arange(settled, max(settled, importance.shape[-1]), device=importance.device)
    end = positions[:, None] // config.block_size - config.local_blocks + 1
    importance[..., settled:].masked_fill_(blocks >= end, -1.0)
    return importance


def _best(candidates: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """The ``count`` best candidates and their scores [..., N, count], -1 where there are fewer."""
    value, index = candidates.topk(min(count, candidates.shape[-1]), -1)
    index = index.int().masked_fill_(value < 0, -1)
    missing = (0, count - value.shape[-1])
    pad = torch.nn.functional.pad
    return pad(index, missing, value=-1), pad(value, missing, value=-1.0)


def _forced_share(
    importance: Tensor, positions: Tensor, config: NSAConfig
) -> tuple[Tensor, Tensor]:
    """DynNSA: importance of all complete blocks, and the forced ones' share of it: [..., N, 1]."""
    blocks = torch.arange(importance.shape[-1], device=importance.device)
    complete = (blocks + 1) * config.block_size <= positions[:, None] + 1
    newest = positions[:, None] // config.block_size - config.local_blocks
    forced = (blocks < config.init_blocks) | (blocks > newest)
    weights = importance.masked_fill(~complete, 0.0)
    total = weights.sum(-1, keepdim=True)
    ahead = weights.masked_fill(~forced, 0.0).sum(-1, keepdim=True)
    return total, torch.where(total > 0, ahead / total, 0.0)
