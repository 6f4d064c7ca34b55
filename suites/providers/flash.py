"""FlashAttention 4, 3 or 2: the newest one that imports."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from dynbench.harness.subject import Unavailable
from dynbench.suites.providers.base import (
    Provider,
    package_version,
    probe,
    require_cuda,
    require_half,
)
from dynbench.suites.spec import Spec


@dataclass(frozen=True)
class Generation:
    """One FlashAttention: where it is imported from and which GPUs it serves."""

    number: int
    module: str
    distributions: tuple[str, ...]
    least_capability: int


# FlashAttention 3 is for Hopper alone; its package has no fixed name.
GENERATIONS = (
    Generation(4, "flash_attn.cute", ("flash-attn-4",), 9),
    Generation(3, "flash_attn_interface", ("flash-attn-3", "flash_attn_3", "flashattn-hopper"), 9),
    Generation(2, "flash_attn", ("flash-attn", "flash_attn"), 8),
)
_HOPPER = 9


def load(spec: Spec, variant: str = "") -> Provider:
    """The newest FlashAttention that imports and serves this GPU.

    Raises Unavailable without a GPU or without any of the packages, and Unsupported for a dtype or
    head that the one found does not serve.
    """
    require_cuda(spec, "flash")
    found, missing = _import(torch.cuda.get_device_capability(spec.device)[0])
    if found is None:
        raise Unavailable(
            f"no FlashAttention ({missing}): pip install --pre flash-attn-4, "
            "or flash-attn --no-build-isolation"
        )
    generation, function = found
    require_half(spec, "flash")

    def attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        out = function(q, k, v, causal=True)
        return out[0] if isinstance(out, tuple) else out  # 4 (and early 3) return the lse too

    probe(attention, spec, f"FlashAttention {generation.number}")
    package = package_version(*generation.distributions)
    return Provider(f"{package} (FlashAttention {generation.number})", attention)


def _import(capability: int) -> tuple[tuple[Generation, Callable[..., Any]] | None, str]:
    """The newest generation for this major compute capability, or why there is none."""
    problems = []
    for generation in GENERATIONS:
        name = f"FlashAttention {generation.number}"
        too_new = generation.number == 3 and capability != _HOPPER
        if capability < generation.least_capability or too_new:
            problems.append(f"{name} does not serve compute capability {capability}")
            continue
        try:
            function = importlib.import_module(generation.module).flash_attn_func
        except (ImportError, AttributeError, OSError) as error:
            problems.append(f"{name}: {str(error).splitlines()[0] if str(error) else 'no import'}")
            continue
        return (generation, function), ""
    return None, "; ".join(problems)
