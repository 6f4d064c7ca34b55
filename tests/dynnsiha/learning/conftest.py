"""Small language models, as they are and in float64, for the losses that shape their gates."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from dynnsiha import (
    DynNSIHAConfig,
    DynNSIHALanguageModel,
    NSAConfig,
    WordSegmenter,
    character_ids,
)

EXACT = NSAConfig(
    block_size=16, compress_block=8, compress_stride=4, top_n=4, local_blocks=1, window=24
)
HYBRID = replace(EXACT, compress_block=16, compress_stride=16, query_tile=4, private_blocks=1)
VARIANTS: dict[str, dict] = {
    "dynsiha": {"attention": "dynsiha"},
    "dynnsiha exact": {"nsa": EXACT},
    "dynnsiha hybrid": {"nsa": HYBRID},
    "nsa": {"attention": "nsa", "nsa": EXACT},
}


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
