"""The bigram baseline against counting by hand."""

from __future__ import annotations

import math
from collections import Counter
from itertools import pairwise

import pytest
import torch

from dynnsiha import character_ids
from dynnsiha.learning import bigram_loss


def _by_hand(text: str, counted: str, smoothing: float, vocabulary: int) -> float:
    pairs, firsts = Counter(pairwise(counted)), Counter(counted[:-1])
    total = 0.0
    for a, b in pairwise(text):
        p = (pairs[a, b] + smoothing) / (firsts[a] + smoothing * vocabulary)
        total -= math.log(p)
    return total / (len(text) - 1)


@pytest.mark.parametrize("smoothing", [0.0, 0.5])
def test_in_its_own_text_it_is_the_conditional_entropy(library_source, smoothing):
    chars = character_ids(library_source, 256)
    vocabulary = int(chars.max()) + 1
    expected = _by_hand(library_source, library_source, smoothing, vocabulary)
    assert bigram_loss(chars, smoothing=smoothing) == pytest.approx(expected, rel=1e-9)


def test_counted_in_another_text(library_source):
    half = len(library_source) // 2
    chars = character_ids(library_source, 256)
    expected = _by_hand(library_source[half:], library_source[:half], 0.1, int(chars.max()) + 1)
    value = bigram_loss(chars[half:], chars[:half], smoothing=0.1)
    assert value == pytest.approx(expected, rel=1e-9)
    assert value > bigram_loss(chars[half:])


def test_a_certain_text_and_an_impossible_one():
    alternating = torch.tensor([0, 1] * 5)
    assert bigram_loss(alternating) == 0
    assert bigram_loss(torch.tensor([0, 0]), alternating) == math.inf


def test_bad_arguments_name_the_fix():
    with pytest.raises(ValueError, match="a pair needs at least 2 characters"):
        bigram_loss(torch.tensor([1]))
    with pytest.raises(ValueError, match="smoothing=-1: must be at least 0"):
        bigram_loss(torch.tensor([1, 2]), smoothing=-1)
