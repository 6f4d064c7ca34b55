"""Selected branch of queries that come after others, whose keys and values a cache holds."""

from __future__ import annotations

import torch
from torch import Tensor

from ..config import NSAConfig
from . import selected
from .operands import Operands, Problem, Scratch, heads_first, heads_last, operand_dtype


def selected_after(
    q: Tensor, k: Tensor, v: Tensor, lists: Tensor, first: int, config: NSAConfig
) -> tuple[Tensor, Tensor]:
    """Attention over the listed blocks, each read once for all queries that list it.

    Args:
        q: [B, n, H, D], at the positions from ``first`` on.
        k, v: [B, K, T, D], contiguous and of whole blocks, as a cache keeps them. Tokens behind the
            queries may be there and are not seen.
        lists: int32 [B, n, L, slots], -1 where empty; L is K, or H with lists per query head.

    Returns:
        o [B, n, H, D] and lse [B, n, H], summed in float32 or wider and returned so.
    """
    batch, count, _, width = q.shape
    dtype = operand_dtype(q)
    if k.dtype != dtype:  # a copy anyway: of no more than the queries see
        end = -(-(first + count) // config.block_size) * config.block_size
        k, v = (x[:, :, :end].to(dtype, memory_format=torch.contiguous_format) for x in (k, v))
    problem = Problem.of(q, k.transpose(1, 2), config, width**-0.5, first)
    rows = heads_first(q, lists.shape[2], count)
    none = rows[:0]  # the branch reads neither summaries nor, in a forward pass, gates
    x = Operands(problem, rows, k.flatten(0, 1), v.flatten(0, 1), none, none, none)
    index = lists.transpose(1, 2).flatten(0, 1).contiguous()
    o, lse = selected.forward(x, [index], 0, count, Scratch())
    return heads_last(o, batch, count), heads_last(lse[..., None], batch, count)[..., 0]
