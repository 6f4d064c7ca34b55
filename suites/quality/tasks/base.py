"""What a task is: batches to learn from and to be asked about, and which characters answer."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

import numpy as np
import torch
from torch import Tensor

Stream = Literal["train", "held_out"]


@dataclass(frozen=True)
class Batch:
    """Sequences, their words and what is asked of them.

    Attributes:
        char_ids, word_ids: int64 [B, T], word ids by alignment "completed".
        answers: int64 [B, T], 0 where a character does not count; else the number, from 1, of the
            answer in its sequence that it belongs to. The first column is 0: nothing comes before.
    """

    char_ids: Tensor
    word_ids: Tensor
    answers: Tensor

    @property
    def counted(self) -> Tensor:
        """The characters whose prediction counts, bool [B, T]."""
        return self.answers > 0


class Task(Protocol):
    """Batches as a pure function of stream, seed and position."""

    batch: int
    seq_len: int

    @property
    def held_out_count(self) -> int | None:
        """Held-out sequences before the first one comes again; None where they have no end."""

    @property
    def word_vocab(self) -> int:
        """Word ids in use, `WordSegmenter.num_ids`."""

    @property
    def description(self) -> str:
        """What is learned and what is held out, in some words for the row."""

    def draw(self, stream: Stream, seed: int, position: int) -> Batch:
        """Batch number ``position`` of a stream. Of ``held_out`` the seed is not looked at: all
        trainings with the same T and batch are asked the same."""


def generator(stream: Stream, seed: int, position: int) -> np.random.Generator:
    """Random numbers that depend on these three alone, and on no seed where they are held out."""
    key = [0, seed, position] if stream == "train" else [1, 0, position]
    return np.random.default_rng(key)


class TrainingBatches:
    """A task's training stream as `fit` takes it.

    Args:
        task: what is drawn.
        seed: of the stream.
        words: whether word ids are given; else every character has the id of no word.
        before: tasks that come first, each with the number of batches that are drawn of it.
    """

    def __init__(
        self,
        task: Task,
        seed: int,
        *,
        words: bool = True,
        before: Sequence[tuple[int, Task]] = (),
    ) -> None:
        self.task, self.seed, self.words, self.before = task, seed, words, tuple(before)

    def draw(self, position: int) -> tuple[Tensor, Tensor, Tensor]:
        """char_ids, word_ids and the characters that count, [B, T] each."""
        drawn = self._task_at(position).draw("train", self.seed, position)
        words = drawn.word_ids if self.words else torch.zeros_like(drawn.word_ids)
        return drawn.char_ids, words, drawn.counted

    def identity(self) -> dict[str, int]:
        """Numbers that differ where the batches would."""
        first = self.draw(0)
        checksum = 0
        for part in first:
            checksum = zlib.crc32(part.numpy().tobytes(), checksum)
        return {"checksum": checksum, "seed": self.seed, "words": int(self.words)}

    def _task_at(self, position: int) -> Task:
        for batches, task in self.before:
            if position < batches:
                return task
            position -= batches
        return self.task
