"""Sequences made of symbols: which characters are words, and the completed words of each place."""

from __future__ import annotations

import string

import numpy as np
import torch
from torch import Tensor

from dynnsiha.embedding import WordSegmenter

DIGITS_AND_LETTERS = string.digits + string.ascii_letters
LATIN_LETTERS = "".join(c for c in map(chr, range(0xC0, 0xFF)) if c.isalpha())
SEPARATORS = " .,:!?-+*/()<>[]"
"""Characters that are part of no word."""


def codes(text: str) -> np.ndarray:
    """Character ids of symbols below 255, int64 [len(text)]."""
    return np.array([ord(c) for c in text], dtype=np.int64)


def single_letter_word_ids(char_ids: np.ndarray, segmenter: WordSegmenter) -> Tensor:
    """Word ids [B, T] by alignment "completed" of sequences whose words have one character each.

    A word ends where the next character is read, so that character is the first to carry its id.
    """
    table = np.zeros(256, dtype=np.int64)  # 0: no word begins or ends with it
    for word in segmenter.words:
        table[ord(word)] = segmenter.word_id(word)
    completed = np.zeros_like(char_ids)
    completed[:, 1:] = table[char_ids[:, :-1]]
    return torch.from_numpy(carried_on(completed))


def carried_on(values: np.ndarray) -> np.ndarray:
    """Each row with its zeros replaced by the last value before them that is none: [B, T]."""
    places = np.where(values != 0, np.arange(values.shape[1]), 0)
    return np.take_along_axis(values, np.maximum.accumulate(places, axis=1), axis=1)


def distinct(random: np.random.Generator, rows: int, among: int, count: int) -> np.ndarray:
    """For each of ``rows``, ``count`` different numbers below ``among`` in random order."""
    return random.random((rows, among)).argsort(axis=1)[:, :count]
