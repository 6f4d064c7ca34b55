"""How far an output is from its reference, and how far it may be."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

BASE_TOLERANCE = {torch.float32: 1e-4, torch.float16: 5e-3, torch.bfloat16: 5e-3}
"""RMS error over RMS of the reference that is always accepted."""

TIE_TOLERANCE = {torch.float32: 2e-2, torch.float16: 1e-1, torch.bfloat16: 1e-1}
"""Accepted where a sparse kernel keeps its lists for itself: the reference then chooses its own,
and of two blocks with nearly the same score it may take the other one."""

LONE_TOLERANCE = 0.1  # of a gradient of one number in low precision
OUTPUT_FACTOR, GRADIENT_FACTOR = 2.0, 3.0
"""Times the error of a plain computation in the same low precision that is accepted as well."""

_MAGNITUDES = (0, 16, 256, 4096, 65536)
_NOTHING = 1e-12
_LEAST_ROWS = 4
_KEY_BLOCK, _LEAST_KEYS = 64, 16


@dataclass(frozen=True)
class Comparison:
    """One output (or one part of it): its name, error and tolerance, both relative RMS."""

    name: str
    error: float
    tolerance: float

    @property
    def badness(self) -> float:
        """Error over tolerance; infinite if the error is not finite."""
        return self.error / self.tolerance if self.error == self.error else float("inf")


def worst(comparisons: Iterable[Comparison]) -> Comparison:
    """The comparison that is furthest beyond, or nearest to, its tolerance."""
    return max(comparisons, key=lambda comparison: comparison.badness)


def rms_ratio(output: Tensor, reference: Tensor) -> float:
    """RMS of the difference over RMS of the reference; NaN and inf in the output stay visible.

    Where the reference is nothing but zeros (dq of a lone token), the error itself: operands are of
    unit size.
    """
    error = (output.to(reference.dtype) - reference).square().mean().sqrt().item()
    size = reference.square().mean().sqrt().item()
    return error / size if size > _NOTHING else error


def median_row_ratio(output: Tensor, reference: Tensor) -> float:
    """The median over rows of [1, N, ...] of the rms ratio of a row; NaN rows stay visible."""
    error = (output.to(reference.dtype) - reference)[0].flatten(1).square().mean(1).sqrt()
    size = reference[0].flatten(1).square().mean(1).sqrt()
    ratio = torch.where(size > _NOTHING, error / size.clamp(min=_NOTHING), error)
    return ratio.quantile(0.5).item()


def tolerance(
    wanted: Tensor, plain: Tensor | None, dtype: torch.dtype, factor: float = GRADIENT_FACTOR
) -> float:
    """Accepted error: the base tolerance, or ``factor`` times that of ``plain``, plain torch."""
    error = 0.0 if plain is None else rms_ratio(plain, wanted)
    return max(BASE_TOLERANCE[dtype], factor * error if math.isfinite(error) else 0.0)


def gradient_tolerance(wanted: Tensor, plain: Tensor | None, dtype: torch.dtype) -> float:
    """As ``tolerance``; in low precision at least ``LONE_TOLERANCE`` for a single number.

    Its error, that of a sum whose terms cancel, is one draw: plain torch's may be small by chance.
    """
    lone = plain is not None and wanted.numel() == 1
    return max(tolerance(wanted, plain, dtype), LONE_TOLERANCE if lone else 0.0)


def compare_parts(
    name: str,
    output: Tensor,
    reference: Tensor,
    parts: list[Tensor],
    *,
    plain: Tensor | None,
    dtype: torch.dtype,
    factor: float,
) -> list[Comparison]:
    """Compare [1, N, ...] tensors part by part; ``parts`` are indices into N (see row_parts).

    ``plain`` is the same in the output's own precision, by plain torch: ``factor`` times its error
    is accepted where that is more than the base tolerance.
    """
    comparisons = []
    for part in parts:
        index = part.to(reference.device)
        wanted = reference[:, index]
        low = None if plain is None else plain[:, index]
        allowed = tolerance(wanted, low, dtype, factor)
        comparisons.append(Comparison(name, rms_ratio(output[:, index], wanted), allowed))
    return comparisons


def row_parts(positions: Tensor) -> list[Tensor]:
    """Query positions by order of magnitude, as indices into ``positions``.

    Outputs shrink with the number of keys: over all rows at once the first few would outweigh an
    error in all the others.
    """
    edges = torch.tensor(_MAGNITUDES)
    return _parts(torch.bucketize(positions.cpu(), edges, right=True), _LEAST_ROWS)


def key_parts(positions: Tensor) -> list[Tensor]:
    """Key positions by block: gradients of late keys have few queries and would be outweighed."""
    return _parts(positions.cpu() // _KEY_BLOCK, _LEAST_KEYS)


def _parts(label: Tensor, least: int) -> list[Tensor]:
    """Indices of equal label (ascending), parts with fewer than ``least`` joined to the next."""
    parts: list[Tensor] = []
    for value in label.unique():
        part = (label == value).nonzero()[:, 0]
        if parts and min(len(parts[-1]), len(part)) < least:
            parts[-1] = torch.cat([parts[-1], part])
        else:
            parts.append(part)
    return parts


def first_unwritten(tensors: Sequence[Tensor], names: Sequence[str]) -> str:
    """Where an output holds NaN or inf, anywhere in it; empty if nowhere.

    Outputs are written to memory that held NaN, so this finds rows that a kernel never wrote.
    """
    for name, tensor in zip(names, tensors, strict=True):
        finite = torch.isfinite(tensor)
        if not bool(finite.all()):
            where = (~finite).nonzero()[0].tolist()
            share = 1 - finite.float().mean().item()
            return f"{name} is not finite at {where} ({share:.2%} of it)"
    return ""
