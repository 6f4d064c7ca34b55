"""What a provider is to the suites."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import torch
from torch import Tensor

from dynbench.harness.subject import Unavailable, Unsupported
from dynbench.suites.spec import Spec

_PROBE_TOKENS = 128


@dataclass(frozen=True)
class Provider:
    """An attention to measure.

    Attributes:
        version: package and version, for the row.
        attention: dense: (q, k, v) -> o; sparse: (q, k, v, gates, config) -> o, or o and the block
            lists that led to it, as lists or as the core's NSAAux. q is [B, T, H, D], k and v
            [B, T, K, D], gates [B, T, H, 3]; causal, scale 1 / sqrt(D).
        sparse: which of the two signatures.
        lists: of a sparse attention that keeps its block lists for itself: (q, k, v, gates, config)
            to the lists that a call with these operands uses. For the check, outside of all timing.
        heads_first: lays its operands out as [B, H, T, D] in memory.
    """

    version: str
    attention: Callable[..., Any]
    sparse: bool = False
    lists: Callable[..., Any] | None = None
    heads_first: bool = False


def package_version(*names: str) -> str:
    """Name and version of the first of these distributions that is installed."""
    for name in names:
        try:
            return f"{name} {version(name)}"
        except PackageNotFoundError:
            continue
    return f"{names[0]} (version unknown)"


def torch_version() -> str:
    """``torch`` and its version."""
    return f"torch {torch.__version__}"


def require_cuda(spec: Spec, name: str, instead: str = "sdpa") -> None:
    """Raise Unavailable on a CPU, naming what runs there ``instead``."""
    if spec.device.type != "cuda":
        raise Unavailable(f"{name} needs a CUDA device: use {instead} on a CPU")


def require_half(spec: Spec, name: str) -> None:
    """Raise Unsupported unless the dtype has 16 bits."""
    if spec.dtype not in (torch.float16, torch.bfloat16):
        kind = str(spec.dtype).removeprefix("torch.")
        raise Unsupported(f"{name} takes float16 and bfloat16, not {kind}: try --dtype bfloat16")


def probe(attention: Callable[[Tensor, Tensor, Tensor], Tensor], spec: Spec, name: str) -> None:
    """Call a dense kernel once on a short sequence: what it refuses does not depend on the length.

    Raises Unsupported with the kernel's own reason; running out of memory stays what it is.
    """
    q, k, v = (
        torch.zeros(
            (1, _PROBE_TOKENS, heads, spec.head_dim),
            dtype=spec.dtype,
            device=spec.device,
            requires_grad=spec.differentiated,
        )
        for heads in (spec.q_heads, spec.kv_heads, spec.kv_heads)
    )
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            o = attention(q, k, v)
            if spec.differentiated:
                torch.autograd.grad(o.sum(), (q, k, v))
        except torch.OutOfMemoryError:
            raise
        except (RuntimeError, AssertionError, ValueError, TypeError, NotImplementedError) as error:
            reasons = [_first_sentence(str(w.message)) for w in caught]
            # torch warns about every kernel; those that were switched off say nothing of interest.
            reasons = [r for r in reasons if "not used because" not in r and "disabled" not in r]
            reason = "; ".join(dict.fromkeys(reasons)) or _first_sentence(str(error))
            raise Unsupported(f"{name} on {spec.device.type}: {reason}") from None


def _first_sentence(text: str) -> str:
    """The first sentence, without the place in torch's sources that its warnings append."""
    lines = text.strip().splitlines() or ["no reason given"]
    return lines[0].partition(" (Triggered internally")[0].partition(". ")[0].strip(" .")
