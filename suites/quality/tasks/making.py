"""From a task's name to the task."""

from __future__ import annotations

from collections.abc import Callable

from dynbench.harness.subject import Unsupported
from dynbench.suites.quality.tasks.arc import Arc
from dynbench.suites.quality.tasks.base import Task
from dynbench.suites.quality.tasks.copying import Copy
from dynbench.suites.quality.tasks.needle import Needle
from dynbench.suites.quality.tasks.recall import Recall
from dynbench.suites.quality.tasks.text import Text

_TASKS: dict[str, Callable[[int, int], Task]] = {
    "text": Text,
    "recall": Recall,
    "needle": Needle,
    "copy": Copy,
    "arc": Arc,
}


def make_task(name: str, batch: int, seq_len: int) -> Task:
    """The task of that name.

    Raises Unsupported where sequences are too short for it, and Unavailable where its data is not
    here.
    """
    try:
        return _TASKS[name](batch, seq_len)
    except ValueError as error:
        raise Unsupported(f"task {name}: {error}") from None
