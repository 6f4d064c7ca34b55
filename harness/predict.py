"""How long a case will take: for ``--dry-run``, the time left and ``--budget``.

A prediction starts from the case's FLOPs over a guessed rate and is corrected by every row that
comes in: latencies of the same provider and pass scale with FLOPs, and the share of a case's time
that is not spent in calls (inputs, reference, checks) is learned too. It imports no torch.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from dynbench.harness.case import Case

_FIXED_COST_S = 1.0  # inputs, reference and check of a small case
_CALLS = 9  # first, checked, measured, five samples, checked: the fewest for a call under 5 s
_UNKNOWN_CALL_S = 1.0
_CORRECTION_RANGE = (0.2, 20.0)
_PRIOR_S = 5.0  # believed to be as modelled: a second of start-up must not scale an hour


def guess_tflops(device: str) -> float:
    """Matrix product rate assumed before any is measured, in TFLOP/s: deliberately modest."""
    return 200.0 if device == "cuda" else 0.05 * (os.cpu_count() or 1)


@dataclass(frozen=True)
class _Seen:
    case: Case
    flops: int
    call_s: float
    wall_s: float | None


@dataclass
class Predictor:
    """Predicts seconds, and learns from rows.

    ``flops_of`` gives a case's FLOPs, or None where no formula applies. ``efficiency`` maps a
    provider's name to the share of the matrix product rate it is expected to reach (a variant such
    as ``sdpa:math`` falls back to ``sdpa``, anything unknown to ``default_efficiency``).
    ``sample_s`` is the time spent sampling a fast case, and calls over ``slow_call_s`` are made
    twice only (see measure.Limits): pass less of both for ``--quick``. ``stage_calls`` are further
    calls of each case (one of a slow one). ``once_s`` gives the least duration, whatever the FLOPs,
    of a case that is called once; None for one that is sampled.
    """

    flops_of: Callable[[Case], int | None]
    efficiency: Mapping[str, float] = field(default_factory=dict)
    default_efficiency: float = 0.25
    sample_s: float = 3.0
    slow_call_s: float = 5.0
    stage_calls: int = 0
    further_flops_of: Callable[[Case], int] = lambda case: 0
    once_s: Callable[[Case], float | None] = lambda case: None
    _seen: list[_Seen] = field(default_factory=list, init=False, repr=False)
    _tflops: dict[tuple[str, str], float] = field(default_factory=dict, init=False, repr=False)

    def call_seconds(self, case: Case) -> float:
        """Expected duration of one call of the case, in seconds."""
        flops = self.flops_of(case)
        if not flops:
            return _UNKNOWN_CALL_S
        alike = self._alike(case)
        if alike:  # the nearest in FLOPs scales best
            nearest = min(alike, key=lambda seen: max(seen.flops, flops) / min(seen.flops, flops))
            return nearest.call_s * flops / nearest.flops
        return max(self._guessed_s(case, flops), self.once_s(case) or 0.0)

    def case_seconds(self, case: Case) -> float:
        """Expected duration of the whole case: inputs, calls, samples and checks, in seconds."""
        return self._model(case, self.call_seconds(case)) * self._correction(case)

    def total_seconds(self, cases: Iterable[Case]) -> float:
        """Expected duration of all ``cases``, one after another, in seconds."""
        return sum(self.case_seconds(case) for case in cases)

    def observe(self, case: Case, row: Mapping[str, Any], wall_s: float | None = None) -> None:
        """Learn from a finished row; ``wall_s`` is what the whole case took, where known.

        Rows that measured nothing are passed over. Rows of earlier runs on the same machine may be
        given too, without ``wall_s``.
        """
        rate = row.get("ceiling_matmul_tflops")
        if rate:
            self._tflops[(case.device, case.dtype)] = float(rate)
        latency_ms = row.get("latency_ms")
        flops = self.flops_of(case)
        if latency_ms and flops:
            self._seen.append(_Seen(case, flops, float(latency_ms) / 1e3, wall_s))

    def _alike(self, case: Case) -> list[_Seen]:
        def key(other: Case) -> tuple[str, ...]:
            return (other.suite, other.provider, other.pass_, other.device, other.dtype)

        return [seen for seen in self._seen if key(seen.case) == key(case)]

    def _efficiency_of(self, provider: str) -> float:
        family = provider.partition(":")[0]
        return self.efficiency.get(provider, self.efficiency.get(family, self.default_efficiency))

    def _guessed_s(self, case: Case, flops: int) -> float:
        """Seconds of so many FLOPs, by the rate that the provider is expected to reach."""
        tflops = self._tflops.get((case.device, case.dtype), guess_tflops(case.device))
        return flops / (tflops * 1e12 * self._efficiency_of(case.provider))

    def _model(self, case: Case, call_s: float) -> float:
        if self.once_s(case) is not None:
            return _FIXED_COST_S + call_s
        fixed_s = _FIXED_COST_S + self._guessed_s(case, self.further_flops_of(case))
        if call_s > self.slow_call_s:
            return fixed_s + (2 + min(self.stage_calls, 1)) * call_s
        calls_s = max(_CALLS * call_s, self.sample_s)
        return fixed_s + calls_s + self.stage_calls * call_s

    def _correction(self, case: Case) -> float:
        """Observed over modelled wall time, of the latest rows of this provider (else of all)."""
        timed = [seen for seen in self._alike(case) or self._seen if seen.wall_s is not None][-3:]
        wall_s = _PRIOR_S + sum(seen.wall_s or 0.0 for seen in timed)
        modelled_s = _PRIOR_S + sum(self._model(seen.case, seen.call_s) for seen in timed)
        low, high = _CORRECTION_RANGE
        return min(max(wall_s / modelled_s, low), high)
