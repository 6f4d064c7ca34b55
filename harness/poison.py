"""Memory filled with NaN where the next outputs will land.

A kernel that leaves part of its output unwritten passes a check if the memory still holds the
outputs of the call before. So blocks of the outputs' sizes are filled with NaN and freed just
before a checked call. Allocators may prefer other free memory to those blocks, so on a GPU all the
memory that a call needs is filled as well, and on a CPU the C library is told to overwrite whatever
it hands out. Outputs of earlier calls that somebody still holds are in no free memory: those are
overwritten in place, so that what a kernel kept is no answer to the next call.
"""

from __future__ import annotations

import contextlib
import ctypes
import weakref
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
        _spoil(tensor)


def poison_device(size_bytes: int) -> None:
    """Fill that much memory of the GPU with NaN and leave it in torch's cache, if there is room.

    With an empty cache before, a call that needs no more than this gets poisoned memory only.
    """
    import torch

    with contextlib.suppress(torch.OutOfMemoryError):
        poison([Block((size_bytes,), torch.uint8, torch.device("cuda"))])  # bytes of 0xFF: NaN


@dataclass(frozen=True)
class _Place:
    """Where an output lies; its memory is not kept alive."""

    storage: weakref.ref[torch.UntypedStorage]
    offset: int
    shape: tuple[int, ...]
    stride: tuple[int, ...]
    dtype: torch.dtype


class Returned:
    """Remembers where outputs lie, to overwrite those that are still held when asked to.

    Memory of ``inputs`` (tensors in any nesting) is never remembered.
    """

    def __init__(self, inputs: Any) -> None:
        self._inputs = {place.storage for place in _places(inputs)}
        self._places: list[_Place] = []

    def remember(self, outputs: Any) -> None:
        """Remember all tensors in ``outputs``, and forget those that were released meanwhile."""
        held = [place for place in self._places if place.storage() is not None]
        new = [place for place in _places(outputs) if place.storage not in self._inputs]
        self._places = list(dict.fromkeys([*held, *new]))

    def overwrite(self) -> None:
        """Fill every remembered tensor whose memory somebody still holds with NaN."""
        import torch

        for place in self._places:
            storage = place.storage()
            if storage is not None:
                whole = torch.empty(0, dtype=place.dtype, device=storage.device)
                _spoil(whole.set_(storage, place.offset, place.shape, place.stride))


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


def _spoil(tensor: torch.Tensor) -> None:
    import torch

    if tensor.is_floating_point() or tensor.is_complex():
        tensor.fill_(float("nan"))
    elif tensor.dtype != torch.bool:
        tensor.fill_(torch.iinfo(tensor.dtype).max)


def _places(value: Any) -> list[_Place]:
    places = []
    for tensor in _tensors(value):
        with contextlib.suppress(NotImplementedError, RuntimeError):  # sparse: no single memory
            storage = weakref.ref(tensor.untyped_storage())
            offset = int(tensor.storage_offset())
            shape, stride = tuple(tensor.shape), tuple(tensor.stride())
            places.append(_Place(storage, offset, shape, stride, tensor.dtype))
    return places


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
