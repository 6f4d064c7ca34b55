"""The two measures of quality, and how far a configuration is behind another one."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from dynbench.dashboards.quality.estimate import ANY, SHARE, Difference, Estimate, difference
from dynbench.dashboards.text import number_text, percent_text


@dataclass(frozen=True)
class Measure:
    """What a column measures, which way is better, and how it is written.

    ``close`` is the distance at which a configuration counts as good as the reference: a share of
    the reference's mean where ``relative``, else in the unit of the column.
    """

    column: str
    noun: str  # in a sentence
    title: str
    axis: str
    direction: str
    lower_is_better: bool
    relative: bool
    close: float
    close_text: str
    scale: float  # from the column to the axis
    show: Callable[[float | None], str]


LOSS = Measure(
    column="eval_loss",
    noun="loss",
    title="Held-out loss",
    axis="held-out loss (nats)",
    direction="Lower is better.",
    lower_is_better=True,
    relative=True,
    close=0.02,
    close_text="2 %",
    scale=1.0,
    show=lambda value: number_text(value, 4),
)
ACCURACY = Measure(
    column="eval_accuracy",
    noun="accuracy",
    title="Held-out accuracy",
    axis="held-out accuracy (%)",
    direction="Higher is better.",
    lower_is_better=False,
    relative=False,
    close=0.01,
    close_text="1 point",
    scale=100.0,
    show=percent_text,
)
MEASURES = (LOSS, ACCURACY)

BOUNDS = {  # of the numbers that have an interval over seeds
    "eval_loss": (0.0, ANY[1]),
    "eval_accuracy": SHARE,
    "attended_share": SHARE,
    "sparsity": SHARE,
    "mean_blocks": (0.0, ANY[1]),
    "activation_rate": SHARE,
    "dead_neuron_share": SHARE,
    "gate_compressed": SHARE,
    "gate_selected": SHARE,
    "gate_sliding": SHARE,
    "latency_ms": (0.0, ANY[1]),
    "peak_memory_bytes": (0.0, ANY[1]),
}


@dataclass(frozen=True)
class Gap:
    """How much worse than a reference (below 0: better), with the 95 % interval of the difference.

    Of a relative measure a share of the reference's mean, else in the unit of the column.
    """

    measure: Measure
    own: Estimate
    reference: Estimate
    value: float
    low: float | None
    high: float | None

    @property
    def verdict(self) -> str:
        """``within``, ``beyond`` or ``unclear`` of ``close``; ``single`` without an interval."""
        if self.low is None or self.high is None:
            return "single"
        if self.high <= self.measure.close:
            return "within"
        return "beyond" if self.low > self.measure.close else "unclear"

    @property
    def text(self) -> str:
        """The change in words, as the measure itself moves: ``+0.8 %`` of loss."""
        return self._signed(self._moved(self.value))

    @property
    def interval_text(self) -> str:
        """The interval of ``text``, or that there is none."""
        if self.low is None or self.high is None:
            return "one seed, so no interval"
        ends = sorted((self._moved(self.low), self._moved(self.high)))
        low, high = (self._signed(end, unit=False) for end in ends)
        return f"95 % interval {low} to {high}{self._unit}"

    @property
    def _unit(self) -> str:
        return " %" if self.measure.relative else " points"

    def _moved(self, worse: float) -> float:
        return worse if self.measure.lower_is_better else -worse

    def _signed(self, share: float, *, unit: bool = True) -> str:
        value = 100 * share
        text = f"{value:+.2f}" if abs(value) < 10 else f"{value:+.1f}"
        return f"{text}{self._unit if unit else ''}".replace("-", "−")


def gap(measure: Measure, own: Estimate | None, reference: Estimate | None) -> Gap | None:
    """How much worse ``own`` is than ``reference``; None where either is missing."""
    if own is None or reference is None or (measure.relative and not reference.mean > 0):
        return None
    by = reference.mean if measure.relative else 1.0
    found = _oriented(difference(own, reference), measure.lower_is_better)
    low, high = (None if end is None else end / by for end in (found.low, found.high))
    return Gap(measure, own, reference, found.value / by, low, high)


def estimate_text(held: Estimate | None, show: Callable[[float | None], str]) -> str:
    """Mean and interval, such as ``1.712 (1.690–1.734)``; empty for None."""
    if held is None:
        return ""
    if held.low is None or held.high is None:
        return f"{show(held.mean)} (one seed)"
    low = show(held.low).removesuffix(" %")
    return f"{show(held.mean)} ({low}–{show(held.high)})"


def _oriented(found: Difference, lower_is_better: bool) -> Difference:
    """More is worse for a loss; for an accuracy the other way round."""
    if lower_is_better:
        return found
    low, high = (None if end is None else -end for end in (found.high, found.low))
    return Difference(-found.value, low, high, found.seeds)
