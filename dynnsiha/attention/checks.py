"""What a caller can get wrong, checked once: every message names the argument and the fix."""

from __future__ import annotations

import torch
from torch import Tensor

from .config import NSAConfig
from .outputs import BlockIndices
from .summaries import window_count


def check_operands(q: Tensor, k: Tensor, v: Tensor, gates: Tensor) -> None:
    """Ranks, devices, dtypes and shapes of the four operands fit together."""
    for name, tensor in (("q", q), ("k", k), ("v", v), ("gates", gates)):
        if tensor.dim() != 4:
            raise ValueError(
                f"{name}: must have 4 dimensions, [batch, seq_len, heads, width], "
                f"got {list(tensor.shape)}"
            )
        if tensor.device != q.device:
            raise TypeError(
                f"{name}: is on {tensor.device}, q on {q.device}; move them to one device"
            )
    for name, tensor in (("k", k), ("v", v)):
        if tensor.dtype != q.dtype:
            raise TypeError(
                f"{name}: has dtype {tensor.dtype}, q has {q.dtype}; cast them to one dtype"
            )
    if not q.is_floating_point():
        raise TypeError(f"q: has dtype {q.dtype}; cast it to a floating-point dtype")
    batch, seq_len, q_heads, head_dim = q.shape
    if 0 in q.shape:
        raise ValueError(f"q: has shape {list(q.shape)}; every dimension must be at least 1")
    if k.shape != v.shape:
        raise ValueError(f"v: has shape {list(v.shape)}, k has {list(k.shape)}; they must be equal")
    if (k.shape[0], k.shape[1], k.shape[3]) != (batch, seq_len, head_dim):
        raise ValueError(
            f"k: has shape {list(k.shape)}; batch, seq_len and width must be those of q, "
            f"{list(q.shape)}"
        )
    if k.shape[2] == 0 or q_heads % k.shape[2]:
        raise ValueError(f"k: has {k.shape[2]} heads; their number must divide q's {q_heads}")
    if gates.shape != (batch, seq_len, q_heads, 3):
        raise ValueError(
            f"gates: has shape {list(gates.shape)}; must be [{batch}, {seq_len}, {q_heads}, 3]"
        )


def check_summaries(
    k_cmp: Tensor | None, v_cmp: Tensor | None, k: Tensor, config: NSAConfig
) -> None:
    """Given summaries have one entry for every complete window."""
    n = window_count(k.shape[1], config.compress_block, config.compress_stride)
    expected = (k.shape[0], n, k.shape[2], k.shape[3])
    for name, tensor in (("k_cmp", k_cmp), ("v_cmp", v_cmp)):
        if tensor is not None and tensor.shape != expected:
            raise ValueError(f"{name}: has shape {list(tensor.shape)}; must be {list(expected)}")
        if tensor is not None and (tensor.dtype, tensor.device) != (k.dtype, k.device):
            raise TypeError(
                f"{name}: is {tensor.dtype} on {tensor.device}, k is {k.dtype} on {k.device}; "
                "make them alike"
            )


def well_formed(block_indices: BlockIndices, config: NSAConfig) -> BlockIndices:
    """The given lists, of as many tensors as the configuration has, each of 4 dimensions."""
    tile, many = config.query_tile, isinstance(block_indices, (tuple, list))
    lists = tuple(block_indices) if many else (block_indices,)
    right = not many if tile == 1 else many and len(lists) == 2
    if not (right and all(isinstance(index, Tensor) for index in lists)):
        wanted = "one tensor" if tile == 1 else "a pair of shared and private lists"
        raise ValueError(f"block_indices: must be {wanted} for query_tile={tile}")
    for index in lists:
        if index.dim() != 4:
            raise ValueError(
                f"block_indices: has shape {list(index.shape)}; must have 4 dimensions, "
                "[batch, queries, heads, slots]"
            )
    if lists[0].shape[-1] == 0:
        raise ValueError("block_indices: has no slots; give at least one, -1 where it is empty")
    return lists[0] if tile == 1 else (lists[0], lists[1])


def checked_lists(
    block_indices: BlockIndices, q: Tensor, k: Tensor, config: NSAConfig
) -> BlockIndices:
    """Lists that are ``well_formed`` as int32, after checks of shape, range and duplicates."""
    batch, seq_len = q.shape[:2]
    list_heads = config.list_heads(q.shape[2], k.shape[2])
    tile = config.query_tile
    assert isinstance(tile, int)
    lists = (block_indices,) if isinstance(block_indices, Tensor) else block_indices
    per_query = []
    for index, step in zip(lists, (tile, 1), strict=False):
        expected = (batch, -(-seq_len // step), list_heads)
        if index.shape[:3] != expected:
            raise ValueError(
                f"block_indices: has shape {list(index.shape)}; must be {[*expected, 'n']}"
            )
        if index.dtype == torch.bool or index.is_floating_point():
            raise TypeError(f"block_indices: has dtype {index.dtype}; cast it to int32")
        own = (
            torch.arange(0, seq_len, step, device=index.device)[:, None, None] // config.block_size
        )
        if bool(((index < -1) | (index > own)).any()):
            raise ValueError(
                "block_indices: names a block in the future or below -1; "
                "a query at t sees blocks 0 to t // block_size"
            )
        per_query.append(index.repeat_interleave(step, 1)[:, :seq_len])
    order = torch.cat(per_query, -1).sort(-1).values
    if bool(((order[..., 1:] == order[..., :-1]) & (order[..., 1:] >= 0)).any()):
        raise ValueError("block_indices: a query lists a block twice; remove duplicates")
    ready = tuple(index.int() for index in lists)
    return ready[0] if tile == 1 else (ready[0], ready[1])
