"""Where the time of a call goes: named stages, timed only while somebody records.

A backend wraps its stages::

    with stage("compressed"):
        ...

and whoever wants to know opens a recording around its calls::

    with record_stages(q.device) as recorder:
        native_sparse_attention(q, k, v, gates)
    recorder.milliseconds()  # {"summaries": 0.1, "compressed": 9.1, ...}

Without a recording `stage` costs one look at a variable and waits for nothing. A moment belongs to
the innermost open stage alone, so the stages of a call never sum up to more than the call; stages
of one name add up. One recording at a time serves all threads of the process, since autograd runs
a backward pass on a CUDA device in a thread of its own.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch

_NOTHING = nullcontext()
_opening = threading.Lock()
_recorder: StageRecorder | None = None


def stage(name: str) -> AbstractContextManager[None]:
    """A context whose time counts as that of the stage ``name``, while a recording is open."""
    recorder = _recorder
    return _NOTHING if recorder is None else recorder.stage(name)


@contextmanager
def record_stages(device: torch.device | str) -> Iterator[StageRecorder]:
    """Record the stages that work on ``device``, in every thread, until the context ends.

    On a CUDA device the times are those between events on the current stream: what a stage makes
    the device wait for the host counts as its own. Elsewhere they are the host's clock.

    Raises:
        RuntimeError: a recording is open already.
    """
    global _recorder
    recorder = StageRecorder(torch.device(device))
    with _opening:
        if _recorder is not None:
            raise RuntimeError("record_stages: a recording is open; end it before the next one")
        _recorder = recorder
    try:
        yield recorder
    finally:
        _recorder = None


class StageRecorder:
    """The stages of one recording; `record_stages` makes it."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._clock: Callable[[], Any] = self._event if device.type == "cuda" else time.perf_counter
        self._open = threading.local()
        self._spans: list[tuple[str, Any, Any]] = []  # appended to by several threads at once

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """See `stage`."""
        stack = self._stack()
        now = self._clock()
        if stack:
            outer, since = stack[-1]
            self._spans.append((outer, since, now))
        stack.append((name, now))
        try:
            yield
        finally:
            _, since = stack.pop()
            now = self._clock()
            self._spans.append((name, since, now))
            if stack:
                stack[-1] = (stack[-1][0], now)

    def milliseconds(self) -> dict[str, float]:
        """Time of each stage that has ended, in the order in which they first counted.

        Waits for the device.
        """
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        total: dict[str, float] = {}
        for name, begin, end in list(self._spans):
            total[name] = total.get(name, 0.0) + self._between_ms(begin, end)
        return total

    def _stack(self) -> list[tuple[str, Any]]:
        """The open stages of this thread, the innermost last, and since when each counts."""
        if not hasattr(self._open, "stack"):
            self._open.stack = []
        stack: list[tuple[str, Any]] = self._open.stack
        return stack

    def _event(self) -> torch.cuda.Event:
        event = torch.cuda.Event(enable_timing=True)
        event.record(torch.cuda.current_stream(self._device))
        return event

    def _between_ms(self, begin: Any, end: Any) -> float:
        if self._device.type == "cuda":
            return float(begin.elapsed_time(end))
        return float((end - begin) * 1e3)
