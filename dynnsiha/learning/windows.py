"""Windows of a text, drawn in an order that depends on a seed and a position alone."""

from __future__ import annotations

import zlib

import numpy as np
import torch
from torch import Tensor

from dynnsiha.embedding import WordSegmenter, character_ids


class TextWindows:
    """Batches of windows of one text, each drawn at random.

    Batch number n is a function of the seed and n: whoever knows how many batches were drawn can
    go on exactly where it stopped.

    Args:
        char_ids: ids of the text's characters, int64 [N].
        word_ids: their word ids, int64 [N].
        seq_len: characters in a window, at least 2 and at most N.
        batch: windows in a batch.
        seed: of the order.

    Raises:
        ValueError: ids of different shapes, or a number out of range.
    """

    def __init__(
        self, char_ids: Tensor, word_ids: Tensor, *, seq_len: int, batch: int, seed: int = 0
    ) -> None:
        if char_ids.dim() != 1 or char_ids.shape != word_ids.shape:
            raise ValueError(
                f"char_ids {list(char_ids.shape)} and word_ids {list(word_ids.shape)}:"
                " give one id a character, [N] each"
            )
        if not 2 <= seq_len <= len(char_ids):
            raise ValueError(
                f"seq_len={seq_len}: must be at least 2 and at most the text's {len(char_ids)}"
            )
        if batch < 1:
            raise ValueError(f"batch={batch}: must be at least 1")
        if seed < 0:
            raise ValueError(f"seed={seed}: must be at least 0")
        self.char_ids, self.word_ids = char_ids, word_ids
        self.seq_len, self.batch, self.seed = seq_len, batch, seed

    @classmethod
    def of(
        cls,
        text: str,
        segmenter: WordSegmenter,
        *,
        char_vocab: int,
        seq_len: int,
        batch: int,
        seed: int = 0,
    ) -> TextWindows:
        """Windows of ``text``, its ids made by `character_ids` and ``segmenter``."""
        chars, words = character_ids(text, char_vocab), segmenter.segment(text)
        return cls(chars, words, seq_len=seq_len, batch=batch, seed=seed)

    def draw(self, position: int) -> tuple[Tensor, Tensor]:
        """Batch number ``position``: char_ids and word_ids, int64 [batch, seq_len] each."""
        generator = np.random.default_rng([self.seed, position])
        last = len(self.char_ids) - self.seq_len
        starts = torch.from_numpy(generator.integers(last, size=self.batch, endpoint=True))
        places = starts[:, None] + torch.arange(self.seq_len)
        return self.char_ids[places], self.word_ids[places]

    def identity(self) -> dict[str, int]:
        """Numbers that differ where the batches would: text, window, batch and seed."""
        checksum = zlib.crc32(self.char_ids.numpy().tobytes())
        return {
            "characters": len(self.char_ids),
            "checksum": zlib.crc32(self.word_ids.numpy().tobytes(), checksum),
            "seq_len": self.seq_len,
            "batch": self.batch,
            "seed": self.seed,
        }
