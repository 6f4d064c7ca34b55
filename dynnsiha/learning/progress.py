"""A line on the terminal that says how far training is."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager


@contextmanager
def progress_bar(
    total: int, done: int = 0, *, shown: bool | None = None
) -> Iterator[Callable[[int, float], None]]:
    """Give a function (step, loss) that moves a bar with the loss and the time left.

    Args:
        total: steps at the end.
        done: steps already taken.
        shown: draw it on standard error; None draws it where that is a terminal.
    """
    if not (sys.stderr.isatty() if shown is None else shown):
        yield lambda step, loss: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
    from rich.progress import TimeRemainingColumn as TimeLeft

    columns = (
        TextColumn("step"),
        MofNCompleteColumn(),
        BarColumn(),
        TextColumn("loss {task.fields[loss]}"),
        TimeLeft(),
    )
    with Progress(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task("", total=total, completed=done, loss="")

        def move(step: int, loss: float) -> None:
            bar.update(task, completed=step, loss=f"{loss:.3f}")

        yield move
