"""Timers, and when to stop sampling.

Two traps decide the form of this module. A fixed number of samples is too many for a slow case and
too few for a noisy one: so sampling stops when the median is known to a given precision, between a
floor and a ceiling of samples. And a kernel that finds its inputs in the cache because the last
call left them there looks faster than it is: so on a GPU a buffer larger than the cache is written
before each sample, outside the timed window.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

from dynbench.harness.memory import paused_collection

if TYPE_CHECKING:
    import torch

TIMERS = {"cpu": ("wall",), "cuda": ("event", "graph", "proton", "wall")}  # the default first

_CONFIDENCE = 0.95
_SMALLEST_FLUSH_BYTES = 256 * 2**20  # long enough a write to hide a launch behind


@dataclass(frozen=True)
class StoppingCriterion:
    """Stop when the median is precise enough, or at a ceiling of samples or of time.

    ``precision`` is the half-width of the median's 95 % interval over the median. At least
    ``min_samples`` are taken, whatever they cost; past those, ``max_seconds`` ends it. Precision
    counts only after ``min_seconds``: a few samples in a row agree while a card under its power cap
    is still lowering its clock.
    """

    precision: float = 0.01
    min_samples: int = 5
    max_samples: int = 100
    min_seconds: float = 0.3
    max_seconds: float = 10.0

    def enough(self, samples_ms: list[float], elapsed_s: float) -> bool:
        """Whether to stop after these samples."""
        if len(samples_ms) < self.min_samples:
            return False
        if len(samples_ms) >= self.max_samples or elapsed_s >= self.max_seconds:
            return True
        if elapsed_s < self.min_seconds:
            return False
        reached = median_precision(samples_ms)
        return reached is not None and reached <= self.precision


@dataclass
class Samples:
    """Durations in milliseconds, and when each began on the host's monotonic clock, in seconds."""

    ms: list[float] = field(default_factory=list)
    starts_s: list[float] = field(default_factory=list)

    @property
    def at_s(self) -> list[float]:
        """When each sample began, in seconds after the first."""
        return [start - self.starts_s[0] for start in self.starts_s]

    @property
    def durations_s(self) -> list[float]:
        """How long each sample took, in seconds."""
        return [ms / 1e3 for ms in self.ms]

    def add(self, timed: Timed) -> None:
        """Keep the time of one more call (not what it returned)."""
        self.ms.append(timed.ms)
        self.starts_s.append(timed.start_s)


@dataclass(frozen=True)
class Timed:
    """One timed call: its duration, when it began (host's monotonic clock) and what it returned."""

    ms: float
    start_s: float
    outputs: Any = None

    def without_outputs(self) -> Timed:
        """The same time, holding no tensors."""
        return Timed(self.ms, self.start_s)


class Timer(Protocol):
    """Times one call; the device is idle before and after."""

    def time(self, run: Callable[[], Any]) -> Timed:
        """Call ``run`` once and time it."""


class WallTimer:
    """The host's clock; on ``cuda`` the device is synchronised on both sides of the window."""

    def __init__(self, device: str) -> None:
        self._synchronize: Callable[[], object] = _nothing
        if device == "cuda":
            import torch

            self._synchronize = torch.cuda.synchronize

    def time(self, run: Callable[[], Any]) -> Timed:
        """Call ``run`` once and time it."""
        self._synchronize()
        start_s = time.perf_counter()
        outputs = run()
        self._synchronize()
        return Timed((time.perf_counter() - start_s) * 1e3, start_s, outputs)


class EventTimer:
    """Device events around the call, after a write that leaves nothing of the inputs in the cache.

    The write is queued just before the first event: it is outside the window, and while it runs
    the host gets ahead, so that the launch of a short kernel is not timed with it. The buffer is
    at least twice the L2 cache.
    """

    def __init__(self) -> None:
        self._flush = flush_buffer()

    def time(self, run: Callable[[], Any]) -> Timed:
        """Call ``run`` once and time it."""
        import torch

        begin = torch.cuda.Event(enable_timing=True)
        end = torch.cuda.Event(enable_timing=True)
        torch.cuda.synchronize()
        self._flush.zero_()
        start_s = time.perf_counter()
        begin.record()
        outputs = run()
        end.record()
        torch.cuda.synchronize()
        return Timed(begin.elapsed_time(end), start_s, outputs)


