"""One needle in a haystack, at several depths, asked for at the very end."""

from __future__ import annotations

import itertools

import numpy as np
import torch
from torch import Tensor

from dynbench.suites.quality.tasks.base import Batch, Stream, generator
from dynbench.suites.quality.tasks.symbols import carried_on, codes
from dynnsiha.attention.config import NSAConfig
from dynnsiha.embedding import WordSegmenter

MARK = "X"
VALUES = "0123456789"
DEPTHS = 4
_SLOT = 5  # a word of four letters and a space; or "X=v; "
_WORDS = 256
_QUESTION = 3  # "X=v"
_LEAST_TOKENS = 64


class Needle:
    """``X=v; `` among words of four letters; the last characters are ``X=v``, and that v counts.

    The needle begins between 1/8 and 5/8 of the sequence, in four depths that are equally frequent
    (batch rows take turns), so that more than a third of the sequence lies between it and the
    question. Guessing is right once in 10 times.

    Args:
        batch, seq_len: sequences and their length, at least 64.

    Raises:
        ValueError: a shorter sequence.
    """

    held_out_count: int | None = None  # drawn without end

    def __init__(self, batch: int, seq_len: int) -> None:
        if seq_len < _LEAST_TOKENS:
            raise ValueError(f"seq_len={seq_len}: needle needs at least {_LEAST_TOKENS}")
        self.batch, self.seq_len = batch, seq_len
        words = ["".join(w) for w in itertools.product("bdgk", "aeio", "lmnr", "aeio")]
        self.haystack = words[:_WORDS]
        known = (*self.haystack, MARK, *VALUES)
        self.segmenter = WordSegmenter(known, hash_buckets=1, alignment="completed")
        slots = (seq_len - _QUESTION) // _SLOT
        self.slots = slots
        self.first, self.end = max(1, slots // 8), slots * 5 // 8

    @property
    def word_vocab(self) -> int:
        """See `Task`."""
        return self.segmenter.num_ids

    @property
    def description(self) -> str:
        """See `Task`."""
        return f"needle at {DEPTHS} depths, {self.distance} tokens away or more, held-out sequences"

    @property
    def start(self) -> int:
        """Token at which the earliest needle begins."""
        return self.first * _SLOT

    @property
    def distance(self) -> int:
        """Fewest tokens from the value of a needle to the place where it is predicted."""
        latest_value = (self.end - 1) * _SLOT + 2
        return self.seq_len - 2 - latest_value

    @property
    def told_until(self) -> int:
        """Last token that tells a needle's value: as the last completed word, until the next is."""
        return self.end * _SLOT + _SLOT - 2

    def draw(self, stream: Stream, seed: int, position: int) -> Batch:
        """See `Task`."""
        random = generator(stream, seed, position)
        rows = np.arange(self.batch)
        chosen = random.integers(len(self.haystack), size=(self.batch, self.slots))
        table = np.array([[ord(c) for c in f"{word} "] for word in self.haystack])
        values = random.integers(len(VALUES), size=self.batch)
        places = self._places(random, rows + position * self.batch)
        ids = np.full((self.batch, self.seq_len), ord(" "), dtype=np.int64)
        ids[:, : self.slots * _SLOT] = table[chosen].reshape(self.batch, -1)
        needles = np.tile(codes(f"{MARK}=?; "), (self.batch, 1))
        needles[:, 2] = codes(VALUES)[values]
        ids[rows[:, None], places[:, None] * _SLOT + np.arange(_SLOT)] = needles
        ids[:, -_QUESTION:] = needles[:, :_QUESTION]
        answers = np.zeros_like(ids)
        answers[:, -1] = 1
        words = self._word_ids(chosen, places, values)
        return Batch(torch.from_numpy(ids), words, torch.from_numpy(answers))

    def _places(self, random: np.random.Generator, numbers: np.ndarray) -> np.ndarray:
        """Slots of the needles: sequence number n takes depth n modulo DEPTHS."""
        edges = np.linspace(self.first, self.end, DEPTHS + 1).astype(np.int64)
        low, high = edges[numbers % DEPTHS], edges[numbers % DEPTHS + 1]
        return random.integers(low, np.maximum(high, low + 1))

    def _word_ids(self, chosen: np.ndarray, places: np.ndarray, values: np.ndarray) -> Tensor:
        """Word ids [B, T] by alignment "completed", from what was put where."""
        of_word = np.array([self.segmenter.word_id(word) for word in self.haystack])
        of_value = np.array([self.segmenter.word_id(value) for value in VALUES])
        completed = np.zeros((self.batch, self.slots, _SLOT), dtype=np.int64)
        completed[:, :, _SLOT - 1] = of_word[chosen]
        rows = np.arange(self.batch)
        completed[rows, places] = 0
        completed[rows, places, 1] = self.segmenter.word_id(MARK)
        completed[rows, places, 3] = of_value[values]
        ids = np.zeros((self.batch, self.seq_len), dtype=np.int64)
        ids[:, : self.slots * _SLOT] = completed.reshape(self.batch, -1)
        ids[:, -2] = self.segmenter.word_id(MARK)
        return torch.from_numpy(carried_on(ids))


def reach_problem(needle: Needle, layers: int, config: NSAConfig | None) -> str:
    """Why the needle would be found without choosing its block; empty where it would not.

    Windows and forced blocks pass information on from layer to layer, so what they reach grows with
    them.
    """
    if config is None:
        return ""
    fix = "take a longer --seq, or a smaller --window or --block-size"
    reached = layers * config.window if "sliding" in config.branches else 0
    if reached >= needle.distance:
        return (
            f"needle: {layers} layers of window {config.window} reach {reached} tokens back, it "
            f"lies {needle.distance} away at T={needle.seq_len}: {fix}"
        )
    forced, local = (n * config.block_size for n in (config.init_blocks, config.local_blocks))
    selects = "selected" in config.branches
    if selects and (forced > needle.start or local >= needle.distance):
        return (
            f"needle: forced blocks of {config.block_size} cover places of it at "
            f"T={needle.seq_len}: {fix}"
        )
    earliest = passed_on_from(needle.seq_len - 2, layers, config)
    if earliest <= needle.told_until:
        return (
            f"needle: {layers} layers pass on tokens from {earliest} by windows and forced blocks, "
            f"its value is told up to {needle.told_until} at T={needle.seq_len}: {fix}, or fewer "
            "layers"
        )
    return ""


def passed_on_from(place: int, layers: int, config: NSAConfig) -> int:
    """The earliest token from which windows and newest blocks pass something on to ``place``.

    Each layer sees without a choice from where its window or the first of its newest blocks begins,
    whichever is farther. The first blocks lead nowhere but to themselves.
    """
    for _ in range(layers):
        begins = [place]
        if "sliding" in config.branches:
            begins.append(place - config.window + 1)
        if "selected" in config.branches:
            block = place // config.block_size
            begins.append((block - config.local_blocks + 1) * config.block_size)
        place = max(0, min(begins))
    return place
