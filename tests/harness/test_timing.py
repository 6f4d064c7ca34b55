"""When sampling stops, and what a timed window holds."""

from __future__ import annotations

import gc
import time
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from dynbench.harness.timing import (
    RestingTimer,
    Samples,
    StoppingCriterion,
    Timed,
    WallTimer,
    make_timer,
    median_precision,
    quantile,
    take_samples,
)


class ScriptedTimer:
    """Gives the durations it was made with, the last one for ever."""

    def __init__(self, *durations_ms: float) -> None:
        self._left = list(durations_ms)
        self.calls = 0

    def time(self, run) -> Timed:
        self.calls += 1
        ms = self._left.pop(0) if len(self._left) > 1 else self._left[0]
        return Timed(ms, float(self.calls), run())


@pytest.mark.parametrize(
    ("count", "rank"),  # ranks of the 95 % interval of a median, from a table of sign tests
    [(6, 1), (8, 1), (9, 2), (12, 3), (20, 6), (25, 8), (50, 18), (100, 40)],
)
def test_interval_of_the_median(count, rank):
    samples = [float(100 + i) for i in range(count)]
    half_width = ((count - rank) - (rank - 1)) / 2
    expected = half_width / (100 + (count - 1) / 2)
    assert median_precision(samples[::-1]) == pytest.approx(expected)


@pytest.mark.parametrize("samples", [[], [1.0], [1.0] * 5, [0.0] * 10])
def test_no_interval(samples):
    assert median_precision(samples) is None


@given(st.lists(st.floats(0.1, 1e4), min_size=6, max_size=50), st.floats(0.01, 100))
def test_precision_does_not_depend_on_the_unit(samples, scale):
    scaled = [scale * sample for sample in samples]
    assert median_precision(scaled) == pytest.approx(median_precision(samples), abs=1e-9)


def test_steady_samples_stop_as_soon_as_there_is_an_interval():
    timer = ScriptedTimer(10.0)
    criterion = StoppingCriterion(min_seconds=0.0)
    assert len(take_samples(timer, lambda: None, criterion).ms) == 6


def test_steady_samples_go_on_for_a_while(monkeypatch):
    monkeypatch.setattr(gc, "collect", lambda: time.sleep(0.4))  # which is no time of sampling
    samples = take_samples(WallTimer("cpu"), lambda: time.sleep(0.02), StoppingCriterion())
    assert samples.at_s[-1] + samples.durations_s[-1] >= 0.29


def test_steady_samples_end_at_the_ceiling_all_the_same():
    assert not StoppingCriterion().enough([1.0] * 99, 0.01)
    assert StoppingCriterion().enough([1.0] * 100, 0.01)


def test_noisy_samples_go_on_to_the_ceiling():
    timer = ScriptedTimer(*[10.0, 20.0] * 200)
    criterion = StoppingCriterion(max_samples=40)
    assert len(take_samples(timer, lambda: None, criterion).ms) == 40


def test_time_ends_it_but_never_below_the_floor():
    criterion = StoppingCriterion(min_samples=5, max_seconds=0.0)
    assert len(take_samples(ScriptedTimer(1.0, 2.0), lambda: None, criterion).ms) == 5


@given(st.lists(st.floats(0.1, 1e3), max_size=120), st.floats(0, 100))
def test_criterion_keeps_its_bounds(samples, elapsed_s):
    criterion = StoppingCriterion(min_samples=5, max_samples=100, max_seconds=10)
    if len(samples) < 5:
        assert not criterion.enough(samples, elapsed_s)
    elif len(samples) >= 100 or elapsed_s >= 10:
        assert criterion.enough(samples, elapsed_s)


def test_outputs_are_released_between_samples():
    class Output:
        alive = 0

        def __init__(self) -> None:
            Output.alive += 1
            assert Output.alive == 1

        def __del__(self) -> None:
            Output.alive -= 1

    take_samples(ScriptedTimer(1.0), Output, StoppingCriterion())
    assert Output.alive == 0


