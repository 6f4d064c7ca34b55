"""What the Triton backend serves, known without importing Triton."""

from __future__ import annotations

import torch
from torch import Tensor

from ..triton_device import device_problem, interpreted
from .architecture import AMPERE, family_of
from .config import NSAConfig
from .outputs import BlockIndices

HEAD_DIMS = (64, 128, 256)
BLOCK_SIZES = (16, 32, 64, 128)
_MOST_HEADS = 64  # query heads a key/value head
_MOST_BLOCKS = 128  # in one list
_MOST_WINDOWS = 64  # summary windows a block
_MOST_PAIRS = 1 << 31  # numbered by 32-bit integers
_MOST_ELEMENTS = 1 << 14  # of a block's keys
_AMPERE_ELEMENTS, _AMPERE_HEADS = 1 << 13, 16  # beyond so many, so few heads a key/value head
_DTYPES = (torch.float16, torch.bfloat16)


def refusal(
    q: Tensor,
    k: Tensor,
    config: NSAConfig,
    scale: float | None,
    block_indices: BlockIndices | None = None,
) -> Exception | None:
    """Why the Triton backend does not take a call, as the error to raise; None if it does."""
    group = q.shape[2] // config.list_heads(q.shape[2], k.shape[2])
    device = device_problem(q.device)
    if device:
        return ValueError(f"q: is on {q.device}; {device}")
    if q.dtype not in _DTYPES:
        return TypeError(f"q: has dtype {q.dtype}; the Triton kernels take float16 and bfloat16")
    if q.dtype == torch.bfloat16 and interpreted():
        return TypeError(
            "q: has dtype torch.bfloat16, which Triton's interpreter cannot multiply; cast to "
            "float16, or unset TRITON_INTERPRET on a GPU"
        )
    if q.shape[3] not in HEAD_DIMS:
        return ValueError(f"q: has head width {q.shape[3]}; the Triton kernels take {HEAD_DIMS}")
    if group > _MOST_HEADS:
        return ValueError(
            f"q: has {group} heads a key/value head; the Triton kernels take {_MOST_HEADS} at most"
        )
    elements = q.shape[3] * max(64, config.block_size)
    if elements > _MOST_ELEMENTS:
        return ValueError(
            f"block_size={config.block_size}: at head width {q.shape[3]} the Triton kernels take "
            f"{_MOST_ELEMENTS // q.shape[3]} at most"
        )
    if elements > _AMPERE_ELEMENTS and group > _AMPERE_HEADS and family_of(q.device) == AMPERE:
        return ValueError(
            f"q: has {group} heads of width {q.shape[3]} a key/value head; with "
            f"block_size={config.block_size} the Triton kernels take {_AMPERE_HEADS} at most on "
            "GPUs with little shared memory (compute capability 8.x and 12.x)"
        )
    slots = config.top_n if block_indices is None else _slots(block_indices)
    if block_indices is not None and slots > _MOST_BLOCKS:
        return ValueError(
            f"block_indices: has {slots} slots a query; the Triton kernels take {_MOST_BLOCKS} at "
            "most"
        )
    pairs = q.shape[0] * q.shape[1] * k.shape[2] * slots
    if pairs >= _MOST_PAIRS:
        return ValueError(
            f"q: {pairs} pairs of queries and blocks; the Triton kernels take fewer than 2^31"
        )
    return _setting_problem(config, scale)


def _slots(block_indices: BlockIndices) -> int:
    """Slots of a query's list, or of its two lists together."""
    lists = (block_indices,) if isinstance(block_indices, Tensor) else block_indices
    return sum(x.shape[-1] for x in lists)


def _setting_problem(config: NSAConfig, scale: float | None) -> Exception | None:
    """As ``refusal``, for the configuration."""
    problems = {
        f"block_size={config.block_size}: the Triton kernels take {BLOCK_SIZES}": (
            config.block_size not in BLOCK_SIZES
        ),
        f"compress_stride={config.compress_stride}: the Triton kernels take block_size / "
        f"{_MOST_WINDOWS} and more": config.block_size > _MOST_WINDOWS * config.compress_stride,
        f"top_n={config.top_n}: the Triton kernels take {_MOST_BLOCKS} at most": (
            config.top_n > _MOST_BLOCKS
        ),
        f"tile_scoring={config.tile_scoring!r}: the Triton kernels take 'leader'": (
            config.tile_scoring != "leader"
        ),
        "differentiable_topk=True: the Triton kernels don't train the choice of blocks": (
            config.differentiable_topk and torch.is_grad_enabled()
        ),
        f"scale={scale}: the Triton kernels take positive ones": scale is not None and scale <= 0,
    }
    return next((ValueError(text) for text, holds in problems.items() if holds), None)
