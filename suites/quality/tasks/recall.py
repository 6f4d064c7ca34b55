"""Key-value recall: pairs early, their keys again late, and the values are asked for."""

from __future__ import annotations

import numpy as np
import torch

from dynbench.suites.quality.tasks.base import Batch, Stream, generator
from dynbench.suites.quality.tasks.symbols import (
    DIGITS_AND_LETTERS,
    LATIN_LETTERS,
    SEPARATORS,
    codes,
    distinct,
    single_letter_word_ids,
)
from dynnsiha.embedding import WordSegmenter

MOST_PAIRS = 24
_PAIR = 4  # "k=v;"
_LEAST_TOKENS = 16  # of a sequence, a pair


class Recall:
    """Pairs ``k=v;`` among noise in the first three quarters, each asked for once in the last.

    A sequence has T / 16 pairs, 24 at most, with different keys; places, keys, values and noise are
    random. Of the questions ``k=v;`` only v counts, and each is an answer of its own. Guessing is
    right once in 62 times.

    Args:
        batch, seq_len: sequences and their length, at least 16.

    Raises:
        ValueError: a sequence too short for one pair.
    """

    held_out_count: int | None = None  # drawn without end

    def __init__(self, batch: int, seq_len: int) -> None:
        if seq_len < _LEAST_TOKENS:
            raise ValueError(f"seq_len={seq_len}: recall needs at least {_LEAST_TOKENS}")
        self.batch, self.seq_len = batch, seq_len
        self.pairs = min(MOST_PAIRS, seq_len // _LEAST_TOKENS)
        words = (*LATIN_LETTERS, *DIGITS_AND_LETTERS)
        self.segmenter = WordSegmenter(words, hash_buckets=1, alignment="completed")

    @property
    def word_vocab(self) -> int:
        """See `Task`."""
        return self.segmenter.num_ids

    @property
    def description(self) -> str:
        """See `Task`."""
        return f"recall of {self.pairs} pairs, held-out sequences"

    def draw(self, stream: Stream, seed: int, position: int) -> Batch:
        """See `Task`."""
        random = generator(stream, seed, position)
        rows = self.batch
        ids = random.choice(codes(SEPARATORS), size=(rows, self.seq_len))
        keys = codes(LATIN_LETTERS)[distinct(random, rows, len(LATIN_LETTERS), self.pairs)]
        values = random.choice(codes(DIGITS_AND_LETTERS), size=(rows, self.pairs))
        asked_from = self.seq_len - self.seq_len // 4
        stored = distinct(random, rows, asked_from // _PAIR, self.pairs) * _PAIR
        free = (self.seq_len - asked_from) // _PAIR
        asked = asked_from + distinct(random, rows, free, self.pairs) * _PAIR
        order = distinct(random, rows, self.pairs, self.pairs)
        _write(ids, stored, keys, values)
        for_keys, for_values = (np.take_along_axis(x, order, axis=1) for x in (keys, values))
        _write(ids, asked, for_keys, for_values)
        answers = np.zeros_like(ids)
        np.put_along_axis(answers, asked + 2, np.arange(1, self.pairs + 1)[None], axis=1)
        words = single_letter_word_ids(ids, self.segmenter)
        return Batch(torch.from_numpy(ids), words, torch.from_numpy(answers))


def _write(ids: np.ndarray, places: np.ndarray, keys: np.ndarray, values: np.ndarray) -> None:
    """Put ``k=v;`` at each of the places [B, P]."""
    parts = (keys, np.full_like(keys, ord("=")), values, np.full_like(keys, ord(";")))
    for offset, part in enumerate(parts):
        np.put_along_axis(ids, places + offset, part, axis=1)
