"""Stages: what they cost nobody, how they add up, and those of the blockwise backend."""

from __future__ import annotations

import threading
import time
from contextlib import nullcontext
from types import SimpleNamespace

import pytest
import torch

from dynnsiha.attention import NSAConfig, native_sparse_attention
from dynnsiha.attention.stages import record_stages, stage


class Clock:
    """A host clock that goes on only when it is told to."""

    def __init__(self) -> None:
        self.seconds = 0

    def rest(self, seconds: int = 1) -> None:
        self.seconds += seconds


@pytest.fixture
def clock(monkeypatch) -> Clock:
    made = Clock()
    fake = SimpleNamespace(perf_counter=lambda: made.seconds)
    monkeypatch.setattr("dynnsiha.attention.stages.time", fake)
    return made


def test_without_a_recording_a_stage_is_nothing_at_all():
    assert stage("one") is stage("other")
    assert isinstance(stage("one"), nullcontext)
    with stage("one"):
        pass
    with record_stages("cpu") as recorder:
        pass
    assert recorder.milliseconds() == {}


def test_stages_of_one_name_add_up_in_the_order_of_their_first(clock):
    with record_stages("cpu") as recorder:
        for _ in range(2):
            with stage("first"):
                clock.rest()
            with stage("second"):
                clock.rest(2)
        clock.rest(3)  # no stage's time
    assert list(recorder.milliseconds().items()) == [("first", 2000), ("second", 4000)]


def test_a_moment_belongs_to_the_innermost_stage(clock):
    with record_stages("cpu") as recorder, stage("outer"):
        clock.rest()
        with stage("inner"):
            clock.rest(3)
            with stage("outer"):
                clock.rest()
        clock.rest()
    assert list(recorder.milliseconds().items()) == [("outer", 3000), ("inner", 3000)]


def test_a_stage_that_raises_ends(clock):
    with record_stages("cpu") as recorder:
        with pytest.raises(ValueError, match="planted"), stage("outer"), stage("inner"):
            raise ValueError("planted")
        with stage("after"):
            clock.rest()
    assert recorder.milliseconds() == {"outer": 0, "inner": 0, "after": 1000}


def test_threads_share_a_recording_and_keep_their_nesting_apart():
    def work(name: str) -> None:
        with stage(name):
            time.sleep(0.04)

    with record_stages("cpu") as recorder, stage("caller"):
        threads = [threading.Thread(target=work, args=(f"thread {i}",)) for i in range(3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    found = recorder.milliseconds()
    assert set(found) == {"caller", "thread 0", "thread 1", "thread 2"}
    assert min(found.values()) > 30


def test_one_recording_at_a_time_and_the_next_begins_empty():
    with record_stages("cpu") as outer:
        with pytest.raises(RuntimeError, match="a recording is open"), record_stages("cpu"):
            pass
        with stage("still recorded"):
            pass
    with record_stages("cpu") as later, stage("later"):
        pass
    assert list(outer.milliseconds()) == ["still recorded"]
    assert list(later.milliseconds()) == ["later"]


def operands(length: int = 300) -> list[torch.Tensor]:
    torch.manual_seed(0)
    sizes = (4, 16), (2, 16), (2, 16), (4, 3)
    made = [torch.rand(1, length, heads, width) for heads, width in sizes]
    return [x.requires_grad_() for x in made]


FORWARD = ["summaries", "prepare", "compressed", "choice", "pairs", "lists", "merge", "sliding"]
BACKWARD = ["prepare", "compressed backward", "pairs backward", "lists", "sliding backward"]


@pytest.mark.parametrize(
    ("branches", "missing"),
    [
        (("compressed", "selected", "sliding"), set()),
        (("compressed", "selected"), {"sliding", "sliding backward"}),
        (("sliding",), {"compressed", "choice", "pairs", "lists", "merge"}),
    ],
)
def test_the_blockwise_backend_has_the_stages_that_it_goes_through(branches, missing):
    config = NSAConfig(top_n=4, query_tile=8, private_blocks=1, window=64, branches=branches)
    inputs = operands()
    began = time.perf_counter()
    with record_stages("cpu") as recorder:
        o = native_sparse_attention(*inputs, config, backend="blockwise")
    whole_ms = (time.perf_counter() - began) * 1e3
    assert set(recorder.milliseconds()) == {*FORWARD, "finish"} - missing
    assert 0.5 * whole_ms < sum(recorder.milliseconds().values()) <= whole_ms
    with record_stages("cpu") as recorder:
        torch.autograd.grad(o.sum(), inputs[:3])
    gone = missing | ({"compressed backward", "pairs backward"} if len(branches) == 1 else set())
    assert set(recorder.milliseconds()) == {*BACKWARD, "finish"} - gone


def test_recording_changes_no_bit():
    config = NSAConfig.word_guided(4, 2, top_n=6)
    plain = native_sparse_attention(*operands(), config, backend="blockwise")
    with record_stages("cpu"):
        recorded = native_sparse_attention(*operands(), config, backend="blockwise")
    assert torch.equal(plain, recorded)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_stages_on_a_gpu_are_the_devices_times_in_both_passes():
    config = NSAConfig(top_n=4)
    inputs = [x.detach().cuda().requires_grad_() for x in operands(4096)]
    native_sparse_attention(*inputs, config, backend="blockwise").sum().backward()
    with record_stages("cuda") as recorder:
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in "be")
        begin.record()
        o = native_sparse_attention(*inputs, config, backend="blockwise")
        torch.autograd.grad(o.sum(), inputs[:3])  # in autograd's own thread
        end.record()
    found = recorder.milliseconds()
    assert {"compressed", "pairs", "compressed backward", "pairs backward"} <= set(found)
    assert 0 < sum(found.values()) <= 1.01 * begin.elapsed_time(end)
