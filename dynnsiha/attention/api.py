"""The public operator: validation once, choice of backend, packed sequences."""

from __future__ import annotations

from typing import Literal, overload

import torch
from torch import Tensor

from .outputs import BlockIndices, NSAAux
from .blockwise import blockwise
from .config import NSAConfig
from .reference import reference
from .summaries import window_count

BACKENDS = {"reference": reference, "blockwise": blockwise}


@overload
def native_sparse_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    gates: Tensor,
    config: NSAConfig | None = None,
    *,
    backend: str = "auto",
    block_indices: BlockIndices | None = None,
    cu_seqlens: Tensor | None = None,
    k_cmp: Tensor | None = None,
    v_cmp: Tensor | None = None,
    scale: float | None = None,
    return_aux: Literal[False] = False,
) -> Tensor: ...


@overload
def native_sparse_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    gates: Tensor,
    config: NSAConfig | None = None,
    *,
    backend: str = "auto",
    block_indices: BlockIndices | None = None,
    cu_seqlens: Tensor | None = None,
    k_cmp: Tensor | None = None,
    v_cmp: Tensor | None = None,
    scale: float | None = None,
    return_aux: Literal[True],
) -> tuple[Tensor, NSAAux]: ...


def native_sparse_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    gates: Tensor,
    config: NSAConfig | None = None,
    *,
    backend: str = "auto",
    block_indices: BlockIndices | None = None,
    cu_seqlens: Tensor | None = None,
    k_cmp: Tensor | None = None,
    v_cmp: Tensor | None = None,
    scale: float | None = None,
    return_aux: bool = False,
) -> Tensor | tuple[Tensor, NSAAux]:
    """Causal native sparse attention: o = g_cmp o_cmp + g_slc o_slc + g_win o_win.

    NSA (arXiv 2502.11089, equations 5-12) with hybrid block lists (semantics.md, section 3).

    Args:
        q: [B, T, H, D].
        k, v: [B, T, K, D], K dividing H; H / K query heads share a block list.
        gates: [B, T, H, 3] in (0, 1): compressed, selected, sliding.
        config: what a query attends to; ``NSAConfig()`` if None.
        backend: "reference", "blockwise" or "auto" (the fastest that serves the input).
        block_indices: lists to use instead of choosing them: int32 [B, T, K, n], -1 empty; for
            query_tile > 1 a pair of shared [B, ceil(T / query_tile), K, s] (forced blocks included)
            and private [B, T, K, m] lists.
        cu_seqlens: int [S + 1], boundaries of sequences packed into one batch row of length T; blocks,
            tiles and lists count from each sequence's own start.
        k_cmp, v_cmp: summaries [B, n, K, D] made by a compression network, instead of block means; of
            packed sequences, those of each sequence one after the other.
        scale: of the logits; 1 / sqrt(D) if None.
        return_aux: also return the lists, counts and log-sum-exps.

    Returns:
        o [B, T, H, D] in the dtype of q, or (o, NSAAux).

    Raises:
        ValueError: a shape, list or setting is wrong; the message names the argument, its value and
            the fix.
        TypeError: dtypes or devices differ, or are not served.
    """
    config = NSAConfig() if config is None else config
    _check_operands(q, k, v, gates)
    config = config.resolved(q.shape[2], k.shape[2])
    if backend != "auto" and backend not in BACKENDS:
        raise ValueError(f"backend={backend!r}: must be 'auto' or one of {sorted(BACKENDS)}")
    if (k_cmp is None) != (v_cmp is None):
        raise ValueError("k_cmp and v_cmp: give both or neither")
    run = BACKENDS["blockwise" if backend == "auto" else backend]
    if cu_seqlens is None:
        _check_summaries(k_cmp, v_cmp, k, config)
        if block_indices is not None:
            block_indices = _checked_lists(block_indices, q, k, config)
        out, aux = run(
            q,
            k,
            v,
            gates,
            config,
            block_indices=block_indices,
            k_cmp=k_cmp,
            v_cmp=v_cmp,
            scale=scale,
        )
    else:
        pieces = [
            native_sparse_attention(
                *operands,
                config,
                backend=backend,
                block_indices=lists,
                k_cmp=kc,
                v_cmp=vc,
                scale=scale,
                return_aux=True,
            )
            for operands, lists, kc, vc in _split(
                q, k, v, gates, config, block_indices, cu_seqlens, k_cmp, v_cmp
            )
        ]
        out, aux = _joined(pieces)
    return (out, aux) if return_aux else out


