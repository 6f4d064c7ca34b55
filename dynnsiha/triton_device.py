"""Where Triton kernels run, known without importing Triton."""

from __future__ import annotations

import functools
import importlib.util
import os

import torch
from torch import Tensor

_CAPABILITY = 8  # Ampere: matrix units for bfloat16
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


@functools.lru_cache(maxsize=16)
def _has_triton() -> bool:
    return importlib.util.find_spec("triton") is not None


@functools.lru_cache(maxsize=16)
def _major(index: int | None) -> int:
    if torch.version.cuda is None:
        return 0
    return torch.cuda.get_device_capability(index)[0]
