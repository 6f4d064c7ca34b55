"""Real text as the ids that a language model reads."""

from __future__ import annotations

import functools
from dataclasses import dataclass

import torch
from torch import Tensor

from dynbench.harness.subject import Unavailable
from dynbench.suites.inputs import source_text
from dynbench.suites.spec import Spec
from dynbench.suites.vocabulary import CHAR_VOCAB, HASH_BUCKETS, MAX_WORDS, WORD_VOCAB
from dynnsiha.embedding import WordSegmenter, character_ids

_VOCABULARY_CHARACTERS = 2**21


@dataclass(frozen=True)
class TextIds:
    """Ids of the same characters, int64 [B, T] on the case's device."""

    chars: Tensor
    words: Tensor

    def part(self, tokens: slice) -> TextIds:
        """These tokens of every sequence."""
        return TextIds(self.chars[:, tokens], self.words[:, tokens])


def text_ids(spec: Spec, tokens: int) -> TextIds:
    """A batch of ``tokens`` characters of real text each, one sequence after another.

    Raises Unavailable where Python came without its sources.
    """
    text = source_text(spec.batch * tokens, spec.seed)
    rows = [text[i * tokens : (i + 1) * tokens] for i in range(spec.batch)]
    segmenter = _segmenter()
    chars = torch.stack([character_ids(row, CHAR_VOCAB) for row in rows])
    words = torch.stack([segmenter.segment(row) for row in rows])
    return TextIds(chars.to(spec.device), words.to(spec.device))


@functools.cache
def _segmenter() -> WordSegmenter:
    """The words of one fixed piece of text: the same ids whatever the case's length and seed."""
    segmenter = WordSegmenter.build(
        [source_text(_VOCABULARY_CHARACTERS)], max_words=MAX_WORDS, hash_buckets=HASH_BUCKETS
    )
    if segmenter.num_ids != WORD_VOCAB:
        raise Unavailable(
            f"Python's sources here have {len(segmenter.words)} words, {MAX_WORDS} are needed:"
            " use an interpreter that came with its whole library"
        )
    return segmenter
