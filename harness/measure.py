"""Measures one subject: the order of the steps, and the columns that come out.

The usual case::

    baseline memory, setup, first call, checked call on poisoned memory, call under the memory
    meter, warm-up, samples, checked call on poisoned memory, calls with recorded stages if wanted

A case whose calls take over ``slow_call_s`` cannot afford that. It gets no warm-up and two samples,
and its second call serves at once as sample, as memory measurement and for the check: two or three
calls altogether. The first call counts as the first sample where the second confirms it (it was
not compiling); then ``compile_ms`` equals ``samples_ms[0]``. Otherwise a third call is the second
sample, and it is checked as well. ``warmup_count`` is 0 either way. Its stages are recorded once.

With timer ``graph``, two eager calls come first: one that compiles, and one whose peak of memory is
the row's. Then the call is captured, and every call above is a replay. With timer ``proton`` an
eager call comes first, because kernel times do not tell how long compiling took. ``compile_ms`` and
the stages are always those of eager calls.

A subject that runs ``once`` is called once, under the memory meter: setup, call, check. What it
returns has no reference, so the row gets the check's verdict without an error.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from typing import Any

from dynbench.harness.case import Case
from dynbench.harness.ceilings import Ceilings
from dynbench.harness.failure import one_line
from dynbench.harness.graph import Replay, capture_stream
from dynbench.harness.memory import MemoryMeter, Peak, release_memory
from dynbench.harness.poison import (
    Block,
    Returned,
    output_blocks,
    overwritten_allocations,
    poison,
    poison_device,
)
from dynbench.harness.schema import Status
from dynbench.harness.stages import stage_columns
from dynbench.harness.subject import Correctness, Subject, Work
from dynbench.harness.telemetry import Telemetry
from dynbench.harness.timing import (
    Samples,
    StoppingCriterion,
    Timed,
    Timer,
    WallTimer,
    make_timer,
    median_precision,
    quantile,
    take_samples,
)

_FAIR_FIRST_CALL = 1.1  # a first call longer than this many second calls did more than the work


@dataclass(frozen=True)
class Limits:
    """How much time measuring one case may take: see the module's text.

    ``warmup_s`` is spent in calls before the first sample, rests included (the checked and the
    measured call are not enough to settle clocks), ``max_warmup_calls`` ends that early for tiny
    kernels.
    ``stage_calls`` are those in which the stages are recorded, where they are wanted. A GPU rests
    after each call, for ``rest`` times its duration (see RestingTimer).
    """

    slow_call_s: float = 5.0
    warmup_s: float = 0.5
    max_warmup_calls: int = 200
    stage_calls: int = 7
    rest: float = 0.0
    criterion: StoppingCriterion = field(default_factory=StoppingCriterion)

    @classmethod
    def quick(cls) -> Limits:
        """For a first answer, and for gates: the same steps with fewer samples.

        They take a moment, so a GPU's clock is kept from swinging. Rows with many samples show
        what a card does under load instead. A call of 0.1 ms varies by 1 to 3 %, and its median
        over six would be most of a gate's noise: for ``min_seconds`` they cost nothing.
        """
        criterion = StoppingCriterion(
            precision=0.03, min_samples=3, max_samples=50, min_seconds=0.1, max_seconds=1
        )
        return cls(slow_call_s=2.0, warmup_s=0.1, stage_calls=3, rest=2.0, criterion=criterion)

    def rest_on(self, device: str) -> float:
        """The column ``rest`` of a case on this device: only GPUs rest."""
        return self.rest if device == "cuda" else 0.0


@dataclass(frozen=True)
class _Spoiler:
    """Sees to it that the outputs of a call cannot be right by what the memory held before."""

    device: str
    blocks: list[Block]  # of the outputs
    peak: Peak  # of the first call
    returned: Returned
    replay: Replay | None = None  # it brings its own memory, and takes none that is free

    @contextmanager
    def spoiled_memory(self, *, measured: bool) -> Iterator[None]:
        """Spoil what is held of earlier outputs, free memory, and on a CPU what is handed out.

        The last costs time and memory: where these are ``measured``, freed memory goes back to
        the kernel instead, which hands out zeros.
        """
        release_memory(self.device)  # else the freed memory of older calls would be handed out
        self.returned.overwrite()
        if self.device == "cpu" and measured:
            yield
            return
        if self.replay is not None:
            self.replay.spoil()
            yield
            return
        if self.device == "cuda":
            poison_device(self.peak.allocated_bytes or 0)
        poison(self.blocks)
        with overwritten_allocations() if self.device == "cpu" else nullcontext():
            yield


@dataclass(frozen=True)
class _RememberingTimer:
    """A timer that notes, outside of the timed window, where the outputs of its calls lie."""

    timer: Timer
    returned: Returned

    def time(self, run: Callable[[], Any]) -> Timed:
        """Call ``run`` once and time it."""
        timed = self.timer.time(run)
        self.returned.remember(timed.outputs)
        return timed


@dataclass
class _Taken:
    """What the calls of one case gave."""

    samples: Samples
    warmup_count: int
    peak: Peak
    verdict: Correctness


def measure(
    subject: Subject,
    case: Case,
    machine: Mapping[str, Any],
    ceilings: Ceilings | None,
    limits: Limits,
    on_stage: Callable[[str], None] = lambda stage: None,
    *,
    on_progress: Callable[[str], None] = lambda where: None,
    stages: bool = False,
) -> dict[str, Any]:
    """Measure ``subject`` and return the columns of its row: status, times, memory, rates, checks.

    ``machine`` holds provenance columns and is passed through; without ``ceilings`` the columns
    that need them stay empty. ``on_stage`` hears what begins, and ``on_progress`` how far a call
    is that a subject makes once, if it tells. ``stages`` asks for the subject's own
    stages, if it has any. A failed check gives status
    ``incorrect``; before sampling, it also ends the case. Whatever the subject raises is passed on.
    """
    if subject.once:
        return _measure_once(subject, case, machine, ceilings, on_stage, on_progress)
    captured = case.timer == "graph" and case.device == "cuda"
    with capture_stream() if captured else nullcontext():
        return _measure(subject, case, machine, ceilings, limits, on_stage, stages=stages)


def _measure(
    subject: Subject,
    case: Case,
    machine: Mapping[str, Any],
    ceilings: Ceilings | None,
    limits: Limits,
    on_stage: Callable[[str], None],
    *,
    stages: bool,
) -> dict[str, Any]:
    returned = Returned(subject.inputs)
    timer = _RememberingTimer(make_timer(case.timer, case.device, limits.rest), returned)
    eager = timer
    if case.timer == "proton":
        eager = _RememberingTimer(WallTimer(case.device), returned)
    meter = MemoryMeter(case.device)
    columns: dict[str, Any] = {**machine, **work_columns(subject)}
    columns["rest"] = limits.rest_on(case.device)
    if subject.setup is not None:
        on_stage("setup")
        subject.setup()
    with Telemetry(case.device) as telemetry:
        on_stage("first call")
        first, first_peak = meter.peak_of(lambda: eager.time(subject.run))
        columns["compile_ms"] = first.ms
        spoiler = _Spoiler(case.device, output_blocks(first.outputs), first_peak, returned)
        first = first.without_outputs()
        sampled, eager_peak = subject, None
        if case.timer == "graph":
            on_stage("capture")
            _, eager_peak = meter.peak_of(lambda: eager.time(subject.run).without_outputs())
            replay = Replay(subject.run)
            sampled, spoiler = replace(subject, run=replay), replace(spoiler, replay=replay)
        if case.timer in ("graph", "proton"):
            first = timer.time(sampled.run).without_outputs()
        taken = _take(sampled, timer, meter, limits, first, spoiler, on_stage)
        columns["device_memory_bytes"] = telemetry.memory_used_bytes()
    peak = eager_peak or taken.peak
    columns.update(_verdict_columns(taken.verdict))
    columns["peak_memory_bytes"] = peak.allocated_bytes
    columns["reserved_memory_bytes"] = peak.reserved_bytes
    if taken.samples.ms:
        columns.update(_time_columns(taken.samples, taken.warmup_count))
        columns.update(telemetry.columns(taken.samples.starts_s, taken.samples.durations_s))
        columns.update(rate_columns(subject.work, columns["latency_ms"], ceilings))
        if subject.tokens is not None:
            columns["tokens_per_s"] = subject.tokens / (columns["latency_ms"] / 1e3)
    if taken.verdict.passed:
        if stages and subject.record_stages is not None:
            on_stage("stages")
            slow = columns["latency_ms"] > limits.slow_call_s * 1e3
            calls = 1 if slow else limits.stage_calls
            columns.update(stage_columns(subject.record_stages, subject.run, eager, calls))
        on_stage("facts")
        columns.update(subject.facts())
    return columns


def _measure_once(
    subject: Subject,
    case: Case,
    machine: Mapping[str, Any],
    ceilings: Ceilings | None,
    on_stage: Callable[[str], None],
    on_progress: Callable[[str], None],
) -> dict[str, Any]:
    meter = MemoryMeter(case.device)
    timer = WallTimer(case.device)
    columns: dict[str, Any] = {**machine, **work_columns(subject)}
    if subject.setup is not None:
        on_stage("setup")
        subject.setup()
    if subject.follow is not None:
        subject.follow(on_progress)
    with Telemetry(case.device) as telemetry:
        on_stage("run")
        timed, peak = meter.peak_of(lambda: timer.time(subject.run))
        columns["device_memory_bytes"] = telemetry.memory_used_bytes()
    on_stage("check")
    verdict = _verdict_columns(subject.check(timed.outputs))
    columns.update({name: verdict[name] for name in ("status", "reason", "checked")})
    columns["peak_memory_bytes"] = peak.allocated_bytes
    columns["reserved_memory_bytes"] = peak.reserved_bytes
    samples = Samples()
    samples.add(timed)
    columns.update(_time_columns(samples, 0))
    columns.update(telemetry.columns(samples.starts_s, samples.durations_s))
    columns.update(rate_columns(subject.work, columns["latency_ms"], ceilings))
    if columns["status"] == Status.OK:
        on_stage("facts")
        columns.update(subject.facts())
    return columns


def work_columns(subject: Subject) -> dict[str, Any]:
    """The columns known before anything is called: they stand in rows that failed, too."""
    work = subject.work
    return {
        "provider_version": subject.version,
        "flops": work.flops,
        "bytes": work.bytes,
        "dense_flops": work.dense_flops,
        "arithmetic_intensity": work.arithmetic_intensity,
    }


def rate_columns(work: Work, latency_ms: float, ceilings: Ceilings | None) -> dict[str, Any]:
    """Rates of this work at this latency, beside the ceilings (columns None without them)."""
    seconds = latency_ms / 1e3
    roofline_s = ceilings.roofline_seconds(work.flops, work.bytes) if ceilings else None
    return {
        "effective_tflops": work.flops / seconds / 1e12,
        "dense_equivalent_tflops": work.dense_flops / seconds / 1e12,
        "roofline_share": roofline_s / seconds if roofline_s is not None else None,
        "ceiling_copy_gb_s": ceilings.copy_gb_s if ceilings else None,
        "ceiling_matmul_tflops": ceilings.matmul_tflops if ceilings else None,
    }


def _take(
    subject: Subject,
    timer: Timer,
    meter: MemoryMeter,
    limits: Limits,
    first: Timed,
    spoiler: _Spoiler,
    on_stage: Callable[[str], None],
) -> _Taken:
    """Everything after the first call, in the order of the module's text."""

    def checked_call(*, measured: bool) -> tuple[Timed, Peak, Correctness]:
        with spoiler.spoiled_memory(measured=measured):
            timed, peak = meter.peak_of(lambda: timer.time(subject.run), keep_free_memory=True)
        verdict = meter.leave_out(lambda: subject.check(timed.outputs))
        return timed.without_outputs(), peak, verdict

    slow_ms = limits.slow_call_s * 1e3
    on_stage("check")
    second, peak, verdict = checked_call(measured=first.ms > slow_ms)
    if not verdict.passed:
        return _Taken(Samples(), 0, peak, verdict)
    if min(first.ms, second.ms) > slow_ms:
        samples = Samples()
        if first.ms <= _FAIR_FIRST_CALL * second.ms:
            samples.add(first)
            samples.add(second)
        else:
            on_stage("sampling")
            third, _, last = checked_call(measured=True)
            samples.add(second)
            samples.add(third)
            verdict = _worse(verdict, last)
        return _Taken(samples, 0, peak, verdict)

    on_stage("memory")
    _, peak = meter.peak_of(lambda: timer.time(subject.run).without_outputs())
    calls, began = 2, time.perf_counter()  # the checked call and this one
    on_stage("warm-up")
    while time.perf_counter() - began < limits.warmup_s and calls < limits.max_warmup_calls:
        timer.time(subject.run)
        calls += 1
    on_stage("sampling")
    samples = take_samples(timer, subject.run, limits.criterion)
    on_stage("check")
    last = checked_call(measured=False)[2]
    return _Taken(samples, calls, peak, _worse(verdict, last))