class RestingTimer:
    """Lets the device rest before a call: ``rest`` times what the last one took.

    A card that meets its power cap lowers and raises its clock several times a second, by a tenth,
    so a few samples in a row show a moment of that. With rests its average power stays below the
    cap, and every call runs at the full clock. A long call meets the cap by itself: no rest is
    longer than ``longest_s``.
    """

    def __init__(self, timer: Timer, rest: float, longest_s: float = 0.04) -> None:
        self._timer, self._rest, self._longest_s = timer, rest, longest_s
        self._due_s = 0.0

    def time(self, run: Callable[[], Any]) -> Timed:
        """Rest as long as is due, then call ``run`` once and time it."""
        time.sleep(self._due_s)
        timed = self._timer.time(run)
        self._due_s = min(self._rest * timed.ms / 1e3, self._longest_s)
        return timed


def flush_buffer() -> torch.Tensor:
    """Memory of the GPU that leaves nothing else in its cache when it is written."""
    import torch

    properties = torch.cuda.get_device_properties(torch.cuda.current_device())
    cache_bytes = int(getattr(properties, "L2_cache_size", 0))
    size = max(2 * cache_bytes, _SMALLEST_FLUSH_BYTES)
    return torch.empty(size // 4, dtype=torch.int32, device="cuda")


def make_timer(kind: str, device: str, rest: float = 0.0) -> Timer:
    """The timer a case names, one of TIMERS; for ``graph`` it is the one that times the replays.

    A GPU rests between its calls for ``rest`` times their duration. Raises ValueError for another
    kind, and Unavailable where the timer's library is not here.
    """
    if kind not in TIMERS[device]:
        raise ValueError(f"timer {kind!r} does not exist on {device}: {', '.join(TIMERS[device])}")
    timer: Timer
    if kind == "wall":
        timer = WallTimer(device)
    elif kind == "proton":
        from dynbench.harness.kerneltime import KernelTimer

        timer = KernelTimer()
    else:
        timer = EventTimer()
    return RestingTimer(timer, rest) if rest and device == "cuda" else timer


def take_samples(timer: Timer, run: Callable[[], Any], criterion: StoppingCriterion) -> Samples:
    """Time ``run`` until the criterion is met.

    The outputs of a call are released before the next begins, outside the window, and Python's
    garbage collector rests meanwhile.
    """
    samples = Samples()
    with paused_collection():
        began = time.perf_counter()  # the collection that comes before is no time of sampling
        while True:
            samples.add(timer.time(run))
            if criterion.enough(samples.ms, time.perf_counter() - began):
                return samples


def median_precision(samples_ms: list[float]) -> float | None:
    """Half-width of the median's 95 % interval over the median; None below six samples.

    The interval lies between order statistics (ranks from the binomial distribution), so it
    assumes nothing about how the samples are distributed; five samples carry no such interval.
    """
    count = len(samples_ms)
    rank = _interval_rank(count)
    if rank < 1:
        return None
    median = quantile(samples_ms, 0.5)
    if median <= 0:
        return None
    ordered = sorted(samples_ms)
    return (ordered[count - rank] - ordered[rank - 1]) / 2 / median


@functools.cache
def _interval_rank(count: int) -> int:
    """The largest rank k such that the median lies below the k-th of ``count`` samples, and above
    the k-th from the end, with a chance of at most 2.5 % each; 0 if there is none."""
    from scipy.special import bdtr  # scipy.stats has it too, but takes a second to import

    rank = 0
    while 2 * rank < count and bdtr(rank, count, 0.5) <= (1 - _CONFIDENCE) / 2:
        rank += 1
    return rank


def quantile(values: list[float], share: float) -> float:
    """The quantile ``share`` (0 to 1), interpolated linearly. Raises IndexError for no values."""
    import numpy as np

    return float(np.quantile(np.asarray(values, dtype=float), share))


def _nothing() -> None:
    """Nothing to wait for on a CPU."""
