"""The numbers behind a verdict: changes with their uncertainty, many cases at once, rounds needed.

Everything is in natural logarithms of latencies: a change of +0.03 is a slow-down of 3 %, and
speeding up by as much is -0.03. What varies is a *process*: samples of one process lie closer
together than those of two, so a process counts as one observation, its median.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np
from scipy import optimize, stats

_RESOLUTION = 1e-6  # relative; no timer tells less, and equal numbers must not look certain


@dataclass(frozen=True)
class Estimate:
    """A change with its uncertainty: Student's t around ``change``, ``error`` wide.

    ``spread`` is the standard deviation of one observation of the change (a round's, or what two
    single processes would show), ``observations`` how many processes or rounds it rests on.
    """

    change: float
    error: float
    freedom: float
    spread: float
    observations: int

    def lower(self, confidence: float) -> float:
        """The true change is above this with the given confidence."""
        return float(stats.t.ppf(1 - confidence, self.freedom, self.change, self.error))

    def upper(self, confidence: float) -> float:
        """The true change is below this with the given confidence."""
        return float(stats.t.ppf(confidence, self.freedom, self.change, self.error))

    def p_above(self, bound: float) -> float:
        """p-value against "the true change is at most ``bound``"."""
        return float(stats.t.cdf(bound, self.freedom, self.change, self.error))

    def p_below(self, bound: float) -> float:
        """p-value against "the true change is at least ``bound``"."""
        return float(stats.t.sf(bound, self.freedom, self.change, self.error))


def paired_change(changes: Sequence[float]) -> Estimate:
    """From the changes that several rounds saw. Raises ValueError below two rounds."""
    if len(changes) < 2:
        raise ValueError(f"{len(changes)} rounds tell nothing of the noise between them")
    spread = max(float(np.std(changes, ddof=1)), _RESOLUTION)
    error = max(float(stats.sem(changes)), _RESOLUTION)
    return Estimate(float(np.mean(changes)), error, len(changes) - 1, spread, len(changes))


def unpaired_change(
    baseline: Sequence[float], candidate: Sequence[float], assumed_noise: float
) -> Estimate:
    """From logarithms of medians, one for each process of either side.

    Two or more processes on both sides: Welch's interval. One process on a side: the noise is the
    other side's. One on each: the noise is ``assumed_noise`` (a standard deviation between
    processes). Raises ValueError where a side is empty.
    """
    if not baseline or not candidate:
        raise ValueError("a side without a process")
    change = float(np.mean(candidate) - np.mean(baseline))
    counts = len(baseline), len(candidate)
    if min(counts) >= 2:
        sems = stats.sem(baseline), stats.sem(candidate)
        if min(sems) > _RESOLUTION:
            freedom = float(stats.ttest_ind(baseline, candidate, equal_var=False).df)
        else:  # a side without any scatter: the other one's alone counts
            freedom = counts[int(np.argmax(sems))] - 1
        error = math.hypot(*sems)
        spread = math.hypot(np.std(baseline, ddof=1), np.std(candidate, ddof=1))
    elif max(counts) >= 2:
        noise = float(np.std(max(baseline, candidate, key=len), ddof=1))
        freedom = max(counts) - 1
        error = noise * math.sqrt(1 / counts[0] + 1 / counts[1])
        spread = noise * math.sqrt(2)
    else:
        freedom = math.inf
        error = spread = assumed_noise * math.sqrt(2)
    return Estimate(change, max(error, _RESOLUTION), freedom, max(spread, _RESOLUTION), min(counts))


def holm(p_values: Sequence[float]) -> list[float]:
    """p-values adjusted by Holm's step-down method, in the order given.

    Comparing each with alpha keeps the chance of any false finding among all below alpha (Holm
    1979, A simple sequentially rejective multiple test procedure).
    """
    p = np.asarray(p_values, dtype=float)
    order = np.argsort(p)
    factors = len(p) - np.arange(len(p))
    stepped = np.minimum(np.maximum.accumulate(factors * p[order]), 1.0)
    adjusted = np.empty_like(p)
    adjusted[order] = stepped
    return [float(value) for value in adjusted]


def rounds_needed(
    spread: float, freedom: float, threshold: float, target: float, alpha: float, power: float
) -> int | None:
    """Rounds after which a change of ``target`` is called above ``threshold`` with this power.

    ``spread`` was estimated from ``freedom`` + 1 rounds and may be too small by chance: its 80 %
    upper bound counts. ``alpha`` is the level of one case. None where a thousand are too few.
    """
    believed = spread * math.sqrt(freedom / stats.chi2.ppf(0.2, freedom))
    excess = (target - threshold) / max(believed, _RESOLUTION)
    counts = range(2, 1001)
    if _power(counts[-1], excess, alpha) < power:
        return None
    low, high = 0, len(counts) - 1  # power grows with the number of rounds
    while low < high:
        middle = (low + high) // 2
        if _power(counts[middle], excess, alpha) >= power:
            high = middle
        else:
            low = middle + 1
    return counts[low]


def detectable_change(
    spread: float, rounds: int, threshold: float, alpha: float, power: float
) -> float:
    """The smallest change that so many rounds call above ``threshold`` with this power."""
    return threshold + spread * _detectable_excess(rounds, alpha, power)


@cache
def _detectable_excess(rounds: int, alpha: float, power: float) -> float:
    """In standard deviations of one round."""
    high = 1.0
    while _power(rounds, high, alpha) < power:
        high *= 2
    return float(optimize.brentq(lambda excess: _power(rounds, excess, alpha) - power, 0.0, high))


def _power(rounds: int, excess: float, alpha: float) -> float:
    """Chance that the t-test over ``rounds`` finds a change ``excess`` standard deviations above
    its bound."""
    critical = stats.t.isf(alpha, rounds - 1)
    shift = excess * math.sqrt(rounds)
    found = stats.nct.sf(critical, rounds - 1, shift)
    # scipy gives NaN where the shift is far above the critical value: the chance is one there
    return 1.0 if math.isnan(found) and shift > critical else float(found)
