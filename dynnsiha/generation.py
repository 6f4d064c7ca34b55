"""Text from a language model, one character at a time through its cache."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from dynnsiha.embedding import WordSegmenter, character_ids
from dynnsiha.embedding.segmenter import NO_WORD
from dynnsiha.sampling import Sampling

if TYPE_CHECKING:
    from dynnsiha.model import DynNSIHALanguageModel
    from dynnsiha.model_cache import ModelCache

_UNKNOWN = "\N{REPLACEMENT CHARACTER}"


@torch.inference_mode()
def stream(
    model: DynNSIHALanguageModel,
    segmenter: WordSegmenter,
    prompts: Sequence[str],
    max_new: int,
    sampling: Sampling,
    seed: int | None = None,
) -> Iterator[list[str]]:
    """The next character of every prompt, ``max_new`` times: see `DynNSIHALanguageModel.generate`.

    Raises:
        ValueError: an empty prompt, a max_new below 1, a segmenter that the model does not fit, or
            lengths that ``tile_scoring="aggregate"`` cannot take together.
    """
    _check(model, segmenter, prompts, max_new)
    device = next(model.parameters()).device
    generator = None if seed is None else torch.Generator(device).manual_seed(seed)
    vocab = model.config.char_vocab
    lengths = [len(prompt) for prompt in prompts]
    cache = model.new_cache(len(prompts), max(lengths) + max_new)
    _require_padding(cache, lengths)
    chars = _padded([character_ids(prompt, vocab) for prompt in prompts]).to(device)
    words = _padded([segmenter.segment(prompt) for prompt in prompts]).to(device)
    logits = model(chars, words, cache=cache)
    cache.truncate(lengths)  # shorter prompts were padded on the right
    last = torch.tensor(lengths, device=device) - 1
    logits = logits[torch.arange(len(prompts), device=device), last]
    readers = [_WordReader(segmenter, prompt) for prompt in prompts]
    for step in range(max_new):
        tokens = sampling.draw(logits, generator)
        new = [_character(int(token)) for token in tokens.tolist()]
        yield new
        if step + 1 < max_new:
            ids = [reader.read(char) for reader, char in zip(readers, new, strict=True)]
            word_ids = torch.tensor(ids, device=device)[:, None]
            logits = model(tokens[:, None], word_ids, cache=cache)[:, 0]


def _check(
    model: DynNSIHALanguageModel, segmenter: WordSegmenter, prompts: Sequence[str], max_new: int
) -> None:
    if not prompts or not all(prompts):
        raise ValueError("prompt: is empty; give at least one character, a newline for instance")
    if max_new < 1:
        raise ValueError(f"max_new={max_new}: must be at least 1")
    if segmenter.alignment != "completed":
        raise ValueError(
            f"segmenter: has alignment {segmenter.alignment!r}; text that is still being written "
            "needs 'completed'"
        )
    if segmenter.num_ids != model.config.word_vocab:
        raise ValueError(
            f"segmenter: has {segmenter.num_ids} ids, the model's word_vocab is "
            f"{model.config.word_vocab}; use the segmenter that the model was trained with"
        )


def _require_padding(cache: ModelCache, lengths: Sequence[int]) -> None:
    """Shorter prompts are padded, and the padding is cut off again: refuse where it cannot be."""
    longest = max(lengths)
    for length in lengths:
        if not cache.can_cut(longest, length):
            raise ValueError(
                f"prompt: has {length} characters beside one of {longest}, which"
                " tile_scoring='aggregate' cannot take together; generate from one at a time, or"
                " use tile_scoring='leader'"
            )


def _padded(rows: list[Tensor]) -> Tensor:
    """Rows of different length as one tensor, filled with 0 on the right."""
    return torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)


def _character(token: int) -> str:
    """The character of an id; code points that no text may hold become a replacement character."""
    return _UNKNOWN if 0xD800 <= token <= 0xDFFF else chr(token)


class _WordReader:
    """The word id of each new character after a text."""

    def __init__(self, segmenter: WordSegmenter, text: str) -> None:
        self._segmenter = segmenter
        self._run, self._last = "", NO_WORD
        for char in text:
            self.read(char)

    def read(self, char: str) -> int:
        """The id of the next character."""
        self._run, word = self._segmenter.read(self._run, char)
        if word is not None:
            self._last = self._segmenter.word_id(word)
        return self._last