def _worse(before: Correctness, after: Correctness) -> Correctness:
    """One verdict of two checks: a failure wins, then the larger error."""
    if not after.passed:
        return replace(after, problem=f"after sampling: {_complaint(after)}")
    return after if after.rms_error > before.rms_error else before


def _complaint(verdict: Correctness) -> str:
    return verdict.problem or (
        f"rms error {verdict.rms_error:.3g} is beyond its tolerance {verdict.rms_tolerance:.3g}"
    )


def _verdict_columns(verdict: Correctness) -> dict[str, Any]:
    return {
        "status": Status.OK if verdict.passed else Status.INCORRECT,
        "reason": None
        if verdict.passed
        else one_line(f"{_complaint(verdict)} ({verdict.checked})"),
        "rms_error": verdict.rms_error,
        "rms_tolerance": verdict.rms_tolerance,
        "dense_error": verdict.dense_error,
        "checked": verdict.checked,
    }


def _time_columns(samples: Samples, warmup_count: int) -> dict[str, Any]:
    return {
        "samples_ms": samples.ms,
        "samples_at_s": samples.at_s,
        "latency_ms": quantile(samples.ms, 0.5),
        "latency_q1_ms": quantile(samples.ms, 0.25),
        "latency_q3_ms": quantile(samples.ms, 0.75),
        "sample_count": len(samples.ms),
        "precision": median_precision(samples.ms),
        "warmup_count": warmup_count,
    }
