"""What a suite hands to the harness: something to call, something to check it with, and its cost.

The harness measures subjects and knows nothing else about them; a suite turns a case into one.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dynbench.harness.stages import Record


class Unavailable(Exception):
    """A package or device that the provider needs is not here; the message says how to get it."""


class Unsupported(Exception):
    """The provider does not serve this case; the message names the limit and the nearest case."""


@dataclass(frozen=True)
class Work:
    """Cost of one call in closed form. ``bytes`` counts every input once and every output once."""

    flops: int
    bytes: int
    dense_flops: int

    @property
    def arithmetic_intensity(self) -> float:
        """FLOP per byte."""
        return self.flops / self.bytes


@dataclass(frozen=True)
class Correctness:
    """Outcome of a check. ``rms_error`` is the worst output's; NaN or inf never passes."""

    rms_error: float
    rms_tolerance: float
    checked: str
    dense_error: float | None = None
    problem: str = (
        ""  # a broken invariant (a list with a future block, say); non-empty fails the check
    )

    @property
    def passed(self) -> bool:
        """Whether the output may be called correct."""
        return not self.problem and self.rms_error <= self.rms_tolerance


@dataclass
class Subject:
    """One thing to measure, its inputs already on the device.

    ``setup`` runs once, after the memory baseline is taken and outside every timed region (the
    forward pass that a ``backward`` case differentiates). ``run`` is the timed call: it returns the
    outputs, freshly written. ``check`` compares outputs of ``run`` with the reference; it may be
    slow and use much memory, so the harness calls it outside timing and memory measurement.
    ``facts`` returns further columns of the row (sparsity, overlap, backend that ran). ``inputs``
    holds the tensors that ``run`` reads (any nesting of them): an output may be a part of one of
    them, and the harness overwrites outputs that are still held, but never inputs.
    ``record_stages`` opens a recording of the stages that ``run`` goes through meanwhile.
    ``tokens`` is how many one call makes or learns from, where a rate of tokens means something.
    ``once`` says that ``run`` cannot be repeated (a whole training): it is called exactly once and
    first of all, and its duration on the host's clock is the one sample.
    ``follow`` is called before such a call with a function that it tells, in a few words, how far
    it is. ``keep`` writes what belongs beside the row into the run's folder, given with the run's
    id: at the end of an ``ok`` case, and whenever ``follow``'s function was told something.
    """

    run: Callable[[], Any]
    check: Callable[[Any], Correctness]
    work: Work
    version: str
    setup: Callable[[], None] | None = None
    facts: Callable[[], Mapping[str, Any]] = field(default=dict)
    inputs: Any = None
    record_stages: Record | None = None
    tokens: int | None = None
    once: bool = False
    follow: Callable[[Callable[[str], None]], None] | None = None
    keep: Callable[[Path, str], None] | None = None
