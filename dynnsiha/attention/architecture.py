"""Which family of GPUs kernels are compiled for: it decides sizes of tiles, and how keys are read.

A family is named by the compute capability whose matrix instruction it has: ``mma.sync`` on Ampere,
``wgmma`` on Hopper, ``tcgen05`` on Blackwell. Ada and the consumer cards of Blackwell (12.x) have
``mma.sync`` too, with 99 KiB of shared memory a block: they count as Ampere, whose sizes fit there.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator

import torch

AMPERE, HOPPER, BLACKWELL = 80, 90, 100
FAMILIES = (AMPERE, HOPPER, BLACKWELL)

_pretended: list[int] = []


def family_of(device: torch.device) -> int:
    """The family of a device; Hopper for Triton's interpreter."""
    if _pretended:
        return _pretended[-1]
    return family(_major(device.index)) if device.type == "cuda" else HOPPER


def family(major: int) -> int:
    """The family of a compute capability ``major``.x, 8 or later."""
    if major in (8, 12):
        return AMPERE
    return HOPPER if major == 9 else BLACKWELL


@contextlib.contextmanager
def compiled_for(chosen: int) -> Iterator[None]:
    """Take every device for one of the family ``chosen``: launches are to be compiled, not run."""
    _pretended.append(chosen)
    try:
        yield
    finally:
        _pretended.pop()


@functools.lru_cache(maxsize=16)
def _major(index: int | None) -> int:
    return torch.cuda.get_device_capability(index)[0]
