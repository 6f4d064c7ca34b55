"""Memory filled with NaN where the next outputs will land.

A kernel that leaves part of its output unwritten passes a check if the memory still holds the
outputs of the call before. So blocks of the outputs' sizes are filled with NaN and freed just
before a checked call. Allocators may prefer other free memory to those blocks, so on a GPU all the
memory that a call needs is filled as well, and on a CPU the C library is told to overwrite whatever
it hands out.
"""

from __future__ import annotations

import contextlib
import ctypes
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields, is_dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch


_M_PERTURB = -6  # see mallopt(3)
_PERTURB_BYTE = 0x80  # handed-out memory is filled with its complement 0x7F: floats of 3e38 or NaN


@dataclass(frozen=True)
class Block:
    """Size, type and place of one output."""

    shape: tuple[int, ...]
    dtype: torch.dtype
    device: torch.device


def output_blocks(outputs: Any) -> list[Block]:
    """The blocks of all tensors in ``outputs``: a tensor, or any nesting of them."""
    return [Block(tuple(t.shape), t.dtype, t.device) for t in _tensors(outputs)]


def poison(blocks: list[Block]) -> None:
    """Fill memory of these sizes with NaN (integers: the largest value) and free it."""
    import torch

    held = [torch.empty(b.shape, dtype=b.dtype, device=b.device) for b in blocks]
    for tensor in held:
        if tensor.is_floating_point() or tensor.is_complex():
            tensor.fill_(float("nan"))
        elif tensor.dtype != torch.bool:
            tensor.fill_(torch.iinfo(tensor.dtype).max)


def poison_device(size_bytes: int) -> None:
    """Fill that much memory of the GPU with NaN and leave it in torch's cache, if there is room.

    With an empty cache before, a call that needs no more than this gets poisoned memory only.
    """
    import torch

    with contextlib.suppress(torch.OutOfMemoryError):
        poison([Block((size_bytes,), torch.uint8, torch.device("cuda"))])  # bytes of 0xFF: NaN


@contextlib.contextmanager
def overwritten_allocations() -> Iterator[None]:
    """Have the C library overwrite all memory that it hands out, with floats beyond any tolerance.

    It touches every byte, so neither time nor memory may be measured meanwhile. Does nothing where
    the library is not glibc.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):
        yield
        return
    mallopt(_M_PERTURB, _PERTURB_BYTE)
    try:
        yield
    finally:
        mallopt(_M_PERTURB, 0)


def _tensors(value: Any) -> list[torch.Tensor]:
    import torch

    if isinstance(value, torch.Tensor):
        return [value]
    if isinstance(value, Mapping):
        children = list(value.values())
    elif isinstance(value, (list, tuple)):
        children = list(value)
    elif is_dataclass(value) and not isinstance(value, type):
        children = [getattr(value, f.name) for f in fields(value)]
    else:
        children = []
    return [tensor for child in children for tensor in _tensors(child)]
