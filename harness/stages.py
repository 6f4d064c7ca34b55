"""Where the time of a call goes: its own stages, recorded in further calls after the samples.

Recording adds work (on a GPU two events a stage), so no sample is ever taken meanwhile. The stages
are the subject's own: the harness opens its recording, makes the call and reads the times.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from typing import Any, Protocol

from dynbench.harness.timing import Timer, quantile

_DIGITS = 6


class Recording(Protocol):
    """What a subject recorded while the context that gave this was open."""

    def milliseconds(self) -> Mapping[str, float]:
        """Time of each stage, in their order; asked for once the call is over."""


Record = Callable[[], AbstractContextManager[Recording]]


def stage_columns(
    record: Record, run: Callable[[], Any], timer: Timer, calls: int
) -> dict[str, str]:
    """The column ``stages_ms`` from ``calls`` recorded calls of ``run``: the median of each stage.

    A stage that a call has not counts as 0 there. Empty where a call has no stages at all: then
    there is no second one.
    """
    recorded: list[Mapping[str, float]] = []
    while len(recorded) < calls:
        with record() as recording:
            timer.time(run)
        found = recording.milliseconds()
        if not found:
            return {}
        recorded.append(found)
    names = dict.fromkeys(name for found in recorded for name in found)
    medians = {
        name: float(f"{quantile([found.get(name, 0.0) for found in recorded], 0.5):.{_DIGITS}g}")
        for name in names
    }
    return {"stages_ms": json.dumps(medians)}
