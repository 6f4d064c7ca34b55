"""Copy: a text of random letters, and the same again."""

from __future__ import annotations

import string

import numpy as np
import torch

from dynbench.suites.quality.tasks.base import Batch, Stream, generator
from dynbench.suites.quality.tasks.symbols import codes
from dynnsiha.embedding import WordSegmenter

SEPARATOR = "|"
_LEAST_TOKENS = 8


class Copy:
    """Random letters, ``|``, the same letters; each letter of the second half is an answer.

    The letters are one long word, so that words guide to nothing here. An even length leaves one
    separator at the end, which does not count. Guessing is right once in 26 times.

    Args:
        batch, seq_len: sequences and their length, at least 8.

    Raises:
        ValueError: a shorter sequence.
    """

    held_out_count: int | None = None  # drawn without end

    def __init__(self, batch: int, seq_len: int) -> None:
        if seq_len < _LEAST_TOKENS:
            raise ValueError(f"seq_len={seq_len}: copy needs at least {_LEAST_TOKENS}")
        self.batch, self.seq_len = batch, seq_len
        self.letters = (seq_len - 1) // 2
        self.segmenter = WordSegmenter(hash_buckets=64, alignment="completed")

    @property
    def word_vocab(self) -> int:
        """See `Task`."""
        return self.segmenter.num_ids

    @property
    def description(self) -> str:
        """See `Task`."""
        return f"copy of {self.letters} letters, held-out sequences"

    def draw(self, stream: Stream, seed: int, position: int) -> Batch:
        """See `Task`."""
        random = generator(stream, seed, position)
        letters = random.choice(codes(string.ascii_lowercase), size=(self.batch, self.letters))
        ids = np.full((self.batch, self.seq_len), ord(SEPARATOR), dtype=np.int64)
        second = self.letters + 1
        ids[:, : self.letters] = letters
        ids[:, second : second + self.letters] = letters
        answers = np.zeros_like(ids)
        answers[:, second : second + self.letters] = np.arange(1, self.letters + 1)
        texts = ["".join(map(chr, row)) for row in ids.tolist()]
        words = torch.stack([self.segmenter.segment(text) for text in texts])
        return Batch(torch.from_numpy(ids), words, torch.from_numpy(answers))
