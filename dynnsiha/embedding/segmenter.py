"""One word id per character, causal or not."""

from __future__ import annotations

import re
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

Alignment = Literal["completed", "full"]
Language = Literal["space", "chinese"]

NO_WORD = 0  # before the first completed word; between words under alignment="full"
_FIRST_WORD = 1
_WORD = re.compile(r"\w+")
_HAN = "\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"
_HAN_OR_OTHER_WORD = re.compile(rf"(?P<han>[{_HAN}]+)|[^\W{_HAN}]+")
# Words that the cutter sees again with each new character: enough for it to change its mind.
_CHINESE_CONTEXT_WORDS = 4


class WordSegmenter:
    """Splits text into words and names, for each character, the word that guides it.

    A word is a run of letters, digits and underscores; whitespace and punctuation end it. With
    ``language="chinese"`` runs of Han characters are cut further by jieba.

    Ids: 0 is reserved for "no word"; then the vocabulary; then ``hash_buckets`` ids that words
    outside it share, by a hash that is the same in every process.

    Args:
        words: the vocabulary, in id order; see `build`.
        hash_buckets: ids shared by unknown words, at least 1.
        alignment: "completed" gives each character the last word that has *ended*, a word ending
            where the first character that cannot belong to it is read. The ids of a text's prefix
            are then the prefix of its ids, so a language model sees no future. "full" gives each
            character the word it is in: **it leaks that word's remaining characters** and is for
            encoders only.
        language: "space", or "chinese" (needs jieba).

    Raises:
        ValueError: a repeated word, no bucket, or an unknown alignment or language.
    """

    def __init__(
        self,
        words: Iterable[str] = (),
        *,
        hash_buckets: int = 1024,
        alignment: Alignment = "completed",
        language: Language = "space",
    ) -> None:
        if hash_buckets < 1:
            raise ValueError(f"hash_buckets={hash_buckets}: must be at least 1")
        if alignment not in ("completed", "full"):
            raise ValueError(f"alignment={alignment!r}: must be 'completed' or 'full'")
        if language not in ("space", "chinese"):
            raise ValueError(f"language={language!r}: must be 'space' or 'chinese'")
        self.words = tuple(words)
        self.hash_buckets = hash_buckets
        self.alignment: Alignment = alignment
        self.language: Language = language
        self._ids = {word: _FIRST_WORD + i for i, word in enumerate(self.words)}
        if len(self._ids) < len(self.words):
            repeated = Counter(self.words).most_common(1)[0][0]
            raise ValueError(f"words: {repeated!r} is there more than once; give each word once")

    @classmethod
    def build(
        cls,
        texts: Iterable[str],
        *,
        max_words: int = 32_768,
        hash_buckets: int = 1024,
        alignment: Alignment = "completed",
        language: Language = "space",
    ) -> WordSegmenter:
        """A segmenter whose vocabulary is the ``max_words`` most frequent words of ``texts``.

        Raises:
            TypeError: ``texts`` is one string instead of several.
            ValueError: ``max_words`` is below 0, or what the constructor refuses.
        """
        if isinstance(texts, str):
            raise TypeError("texts is one string: give a list of texts, such as [text]")
        if max_words < 0:
            raise ValueError(f"max_words={max_words}: must be at least 0")
        cut = cls(language=language)
        counts = Counter(word for text in texts for _, _, word in cut.spans(text))
        ranked = sorted(counts, key=lambda word: (-counts[word], word))
        return cls(
            ranked[:max_words], hash_buckets=hash_buckets, alignment=alignment, language=language
        )

    @property
    def num_ids(self) -> int:
        """Ids in use, and rows that a word embedding needs."""
        return _FIRST_WORD + len(self.words) + self.hash_buckets

    def word_id(self, word: str) -> int:
        """Id of one word: its own, or its bucket's."""
        known = self._ids.get(word)
        if known is not None:
            return known
        # Python's own hash() is salted per process; this one gives the same id for ever.
        bucket = zlib.crc32(word.encode("utf-8", "surrogatepass")) % self.hash_buckets
        return _FIRST_WORD + len(self.words) + bucket

    def spans(self, text: str) -> Iterator[tuple[int, int, str]]:
        """Words of a whole text in order, as (start, end, word)."""
        if self.language == "space":
            for match in _WORD.finditer(text):
                yield match.start(), match.end(), match.group()
            return
        for match in _HAN_OR_OTHER_WORD.finditer(text):
            start = match.start()
            for word in _cut_chinese(match.group()) if match["han"] else [match.group()]:
                yield start, start + len(word), word
                start += len(word)

    def completions(self, text: str) -> Iterator[tuple[int, str]]:
        """(position, word): from that character on, this is the last completed word.

        What is yielded up to a position depends on no character after it.
        """
        if self.language == "space":
            for _, end, word in self.spans(text):
                yield end, word
            return
        for match in _HAN_OR_OTHER_WORD.finditer(text):
            if match["han"]:
                yield from _chinese_completions(match.start(), match.group())
            else:
                yield match.end(), match.group()

    def read(self, run: str, char: str) -> tuple[str, str | None]:
        """What `completions` finds in text that is being written, one character at a time.

        ``run``, "" at first, is what must be known of the characters before ``char``. Returned are
        the run for the next character and, if one is completed by this one, the word. A character
        costs the same however long the text is.
        """
        kind = self._kind(char)
        before = self._kind(run[-1]) if run else None
        if kind == before == "han":
            return _read_han(run, char)
        if kind == before == "other":
            return run + char, None
        ended = _cut_chinese(run)[-1] if before == "han" else run or None
        return char if kind else "", ended

    def _kind(self, char: str) -> str | None:
        """Of the words that a character can be in: "han", "other", or None where in none."""
        match = (_WORD if self.language == "space" else _HAN_OR_OTHER_WORD).match(char)
        return None if match is None else match.lastgroup or "other"

    def segment(self, text: str) -> Tensor:
        """Word id of every character of ``text``, int64 [len(text)].

        Raises:
            ModuleNotFoundError: ``language="chinese"`` without jieba.
        """
        ids, lengths = self._runs(text)
        return torch.from_numpy(np.repeat(np.array(ids, dtype=np.int64), lengths))

    def _runs(self, text: str) -> tuple[list[int], list[int]]:
        """Runs of equal id that cover the text: ids, and how many characters each covers."""
        ids, starts = [NO_WORD], [0]
        if self.alignment == "completed":
            for position, word in self.completions(text):
                ids.append(self.word_id(word))
                starts.append(position)
        else:
            for start, end, word in self.spans(text):
                ids += [self.word_id(word), NO_WORD]
                starts += [start, end]
        starts.append(len(text))
        return ids, np.diff(starts).tolist()

    def to_dict(self) -> dict[str, Any]:
        """Everything that `from_dict` needs, in types that JSON holds."""
        return {
            "words": list(self.words),
            "hash_buckets": self.hash_buckets,
            "alignment": self.alignment,
            "language": self.language,
        }

    @classmethod
    def from_dict(cls, state: dict[str, Any]) -> WordSegmenter:
        """The segmenter that `to_dict` described."""
        return cls(**state)


def _cut_chinese(text: str) -> list[str]:
    """Words of a run of Han characters."""
    try:
        import jieba
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            "language='chinese' needs jieba: pip install jieba", name="jieba"
        ) from error
    return jieba.lcut(text)


def _chinese_completions(start: int, run: str) -> Iterator[tuple[int, str]]:
    """Completions inside a run of Han characters that begins at ``start`` of its text."""
    context = ""
    for position, char in enumerate(run, start):
        context, word = _read_han(context, char)
        if word is not None:
            yield position, word
    yield start + len(run), _cut_chinese(context)[-1]


def _read_han(context: str, char: str) -> tuple[str, str | None]:
    """The next character of a run: the context of the one after it, and a completed word.

    Cutting the whole run would leak: where a word ends depends on the characters after it. So each
    character is read with the few words before it and nothing after it. The last word of that cut
    may still grow; the one before it counts as completed.
    """
    words = _cut_chinese(context + char)
    completed = words[-2] if len(words) >= 2 else None
    return "".join(words[len(words) > _CHINESE_CONTEXT_WORDS :]), completed
