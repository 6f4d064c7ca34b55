"""FlexAttention backend: each branch is one call of torch's fused attention with a block mask.

The sliding and the compressed branch are masks of positions; the selected branch is a mask that
looks the key's block up in the query's list, kept as one bit a block. On a GPU the calls are
compiled. On a CPU torch runs its unfused form: memory grows with T², there is no backward pass.
"""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import AuxRequest, BlockMask, flex_attention

from .config import NSAConfig
from .importance import compressed_probabilities, importance
from .lists import private_list, private_size, shared_list, shared_size, tile_lists
from .outputs import BlockIndices, NSAAux
from .stages import stage
from .summaries import mean_summaries

_TILE = 128  # queries and keys of a mask block: what every kernel that torch may pick divides
_WORD_BITS = 32
_STEP_ELEMENTS = 1 << 25  # logits of one step of the choice
_LEAST_WIDTH = 16  # of a head on a GPU
_RECOMPILATIONS = 64  # three masks, in each dtype, grad mode and head layout a process may use

_Mask = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]


def flex(
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
    """The core by FlexAttention (arXiv 2412.05496); as ``native_sparse_attention``.

    Raises:
        ValueError, TypeError: what torch's FlexAttention does not serve, see ``_check``.
    """
    _check(q, (k, v, gates, k_cmp, v_cmp), config)
    if k_cmp is None or v_cmp is None:
        with stage("summaries"):
            k_cmp = mean_summaries(k, config.compress_block, config.compress_stride)
            v_cmp = mean_summaries(v, config.compress_block, config.compress_stride)
    queries, keys, values, k_cmp, v_cmp = (x.transpose(1, 2) for x in (q, k, v, k_cmp, v_cmp))
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    with stage("choice"):
        if block_indices is None:
            shared, private = _choose(queries, k_cmp, config, scale)
        else:
            parts = (block_indices,) if isinstance(block_indices, Tensor) else block_indices
            shared = parts[0].transpose(1, 2)
            private = parts[1].transpose(1, 2) if len(parts) > 1 else shared[:, :, :0, :0]
        lists = _per_query(shared, private, config, q.shape[1])
    length, windows = q.shape[1], k_cmp.shape[2]
    wide = torch.promote_types(q.dtype, torch.float32)
    out = torch.zeros_like(queries, dtype=wide)
    lse = torch.full(queries.shape[:3], float("-inf"), dtype=wide, device=q.device)
    gate = gates.transpose(1, 2).to(wide)[..., None].unbind(-2)
    if "compressed" in config.branches and windows:
        with stage("compressed"):
            mask = ended_windows(length, windows, config, q.device)
            o, _ = _attend(queries, k_cmp, v_cmp, mask, scale)
            out = out + gate[0] * o
    if "selected" in config.branches:
        with stage("selected"):
            mask = listed_blocks(lists, queries.shape[1], config)
            o, lse = _attend(queries, keys, values, mask, scale)
            out = out + gate[1] * o
    if "sliding" in config.branches:
        with stage("sliding"):
            mask = window(length, config.window, q.device)
            o, _ = _attend(queries, keys, values, mask, scale)
            out = out + gate[2] * o
    indices: BlockIndices = shared.transpose(1, 2)
    if config.query_tile != 1:
        indices = (shared.transpose(1, 2), private.transpose(1, 2))
    counts = (lists >= 0).sum(-1, dtype=torch.int32).transpose(1, 2)
    lse = lse.detach().to(wide).transpose(1, 2)
    return out.transpose(1, 2).to(q.dtype), NSAAux(indices, counts, lse, "flex")


def _check(q: Tensor, others: tuple[Tensor | None, ...], config: NSAConfig) -> None:
    """Raise for what torch's FlexAttention does not serve."""
    differentiate = torch.is_grad_enabled()
    wanted = differentiate and any(x is not None and x.requires_grad for x in (q, *others))
    if differentiate and config.differentiable_topk:
        raise ValueError(
            "differentiable_topk=True: backend 'flex' takes False; use backend='blockwise'"
        )
    if q.device.type == "cpu" and wanted:
        raise ValueError(
            "backend='flex': torch's FlexAttention has no backward pass on a CPU; "
            "use backend='blockwise', or torch.no_grad()"
        )
    if q.device.type == "cuda" and q.dtype == torch.float64:
        raise TypeError("q: has dtype torch.float64; backend 'flex' takes up to float32 on a GPU")
    if q.device.type == "cuda" and q.shape[-1] < _LEAST_WIDTH:
        raise ValueError(
            f"q: has head width {q.shape[-1]}; backend 'flex' takes {_LEAST_WIDTH} and more on a "
            "GPU"
        )


def _attend(
    q: Tensor, k: Tensor, v: Tensor, mask: BlockMask, scale: float
) -> tuple[Tensor, Tensor]:
    """One branch: o [B, H, T, D] and lse [B, H, T]; 0 and -inf where a query sees nothing."""
    options: dict[str, Any] = {
        "block_mask": mask,
        "scale": scale,
        "enable_gqa": q.shape[1] != k.shape[1],
        "return_aux": AuxRequest(lse=True),
    }
    if q.device.type == "cpu":
        # Inference only, whatever the leaves ask for; that it is unfused is documented above.
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)
            out, aux = flex_attention(q.detach(), k.detach(), v.detach(), **options)
    else:
        # For fewer than 128 queries torch would take a kernel of its own, made for decoding, which
        # has no tiles that fit these masks.
        options["kernel_options"] = {"FORCE_USE_FLEX_ATTENTION": True}
        with torch._dynamo.config.patch(recompile_limit=_RECOMPILATIONS):
            out, aux = _compiled()(q, k, v, **options)
    return out, aux.lse


