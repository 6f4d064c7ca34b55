"""Where Triton kernels run, known without importing Triton."""

from __future__ import annotations

import functools
import importlib.util
import os

import torch
from torch import Tensor

_CAPABILITY = 8  # Ampere: matrix units for bfloat16
_TILE = 128  # most tokens whose rows one program reads side by side
_OFFSETS = 1 << 31  # that a 32-bit integer holds
_SERVED = (torch.float32, torch.bfloat16, torch.float16)


def interpreted() -> bool:
    """Whether Triton runs its kernels on the CPU: slow, for tests."""
    return os.environ.get("TRITON_INTERPRET") == "1"


def device_problem(device: torch.device) -> str:
    """Why Triton kernels do not run on a device, "" where they do."""
    if not _has_triton():
        return "the Triton kernels need the package triton"
    if device.type == "cuda":
        major = _major(device.index)
        return "" if major >= _CAPABILITY else "the Triton kernels need Ampere or later"
    return "" if interpreted() else "the Triton kernels need an NVIDIA GPU"


def kernels_serve(x: Tensor) -> bool:
    """Whether kernels that stand beside plain torch take what is on the device of x, in its dtype.

    They do not where a compiler looks on: it makes kernels of its own.
    """
    if x.dtype not in _SERVED or torch.compiler.is_compiling() or device_problem(x.device):
        return False
    # Launches go to the current device, wherever their operands are.
    return not x.is_cuda or x.device.index == torch.cuda.current_device()


def kernels_operand(x: Tensor) -> Tensor:
    """x [..., tokens, heads, width] as kernels read it: copied where its strides are not for them.

    The last dimension is dense. Offsets of heads and of the tokens of a tile have 32 bits, which
    heads that lie a whole sequence apart can leave, as in a transposed [1, heads, tokens, width].
    """
    tokens, heads, _ = x.shape[-3:]
    farthest = (heads - 1) * x.stride(-2) + (min(tokens, _TILE) - 1) * x.stride(-3)
    return x if x.stride(-1) == 1 and farthest < _OFFSETS else x.contiguous()


def aligned(x: Tensor) -> Tensor:
    """x contiguous, and copied where it does not begin at 16 bytes, as tensor descriptors must."""
    x = x.contiguous()
    return x.clone() if x.data_ptr() % 16 else x


@functools.lru_cache(maxsize=16)
def _has_triton() -> bool:
    return importlib.util.find_spec("triton") is not None


@functools.lru_cache(maxsize=16)
def _major(index: int | None) -> int:
    if torch.version.cuda is None:
        return 0
    return torch.cuda.get_device_capability(index)[0]