def _check_operands(q: Tensor, k: Tensor, v: Tensor, gates: Tensor) -> None:
    for name, tensor in (("q", q), ("k", k), ("v", v), ("gates", gates)):
        if tensor.dim() != 4:
            raise ValueError(
                f"{name}: must have 4 dimensions, [batch, seq_len, heads, width], got {list(tensor.shape)}"
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
    if seq_len == 0:
        raise ValueError("q: has seq_len 0; give at least one token")
    if k.shape != v.shape:
        raise ValueError(f"v: has shape {list(v.shape)}, k has {list(k.shape)}; they must be equal")
    if (k.shape[0], k.shape[1], k.shape[3]) != (batch, seq_len, head_dim):
        raise ValueError(
            f"k: has shape {list(k.shape)}; batch, seq_len and width must be those of q, {list(q.shape)}"
        )
    if k.shape[2] == 0 or q_heads % k.shape[2]:
        raise ValueError(f"k: has {k.shape[2]} heads; their number must divide q's {q_heads}")
    if gates.shape != (batch, seq_len, q_heads, 3):
        raise ValueError(
            f"gates: has shape {list(gates.shape)}; must be [{batch}, {seq_len}, {q_heads}, 3]"
        )


def _check_summaries(
    k_cmp: Tensor | None, v_cmp: Tensor | None, k: Tensor, config: NSAConfig
) -> None:
    n = window_count(k.shape[1], config.compress_block, config.compress_stride)
    expected = (k.shape[0], n, k.shape[2], k.shape[3])
    for name, tensor in (("k_cmp", k_cmp), ("v_cmp", v_cmp)):
        if tensor is not None and tensor.shape != expected:
            raise ValueError(f"{name}: has shape {list(tensor.shape)}; must be {list(expected)}")


def _checked_lists(
    block_indices: BlockIndices, q: Tensor, k: Tensor, config: NSAConfig
) -> BlockIndices:
    """The given lists as contiguous int32, after checks of shape, range and duplicates."""
    batch, seq_len, kv_heads = q.shape[0], q.shape[1], k.shape[2]
    tile = config.query_tile
    assert isinstance(tile, int)
    if isinstance(block_indices, Tensor) != (tile == 1):
        wanted = "one tensor" if tile == 1 else "a pair of shared and private lists"
        raise ValueError(f"block_indices: must be {wanted} for query_tile={tile}")
    lists = (block_indices,) if isinstance(block_indices, Tensor) else tuple(block_indices)
    per_query = []
    for index, step in zip(lists, (tile, 1), strict=False):
        expected = (batch, -(-seq_len // step), kv_heads)
        if index.dim() != 4 or index.shape[:3] != expected:
            raise ValueError(
                f"block_indices: has shape {list(index.shape)}; must be {[*expected, 'n']}"
            )
        if index.is_floating_point():
            raise TypeError(f"block_indices: has dtype {index.dtype}; cast it to int32")
        own = (
            torch.arange(0, seq_len, step, device=index.device)[:, None, None] // config.block_size
        )
        if bool(((index < -1) | (index > own)).any()):
            raise ValueError(
                "block_indices: names a block in the future or below -1; a query at t sees blocks 0 to t // block_size"
            )
        per_query.append(index.repeat_interleave(step, 1)[:, :seq_len])
    order = torch.cat(per_query, -1).sort(-1).values
    if bool(((order[..., 1:] == order[..., :-1]) & (order[..., 1:] >= 0)).any()):
        raise ValueError("block_indices: a query lists a block twice; remove duplicates")
    ready = tuple(index.int() for index in lists)
    return ready[0] if tile == 1 else (ready[0], ready[1])


def _split(q, k, v, gates, config, block_indices, cu_seqlens, k_cmp, v_cmp):
    """Operands, lists and summaries of each packed sequence that has tokens."""
    if q.shape[0] != 1:
        raise ValueError(
            f"cu_seqlens: packed sequences need batch 1, got {q.shape[0]}; reshape to [1, B * T, ...]"
        )
    bounds = [int(x) for x in cu_seqlens.tolist()]
    increasing = all(a <= b for a, b in zip(bounds, bounds[1:], strict=False))
    if len(bounds) < 2 or bounds[0] != 0 or bounds[-1] != q.shape[1] or not increasing:
        raise ValueError(f"cu_seqlens={bounds}: must rise from 0 to seq_len={q.shape[1]}")
    tile_start = window_start = 0
    for begin, end in zip(bounds, bounds[1:], strict=False):
        if begin == end:
            continue
        tiles = -(-(end - begin) // config.query_tile)
        windows = window_count(end - begin, config.compress_block, config.compress_stride)
        if block_indices is None or isinstance(block_indices, Tensor):
            lists = None if block_indices is None else block_indices[:, begin:end]
        else:
            shared, private = block_indices
            lists = (shared[:, tile_start : tile_start + tiles], private[:, begin:end])
        summaries = (
            x if x is None else x[:, window_start : window_start + windows] for x in (k_cmp, v_cmp)
        )
        yield [x[:, begin:end] for x in (q, k, v, gates)], lists, *summaries
        tile_start += tiles
        window_start += windows


def _joined(pieces: list[tuple[Tensor, NSAAux]]) -> tuple[Tensor, NSAAux]:
    outs = [out for out, _ in pieces]
    auxes = [aux for _, aux in pieces]
    indices = [aux.block_indices for aux in auxes]
    joined: BlockIndices
    if isinstance(indices[0], Tensor):
        joined = torch.cat(indices, 1)
    else:
        joined = (torch.cat([i[0] for i in indices], 1), torch.cat([i[1] for i in indices], 1))
    counts = torch.cat([aux.block_counts for aux in auxes], 1)
    lse = torch.cat([aux.lse for aux in auxes], 1)
    return torch.cat(outs, 1), NSAAux(joined, counts, lse, auxes[0].backend)