def test_garbage_collection_rests_and_comes_back():
    seen: list[bool] = []
    take_samples(ScriptedTimer(1.0), lambda: seen.append(gc.isenabled()), StoppingCriterion())
    assert not any(seen)
    assert gc.isenabled()


def test_wall_timer_times_the_call():
    before = time.perf_counter()
    timed = WallTimer("cpu").time(lambda: time.sleep(0.02) or "output")
    assert 20 <= timed.ms < (time.perf_counter() - before) * 1e3 + 1
    assert before <= timed.start_s <= before + 0.01
    assert timed.outputs == "output"
    assert timed.without_outputs().outputs is None


def test_a_device_rests_before_a_call_for_a_multiple_of_the_last_one(monkeypatch):
    rests: list[float] = []
    monkeypatch.setattr(time, "sleep", rests.append)
    timer = RestingTimer(ScriptedTimer(3.0, 1.0, 400.0), 2.0, longest_s=0.05)
    timed = [timer.time(lambda: "outputs") for _ in range(4)]
    assert [one.ms for one in timed] == [3.0, 1.0, 400.0, 400.0]
    assert timed[0].outputs == "outputs"
    assert rests == [0.0, 0.006, 0.002, 0.05]  # the first call rests not at all


def test_gpus_alone_rest():
    assert isinstance(make_timer("wall", "cuda", 2.0), RestingTimer)
    assert isinstance(make_timer("wall", "cuda"), WallTimer)
    assert isinstance(make_timer("wall", "cpu", 2.0), WallTimer)


def test_samples_know_when_they_began():
    samples = Samples()
    for ms, start_s in ((500.0, 7.0), (250.0, 8.0)):
        samples.add(Timed(ms, start_s))
    assert samples.at_s == [0.0, 1.0]
    assert samples.durations_s == [0.5, 0.25]


def test_unknown_timer_is_named():
    for name in ("event", "graph", "proton", "sundial"):
        with pytest.raises(ValueError, match=f"'{name}' does not exist on cpu"):
            make_timer(name, "cpu")


def test_quantile():
    assert [quantile([1.0, 2.0, 3.0, 4.0], q) for q in (0.25, 0.5, 0.75)] == [1.75, 2.5, 3.25]


class FakeCuda:
    """Records what an event timer asks of the device, in order."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, cache_bytes: int) -> None:
        self.log: list[str] = []
        fake = self

        class Event:
            def __init__(self, enable_timing: bool) -> None:
                assert enable_timing

            def record(self) -> None:
                fake.log.append("event")

            def elapsed_time(self, end: object) -> float:
                return 12.5

        class Buffer:
            def zero_(self) -> None:
                fake.log.append("flush")

        def empty(count: int, dtype: torch.dtype, device: str) -> Buffer:
            fake.flush_bytes = count * dtype.itemsize
            return Buffer()

        properties = SimpleNamespace(L2_cache_size=cache_bytes)
        monkeypatch.setattr(torch, "empty", empty)
        monkeypatch.setattr(torch.cuda, "Event", Event)
        monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
        monkeypatch.setattr(torch.cuda, "get_device_properties", lambda index: properties)
        monkeypatch.setattr(torch.cuda, "synchronize", lambda: fake.log.append("wait"))
        self.flush_bytes = 0


def test_the_cache_is_flushed_outside_the_window(monkeypatch):
    cuda = FakeCuda(monkeypatch, cache_bytes=300 * 2**20)
    timer = make_timer("event", "cuda")
    timed = timer.time(lambda: cuda.log.append("run"))
    assert cuda.log == ["wait", "flush", "event", "run", "event", "wait"]
    assert timed.ms == 12.5
    assert cuda.flush_bytes == 600 * 2**20


def test_wall_time_of_a_device_waits_on_both_sides(monkeypatch):
    cuda = FakeCuda(monkeypatch, cache_bytes=0)
    make_timer("wall", "cuda").time(lambda: cuda.log.append("run"))
    assert cuda.log == ["wait", "run", "wait"]
