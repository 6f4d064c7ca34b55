"""Means over seeds, and differences of means, with 95 % t intervals.

One seed has no interval: it is shown as a single number, never with a made-up range. Trainings of
one seed begin with the same parameters and see the same batches, so where both sides have the same
seeds a difference is taken seed by seed: what seeds differ by is in both, and drops out.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import special

LEVEL = 0.95
ANY = (-math.inf, math.inf)
SHARE = (0.0, 1.0)


@dataclass(frozen=True)
class Estimate:
    """The mean of a number over seeds; ``low`` and ``high`` are None where one seed has it."""

    mean: float
    low: float | None
    high: float | None
    values: tuple[float, ...]  # one a seed
    names: tuple[int, ...] = ()  # the seeds, if known

    @property
    def seeds(self) -> int:
        """How many seeds have the number."""
        return len(self.values)


@dataclass(frozen=True)
class Difference:
    """A mean minus another; ``low`` and ``high`` are None where a side has one seed only."""

    value: float
    low: float | None
    high: float | None
    seeds: tuple[int, int]


def estimate(
    values: Sequence[float],
    bounds: tuple[float, float] = ANY,
    seeds: Sequence[int] | None = None,
) -> Estimate | None:
    """The mean of one value a seed with its t interval, cut to ``bounds``; None without values."""
    places = [place for place, value in enumerate(values) if math.isfinite(value)]
    if not places:
        return None
    known = tuple(float(values[place]) for place in places)
    names = () if seeds is None else tuple(int(seeds[place]) for place in places)
    mean, half = means(np.asarray(known)[:, None])
    low, high = (None, None) if half is None else (mean[0] - half[0], mean[0] + half[0])
    if low is not None and high is not None:
        low, high = float(max(low, bounds[0])), float(min(high, bounds[1]))
    return Estimate(float(mean[0]), low, high, known, names)


def means(values: NDArray[Any]) -> tuple[NDArray[Any], NDArray[Any] | None]:
    """Means over the first axis, and half the width of each t interval (None with one value)."""
    count = len(values)
    mean = values.mean(axis=0)
    if count < 2:
        return mean, None
    error = values.std(axis=0, ddof=1) / math.sqrt(count)
    return mean, special.stdtrit(count - 1, (1 + LEVEL) / 2) * error


@lru_cache(maxsize=4096)
def difference(own: Estimate, other: Estimate) -> Difference:
    """``own`` minus ``other`` with its interval.

    Seed by seed where both have the same seeds, else Welch's: the variances need not be equal.
    """
    value, seeds = own.mean - other.mean, (own.seeds, other.seeds)
    if min(seeds) < 2:
        return Difference(value, None, None, seeds)
    if own.names and set(own.names) == set(other.names):
        theirs = dict(zip(other.names, other.values, strict=True))
        pairs = zip(own.names, own.values, strict=True)
        _, half = means(np.asarray([[ours - theirs[name]] for name, ours in pairs]))
        assert half is not None
        return Difference(value, value - float(half[0]), value + float(half[0]), seeds)
    if len(set(own.values)) == len(set(other.values)) == 1:  # the test divides by the spread
        return Difference(value, value, value, seeds)
    from scipy import stats  # takes a second to import, and most reports have no need of it

    with warnings.catch_warnings():  # it warns of one side without any spread, which is no trouble
        warnings.simplefilter("ignore", RuntimeWarning)
        test = stats.ttest_ind(own.values, other.values, equal_var=False)
        interval = test.confidence_interval(LEVEL)
    return Difference(value, float(interval.low), float(interval.high), seeds)