@functools.cache
def _compiled() -> Callable[..., Any]:
    """The fused form; an error, not the unfused form, where it cannot be compiled."""
    return torch.compile(flex_attention, fullgraph=True)


@torch.no_grad()
def _choose(q: Tensor, k_cmp: Tensor, config: NSAConfig, scale: float) -> tuple[Tensor, Tensor]:
    """Shared lists [B, L, ceil(T / R), s] and private ones [B, L, T, m], int32, in steps of rows.

    q is [B, H, T, D], k_cmp [B, K, n, D].
    """
    batch, q_heads, length, _ = q.shape
    heads = config.list_heads(q_heads, k_cmp.shape[1])
    tile = config.query_tile
    assert isinstance(tile, int)
    every = torch.arange(length, device=q.device)
    if "selected" not in config.branches:
        sizes = (-(-length // tile), shared_size(config)), (length, private_size(config))
        empty = [
            torch.full((batch, heads, *size), -1, dtype=torch.int32, device=q.device)
            for size in sizes
        ]
        return empty[0], empty[1]

    def scores(rows: Tensor) -> Tensor:
        p = compressed_probabilities(q[:, :, rows], k_cmp, rows[None], config, scale)
        return importance(p, heads, config)

    def shared_of(leaders: Tensor) -> Tensor:
        total = scores(leaders)
        for back in range(1, tile) if config.tile_scoring == "aggregate" else ():
            earlier = scores((leaders - back).clamp(min=0))
            total += earlier.masked_fill_((leaders < back)[:, None], 0.0)
        return shared_list(total, leaders, config)

    step = max(1, _STEP_ELEMENTS // max(1, batch * q_heads * k_cmp.shape[2]))
    shared = torch.cat([shared_of(rows) for rows in every[::tile].split(step)], 2)
    if not private_size(config):
        return shared, shared.new_empty(batch, heads, length, 0)
    lists = tile_lists(shared, tile, length)
    private = [
        private_list(scores(rows), lists[:, :, rows], rows, config) for rows in every.split(step)
    ]
    return shared, torch.cat(private, 2)


def _per_query(shared: Tensor, private: Tensor, config: NSAConfig, length: int) -> Tensor:
    """One list a query: [B, L, T, n]."""
    if config.query_tile == 1:
        return shared
    assert isinstance(config.query_tile, int)
    return torch.cat([tile_lists(shared, config.query_tile, length), private], -1)


def ended_windows(length: int, windows: int, config: NSAConfig, device: torch.device) -> BlockMask:
    """Query t sees the summary windows whose last token is at or before t."""
    stride, last = config.compress_stride, config.compress_block - 1

    def mask(b: Tensor, h: Tensor, i: Tensor, j: Tensor) -> Tensor:
        return j * stride + last <= i

    rows, columns = _corners(length, windows, device)
    some = columns * stride + last <= rows + _TILE - 1
    whole = (columns + _TILE - 1) * stride + last <= rows
    return _block_mask(some[None, None], whole[None, None], mask, (length, windows))


def window(length: int, width: int, device: torch.device) -> BlockMask:
    """Query t sees the keys t - width + 1 ... t."""

    def mask(b: Tensor, h: Tensor, i: Tensor, j: Tensor) -> Tensor:
        return (j <= i) & (i - j < width)

    rows, columns = _corners(length, length, device)
    some = (columns <= rows + _TILE - 1) & (rows - (columns + _TILE - 1) < width)
    whole = (columns + _TILE - 1 <= rows) & (rows + _TILE - 1 - columns < width)
    return _block_mask(some[None, None], whole[None, None], mask, (length, length))


def listed_blocks(lists: Tensor, q_heads: int, config: NSAConfig) -> BlockMask:
    """Each of H query heads sees the keys, up to its own, of the blocks in its list.

    ``lists`` is int32 [B, L, T, n], H / L heads sharing each.
    """
    batch, heads, length, slots = lists.shape
    size, share = config.block_size, q_heads // heads
    blocks = -(-length // size)
    words = _bits(lists, blocks)

    def mask(b: Tensor, h: Tensor, i: Tensor, j: Tensor) -> Tensor:
        block = j // size
        word = words[b, h // share, i, block // _WORD_BITS]
        return (j <= i) & (((word >> (block % _WORD_BITS)) & 1) == 1)

    rows = -(-length // _TILE)
    padded = torch.nn.functional.pad(lists, (0, 0, 0, rows * _TILE - length), value=-1)
    index = torch.where(padded >= 0, padded, blocks).long()
    index = index.reshape(batch, heads, rows, _TILE * slots)
    anyone = torch.zeros(batch, heads, rows, blocks + 1, dtype=torch.bool, device=lists.device)
    anyone.scatter_(-1, index, True)
    # A column of keys is seen if any of the blocks that it meets is: a difference of counts.
    count = torch.nn.functional.pad(anyone[..., :blocks].int().cumsum(-1), (1, 0))
    first_key = torch.arange(rows, device=lists.device) * _TILE
    first = first_key // size
    end = ((first_key + _TILE - 1) // size + 1).clamp(max=blocks)
    past = first_key <= first_key[:, None]  # a block wider than a tile reaches ahead of its queries
    some = ((count[..., end] > count[..., first]) & past).repeat_interleave(share, 1)
    return _block_mask(some, torch.zeros_like(some), mask, (length, length))


def _bits(lists: Tensor, blocks: int) -> Tensor:
    """Lists [B, L, T, n] as bits, int32 [B, L, T, ceil(blocks / 32)]: bit j of word w is block
    32 w + j."""
    listed = lists.clamp(min=0)
    bit = torch.ones_like(listed) << (listed % _WORD_BITS)
    bit = bit.masked_fill(lists < 0, 0)
    words = lists.new_zeros(*lists.shape[:-1], -(-blocks // _WORD_BITS))
    # A list holds no block twice, so a sum of bits is their union.
    return words.scatter_add_(-1, (listed // _WORD_BITS).long(), bit)


def _corners(rows: int, columns: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """First query and first key of every tile: [row tiles, 1] and [1, column tiles]."""
    first_row = torch.arange(0, rows, _TILE, device=device)[:, None]
    return first_row, torch.arange(0, columns, _TILE, device=device)[None]


def _block_mask(some: Tensor, whole: Tensor, mask: _Mask, lengths: tuple[int, int]) -> BlockMask:
    """From which tiles [B or 1, H or 1, rows, columns] are seen at all, and which entirely."""
    count, index = _ordered(some & ~whole)
    whole_count, whole_index = _ordered(whole)
    return BlockMask.from_kv_blocks(
        count,
        index,
        whole_count,
        whole_index,
        BLOCK_SIZE=_TILE,
        mask_mod=mask,
        seq_lengths=lengths,
    )


def _ordered(tiles: Tensor) -> tuple[Tensor, Tensor]:
    """How many tiles of each row count, and the columns, those that count first, in order."""
    index = tiles.int().argsort(dim=-1, descending=True, stable=True)
    return tiles.sum(-1, dtype=torch.int32), index.int()
