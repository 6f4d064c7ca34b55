"""Where kernels read keys and rows from: bulk tensor copies where they apply, else pointers.

Sequences of one length are read through tensor descriptors [sequence, token, ...] on Hopper and
later: the copy engine computes the addresses, and fills with 0 behind the end of a sequence.
Packed sequences of several lengths, odd strides and older GPUs take plain pointers.
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor
from triton.tools.tensor_descriptor import TensorDescriptor

from ..architecture import HOPPER, family_of

Source = Tensor | TensorDescriptor


def bulk_copies_serve(sequences: int, *tensors: Tensor) -> bool:
    """Whether descriptors can describe these tensors [tokens, heads, D] on their device."""
    return family_of(tensors[0].device) >= HOPPER and all(
        x.numel() > 0
        and x.data_ptr() % 16 == 0
        and x.shape[0] % sequences == 0
        and x.stride(1) == x.shape[2]
        and x.stride(0) * x.element_size() % 16 == 0
        for x in tensors
    )


def key_source(x: Tensor, sequences: int, keys: int, every: int = 1) -> TensorDescriptor:
    """Blocks of ``keys`` tokens of one head, of [tokens, heads, D]; every so many-th token."""
    tokens, heads, width = x.shape
    each, stride = tokens // sequences, x.stride(0)
    shape = [sequences, max(1, each // every), heads * width if every == 1 else every * stride]
    strides = [each * stride, every * stride, 1]
    return TensorDescriptor(x, shape, strides, [1, keys, width])


def row_source(x: Tensor, sequences: int, queries: int, heads: int) -> TensorDescriptor:
    """Tiles of ``queries`` tokens and ``heads`` heads, of [tokens, heads, D]."""
    tokens, all_heads, width = x.shape
    each, stride = tokens // sequences, x.stride(0)
    shape, strides = [sequences, each, all_heads, width], [each * stride, stride, width, 1]
    return TensorDescriptor(x, shape, strides, [1, queries, heads, width])


@triton.jit
def keys_of(
    source, sequence, start, first, count, kv, stride_t, stride_h,
    N: tl.constexpr, D: tl.constexpr, TMA: tl.constexpr, within=0,
):  # fmt: skip
    """Keys from ``first`` on of a sequence beginning at row ``start``: [N, D], 0 from ``count``.

    Where a descriptor takes every n-th token, ``within`` is the offset of a token among n.
    """
    if TMA:
        keys = tl.reshape(source.load([sequence, first, within + kv * D]), [N, D])
    else:
        n, d = tl.arange(0, N), tl.arange(0, D)
        at = source + (start + tl.cast(first, tl.int64)) * stride_t + kv * stride_h
        at = at + n[:, None] * stride_t + d[None, :]
        keys = tl.load(at, mask=(n < count)[:, None], other=0.0)
    return keys


@triton.jit
def tile_of(
    source, sequence, start, first, left, kv, stride_t, stride_h,
    G: tl.constexpr, GP: tl.constexpr, BQ: tl.constexpr, D: tl.constexpr, TMA: tl.constexpr,
):  # fmt: skip
    """Rows of BQ tokens from ``first`` on and GP heads: [BQ GP, D].

    0 from ``left`` tokens on; heads from G on are another tile's or 0.
    """
    if TMA:
        rows = tl.reshape(source.load([sequence, first, kv * G, 0]), [BQ * GP, D])
    else:
        row = start + tl.cast(first, tl.int64)
        rows = loaded_tile(source, row, left, kv, stride_t, stride_h, G, GP, BQ, D)
    return rows


@triton.jit
def loaded_tile(
    source, row, left, kv, stride_t, stride_h,
    G: tl.constexpr, GP: tl.constexpr, BQ: tl.constexpr, D: tl.constexpr,
):  # fmt: skip
    """Rows of BQ tokens from row ``row`` on through pointers: [BQ GP, D], 0 where there are none.

    Only the address of the tile has 64 bits: the rows' own offsets take half of the registers.
    """
    at, live = _rows(source, row, left, kv, stride_t, stride_h, G, GP, BQ, D)
    return tl.load(at, mask=live, other=0.0)


@triton.jit
def store_tile(
    target, value, row, left, kv, stride_t, stride_h,
    G: tl.constexpr, GP: tl.constexpr, BQ: tl.constexpr, D: tl.constexpr,
):  # fmt: skip
    """Counterpart of ``loaded_tile``."""
    at, live = _rows(target, row, left, kv, stride_t, stride_h, G, GP, BQ, D)
    tl.store(at, value.to(target.dtype.element_ty), mask=live)


@triton.jit
def _rows(
    tensor, row, left, kv, stride_t, stride_h,
    G: tl.constexpr, GP: tl.constexpr, BQ: tl.constexpr, D: tl.constexpr,
):  # fmt: skip
    """Pointers to the rows of a tile, and whether there are such: [BQ GP, D], [BQ GP, 1]."""
    r, d = tl.arange(0, BQ * GP), tl.arange(0, D)
    at = tensor + (tl.cast(row, tl.int64) * stride_t + kv * G * stride_h)
    at = at + ((r // GP * stride_t + r % GP * stride_h)[:, None] + d[None, :])
    return at, ((r // GP < left) & (r % GP < G))[:, None]


@triton.jit
def numbers_of(
    source, row, left, kv, heads,
    G: tl.constexpr, GP: tl.constexpr, BQ: tl.constexpr, STEP: tl.constexpr = 1,
):  # fmt: skip
    """A number a row of a tile from row ``row`` on: [BQ GP] of [tokens, heads, STEP].

    0 where there is no row: a filling of 0 costs no register, while any other one would be kept,
    with its mask, until the use.
    """
    at, live = _numbers(source, row, left, kv, heads, G, GP, BQ, STEP)
    return tl.load(at, mask=live, other=0.0)


@triton.jit
def store_numbers(
    target, value, row, left, kv, heads,
    G: tl.constexpr, GP: tl.constexpr, BQ: tl.constexpr,
):  # fmt: skip
    """Counterpart of ``numbers_of``."""
    at, live = _numbers(target, row, left, kv, heads, G, GP, BQ, 1)
    tl.store(at, value, mask=live)


@triton.jit
def _numbers(
    tensor, row, left, kv, heads,
    G: tl.constexpr, GP: tl.constexpr, BQ: tl.constexpr, STEP: tl.constexpr,
):  # fmt: skip
    """Pointers to a number a row, and whether there is such: [BQ GP], [BQ GP]."""
    r = tl.arange(0, BQ * GP)
    at = tensor + (tl.cast(row, tl.int64) * heads + kv * G) * STEP
    at = at + (r // GP * heads + r % GP) * STEP
    return at, (r // GP < left) & (r % GP < G)
