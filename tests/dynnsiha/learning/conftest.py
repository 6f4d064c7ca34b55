"""Small language models, as they are and in float64, for the losses that shape their gates."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor

from dynnsiha import (
    DynNSIHAConfig,
    DynNSIHALanguageModel,
    WordSegmenter,
    character_ids,
)

from ..variants import VARIANTS


@pytest.fixture
def one_thread() -> Iterator[None]:
    """Small matrices: threads would spend their time waiting for each other."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def segmenter(library_source) -> WordSegmenter:
    return WordSegmenter.build([library_source], max_words=300, hash_buckets=64)


@pytest.fixture
def small_model(segmenter) -> Callable[..., DynNSIHALanguageModel]:
    """Language model of a variant's name; the same weights each time."""

    def make(name: str, **options) -> DynNSIHALanguageModel:
        torch.manual_seed(0)
        config = DynNSIHAConfig(
            char_vocab=128,
            word_vocab=segmenter.num_ids,
            **{"d_model": 16, "layers": 2, "heads": 2} | VARIANTS[name] | options,
        )
        return DynNSIHALanguageModel(config)

    return make


@pytest.fixture(scope="session")
def ids(library_source, segmenter) -> tuple[Tensor, Tensor]:
    """Two windows of real text, int64 [2, 80] each: several blocks, a last one that is cut off."""
    texts = [library_source[start : start + 80] for start in (2000, 4000)]
    chars = torch.stack([character_ids(text, 128) for text in texts])
    return chars, torch.stack([segmenter.segment(text) for text in texts])
