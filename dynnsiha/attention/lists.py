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
        importance: [..., N, blocks] >= 0, of each tile's leader.
        positions: int64 [N], none before ``first``.
    """
    forced = forced_blocks(positions, config).expand(*importance.shape[:-1], -1)
    best, value = _best(
        _candidates(importance, positions, config, first), shared_size(config) - forced.shape[-1]
    )
    if config.top_p is not None:
        best = _cut(best, value, forced, importance, positions, config)
    return torch.cat([forced.int(), best], -1)


def private_list(
    importance: Tensor, shared: Tensor, positions: Tensor, config: NSAConfig, first: int = 0
) -> Tensor:
    """Each query's best complete blocks that its tile's list lacks: int32 [..., N, private_size].

    Args:
        importance: [..., N, blocks], of each query itself.
        shared: int [..., N, s], the list of each query's tile.
    """
    candidates = _candidates(importance, positions, config, first)
    spare = candidates.shape[-1] - 1  # stands for empty slots and for blocks that nobody scored
    taken = torch.where((shared >= 0) & (shared < spare), shared, spare).long()
    candidates.scatter_(-1, taken, -1.0)
    return _best(candidates, private_size(config))[0]


def tile_lists(shared: Tensor, query_tile: int, seq_len: int) -> Tensor:
    """A list per tile, [..., tiles, s], as a list per query, [..., seq_len, s]."""
    return shared.repeat_interleave(query_tile, -2)[..., :seq_len, :]


def _candidates(importance: Tensor, positions: Tensor, config: NSAConfig, first: int) -> Tensor:
    """Importance, -1 for what may not be chosen (forced, incomplete, future), and a spare column.

    ``first`` spares the mask on columns that are complete and unforced for every position.
    """
    candidates = importance.new_empty(*importance.shape[:-1], importance.shape[-1] + 1)
    candidates[..., :-1] = importance
    candidates[..., -1] = -1.0
    candidates[..., : config.init_blocks] = -1.0
    settled = max(
        0, min(first // config.block_size - config.local_blocks + 1, importance.shape[-1])
    )
    blocks = torch.arange(settled, candidates.shape[-1], device=importance.device)
    end = positions[:, None] // config.block_size - config.local_blocks + 1
    candidates[..., settled:].masked_fill_(blocks >= end, -1.0)
    return candidates


def _best(candidates: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """The ``count`` best candidates and their scores [..., N, count], -1 where there are fewer."""
    found = min(count, candidates.shape[-1])
    value, index = candidates.topk(found, -1)
    index = index.int().masked_fill_(value < 0, -1)
    fill = (0, count - found)
    return torch.nn.functional.pad(index, fill, value=-1), torch.nn.functional.pad(
        value, fill, value=-1.0
    )


def _cut(
    best: Tensor,
    value: Tensor,
    forced: Tensor,
    importance: Tensor,
    positions: Tensor,
    config: NSAConfig,
) -> Tensor:
    """DynNSA: the fewest blocks whose shares of importance reach top_p, forced ones first."""
    assert config.top_p is not None
    blocks = torch.arange(importance.shape[-1], device=importance.device)
    complete = (blocks + 1) * config.block_size <= positions[:, None] + 1
    weights = importance.masked_fill(~complete, 0.0)
    total = weights.sum(-1, keepdim=True)
    newest = positions[:, None] // config.block_size - config.local_blocks
    by_force = (blocks < config.init_blocks) | (blocks > newest)
    forced_weight = weights.masked_fill(~by_force, 0.0).sum(-1, keepdim=True)
    got = torch.where(total > 0, forced_weight / total, 0.0)
    shares = torch.where(total > 0, value.clamp(min=0) / total, 0.0)
    before = got + shares.cumsum(-1) - shares  # reached by what stands ahead of each block
    count = (forced >= 0).sum(-1, keepdim=True) + torch.arange(best.shape[-1], device=best.device)
    needed = (before < config.top_p) | (count < config.min_blocks - private_size(config))
    return best.masked_fill(~needed, -1)
