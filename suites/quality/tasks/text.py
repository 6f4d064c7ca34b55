"""Real text: the next character of Python's own library, with whole files held out."""

from __future__ import annotations

import functools
import sysconfig
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from dynbench.harness.subject import Unavailable
from dynbench.suites.inputs import CHAR_VOCAB
from dynbench.suites.quality.tasks.base import Batch, Stream, generator
from dynnsiha.embedding import WordSegmenter, character_ids

MAX_WORDS = 4096
HASH_BUCKETS = 512
_HELD_OUT_FILES = 10  # one in so many


@dataclass(frozen=True)
class Corpus:
    """Ids of the characters of training and held-out files, and of the words that they complete.

    Attributes:
        chars, words: int64 [N] by stream.
        segmenter: its vocabulary is that of the training files.
        name: what was read.
    """

    chars: dict[Stream, Tensor]
    words: dict[Stream, Tensor]
    segmenter: WordSegmenter
    name: str

    @classmethod
    def of(cls, texts: dict[Stream, str], name: str) -> Corpus:
        """The corpus of a training text and of a held-out one."""
        segmenter = WordSegmenter.build(
            [texts["train"]],
            max_words=MAX_WORDS,
            hash_buckets=HASH_BUCKETS,
            alignment="completed",
        )
        return cls(
            {stream: character_ids(text, CHAR_VOCAB) for stream, text in texts.items()},
            {stream: segmenter.segment(text) for stream, text in texts.items()},
            segmenter,
            name,
        )


def split_files(paths: Sequence[Path]) -> dict[Stream, list[Path]]:
    """Training and held-out files: about one in ten is held out, by a hash of its name alone."""
    parts: dict[Stream, list[Path]] = {"train": [], "held_out": []}
    for path in paths:
        held_out = zlib.crc32(path.name.encode()) % _HELD_OUT_FILES == 0
        parts["held_out" if held_out else "train"].append(path)
    return parts


@functools.cache
def library_corpus() -> Corpus:
    """The modules at the top of Python's library. Raises Unavailable where it has no sources."""
    files = split_files(sorted(Path(sysconfig.get_path("stdlib")).glob("*.py")))
    texts = {
        stream: "".join(path.read_text(encoding="utf-8", errors="replace") for path in paths)
        for stream, paths in files.items()
    }
    if not all(texts.values()):
        raise Unavailable("text: Python's library has no sources here; take another --task")
    return Corpus.of(texts, f"Python {sysconfig.get_python_version()}'s library")


class Text:
    """Windows of real text at random places; every character but the first is an answer.

    Args:
        batch, seq_len: windows and their length.
        corpus: what is read; Python's library if None.

    Raises:
        ValueError: a window longer than the training or the held-out text.
    """

    held_out_count: int | None = None  # drawn without end

    def __init__(self, batch: int, seq_len: int, corpus: Corpus | None = None) -> None:
        self.batch, self.seq_len = batch, seq_len
        self.corpus = library_corpus() if corpus is None else corpus
        shortest = min(map(len, self.corpus.chars.values()))
        if seq_len > shortest:
            raise ValueError(f"seq_len={seq_len}: the shorter text has {shortest} characters")

    @property
    def word_vocab(self) -> int:
        """See `Task`."""
        return self.corpus.segmenter.num_ids

    @property
    def description(self) -> str:
        """See `Task`."""
        train, held_out = (len(self.corpus.chars[s]) for s in ("train", "held_out"))
        return f"{self.corpus.name}, {train} characters, and {held_out} in held-out files"

    def draw(self, stream: Stream, seed: int, position: int) -> Batch:
        """See `Task`."""
        chars, words = self.corpus.chars[stream], self.corpus.words[stream]
        random = generator(stream, seed, position)
        starts = random.integers(len(chars) - self.seq_len, size=self.batch, endpoint=True)
        places = torch.from_numpy(starts)[:, None] + torch.arange(self.seq_len)
        answers = torch.from_numpy(np.arange(self.seq_len)).expand(self.batch, -1)
        return Batch(chars[places], words[places], answers.contiguous())
