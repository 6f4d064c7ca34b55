"""The stages of a call, as a row tells them: what they add up to and what they leave."""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from dynbench.dashboards.text import label_text

OTHER = "other"


@dataclass(frozen=True)
class Breakdown:
    """A call's stages in their order, each with its milliseconds, beside the whole call's median.

    The stages come from other calls than the median, so they may sum up to a little more than it.
    """

    parts: tuple[tuple[str, float], ...]
    whole_ms: float

    @property
    def sum_ms(self) -> float:
        """All stages together."""
        return sum(ms for _, ms in self.parts)

    @property
    def with_other(self) -> tuple[tuple[str, float], ...]:
        """The stages, and what the median has beyond them as ``other``."""
        return (*self.parts, (OTHER, max(self.whole_ms - self.sum_ms, 0.0)))

    def share(self, ms: float) -> float:
        """A time over the whole call's."""
        return ms / self.whole_ms

    def share_text(self, ms: float) -> str:
        """The share in whole per cent: it is no more exact than that."""
        return f"{100 * self.share(ms):.0f} %"


def breakdown(stages: Mapping[str, float], whole_ms: float | None) -> Breakdown | None:
    """The stages of a call whose median is ``whole_ms``; None without one of both."""
    # What a backend calls "other" is not named: it counts as what is left.
    parts = tuple((name, ms) for name, ms in stages.items() if name != OTHER)
    return Breakdown(parts, whole_ms) if parts and whole_ms and whole_ms > 0 else None


def parse_stages(stages_ms: str | None) -> dict[str, float]:
    """Milliseconds by stage; empty for what is no JSON object of times."""
    if not stages_ms:
        return {}
    try:
        found = json.loads(stages_ms)
    except ValueError:
        return {}
    if not isinstance(found, dict) or not all(map(_is_time, found.values())):
        return {}
    return {label_text(name): float(ms) for name, ms in found.items()}


def joined_stages(texts: Iterable[str]) -> dict[str, float]:
    """The stages of several rows as those of one: medians over the rows that have the stage."""
    held: dict[str, list[float]] = {}
    for text in texts:
        for name, ms in parse_stages(text).items():
            held.setdefault(name, []).append(ms)
    return {name: statistics.median(times) for name, times in held.items()}


def _is_time(value: object) -> bool:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return False
    return math.isfinite(value) and value >= 0
