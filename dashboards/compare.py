"""Speed-ups over a baseline, and where a line begins to pay.

A line is faster or slower only where its quartiles and the baseline's do not overlap.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass

from dynbench.dashboards.model import Line, Panel, Point

FOCUS = "dynnsiha"
"""The provider that the report is about."""


@dataclass(frozen=True)
class Gain:
    """A line against the baseline at one length.

    ``speedup`` is the baseline's median latency over the line's; ``low`` and ``high`` put the
    quartiles against each other, the least and the most favourable way.
    """

    point: Point
    baseline_ms: float
    speedup: float
    low: float
    high: float

    @property
    def seq_len(self) -> int:
        """Tokens in a sequence."""
        return self.point.seq_len

    @property
    def sign(self) -> int:
        """1 where the line is clearly faster, -1 where clearly slower, 0 where ranges overlap."""
        return (min(self.low, self.speedup) > 1) - (max(self.high, self.speedup) < 1)


@dataclass(frozen=True)
class Comparison:
    """A line against the baseline over all lengths that both measured, ascending."""

    line: Line
    gains: tuple[Gain, ...]

    @property
    def pays_from(self) -> int | None:
        """The shortest length from which on the line is clearly faster wherever compared."""
        found = None
        for gain in reversed(self.gains):
            if gain.sign <= 0:
                break
            found = gain.seq_len
        return found

    @property
    def rank(self) -> tuple[int, float]:
        """What makes a comparison the better one: the longest length, and the speed-up there."""
        return self.gains[-1].seq_len, self.gains[-1].speedup

    @property
    def losses(self) -> tuple[Gain, ...]:
        """Lengths at which the line is clearly slower."""
        return tuple(gain for gain in self.gains if gain.sign < 0)

    @property
    def ties(self) -> tuple[Gain, ...]:
        """Lengths without a clear difference."""
        return tuple(gain for gain in self.gains if gain.sign == 0)

    @property
    def crossings(self) -> tuple[float, ...]:
        """Lengths where the speed-up passes 1, interpolated in both logarithms.

        Only between lengths with a clear difference: noise around 1 is no crossing.
        """
        found = []
        clear = [gain for gain in self.gains if gain.sign]
        for before, after in itertools.pairwise(clear):
            if before.sign != after.sign:
                log_before, log_after = math.log(before.speedup), math.log(after.speedup)
                part = -log_before / (log_after - log_before)
                step = math.log(after.seq_len / before.seq_len)
                found.append(before.seq_len * math.exp(part * step))
        return tuple(found)

    @property
    def geometric_mean(self) -> float | None:
        """Geometric mean of the speed-ups; None without any."""
        if not self.gains:
            return None
        return math.exp(sum(math.log(g.speedup) for g in self.gains) / len(self.gains))

    @property
    def largest_error(self) -> Point | None:
        """The point with the largest error against the provider's own reference."""
        points = [gain.point for gain in self.gains if gain.point.rms_error is not None]
        return max(points, key=lambda point: point.rms_error or 0.0, default=None)

    @property
    def cases(self) -> int:
        """Rows that the comparison rests on, the baseline's included."""
        return sum(gain.point.rows + gain.point.baseline_rows for gain in self.gains)

    @property
    def samples(self) -> int:
        """Samples that the comparison rests on, the baseline's included."""
        return sum(gain.point.samples + gain.point.baseline_samples for gain in self.gains)


def compare(line: Line) -> Comparison:
    """``line`` against the baseline at every length where both have an ok row."""
    gains = (_gain(point) for point in line.points)
    return Comparison(line, tuple(gain for gain in gains if gain is not None))


def comparisons(panel: Panel) -> list[Comparison]:
    """All lines of the panel but the baseline's, without those that share no length with it."""
    found = [compare(line) for line in panel.lines if line.provider != panel.baseline]
    return [comparison for comparison in found if comparison.gains]


def best_by_lists(panel: Panel) -> list[Comparison]:
    """For each kind of block list, the focus provider's best line against the baseline.

    Best is the largest speed-up at the longest length compared; kinds are never mixed. A line that
    leaves a branch out does less than the baseline's work: it counts only where all lines do.
    """
    own = [comparison for comparison in comparisons(panel) if comparison.line.base == FOCUS]
    whole = [comparison for comparison in own if not comparison.line.settings["branches"]]
    best: dict[str, Comparison] = {}
    for comparison in whole or own:
        held = best.get(comparison.line.lists)
        if held is None or comparison.rank > held.rank:
            best[comparison.line.lists] = comparison
    return [best[lists] for lists in sorted(best)]


def _gain(point: Point) -> Gain | None:
    speedup, low, high = point.speedup, point.speedup_low, point.speedup_high
    if point.baseline_ms is None or speedup is None or low is None or high is None:
        return None
    return Gain(point, point.baseline_ms, speedup, low, high)
