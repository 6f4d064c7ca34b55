"""Every form learns more of real text than its bigrams tell, in a few seconds."""

from __future__ import annotations

import re
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from dynnsiha import (
    DynNSIHAConfig,
    DynNSIHALanguageModel,
    HierarchicalEmbedding,
    RMSuon,
    SurpriseAwareRoutingShaping,
    WordSegmenter,
)
from dynnsiha.forms import DimensionDynSIHA, FlatDynSIHA, RecursiveDynSIHA
from dynnsiha.learning import Objective, TextWindows, bigram_loss, evaluate, fit, warmup_cosine
from dynnsiha.learning.__main__ import _SMALL_BLOCKS, library_text, main

pytestmark = pytest.mark.usefixtures("one_thread")

STEPS, WIDTH = 150, 64
OPTIONS = {"char_vocab": 128, "seq_len": 64, "batch": 16}


class _OneLayer(nn.Module):
    """A language model of a form alone: embedding, one residual, logits."""

    def __init__(self, layer: nn.Module, word_vocab: int) -> None:
        super().__init__()
        self.embedding = HierarchicalEmbedding(WIDTH, 128, word_vocab, positions="none")
        self.before, self.layer, self.after = nn.RMSNorm(WIDTH), layer, nn.RMSNorm(WIDTH)
        self.logits = nn.Linear(WIDTH, 128, bias=False)

    def forward(self, char_ids: Tensor, word_ids: Tensor) -> Tensor:
        x = self.embedding(char_ids, word_ids)
        return self.logits(self.after(x + self.layer(self.before(x))))


def _model(attention: str) -> Callable[[int], nn.Module]:
    def make(word_vocab: int) -> nn.Module:
        config = DynNSIHAConfig(
            char_vocab=128,
            word_vocab=word_vocab,
            d_model=WIDTH,
            layers=1,
            heads=2,
            attention=attention,
            nsa=_SMALL_BLOCKS,
        )
        return DynNSIHALanguageModel(config)

    return make


MODELS: dict[str, Callable[[int], nn.Module]] = {
    "dynnsiha": _model("dynnsiha"),
    "dynsiha": _model("dynsiha"),
    "nsa": _model("nsa"),
    "dimension": lambda words: _OneLayer(DimensionDynSIHA(WIDTH, 2), words),
    "flat": lambda words: _OneLayer(FlatDynSIHA(WIDTH, 2, experts=4), words),
    "recursive": lambda words: _OneLayer(RecursiveDynSIHA(WIDTH, 2, steps=2, experts=4), words),
}
SLOWER_TO_LEARN = {"dimension": 300}


@pytest.fixture(scope="module")
def text() -> str:
    return library_text(("textwrap", "shutil", "argparse", "tarfile", "typing"))


@pytest.fixture(scope="module")
def words(text) -> WordSegmenter:
    return WordSegmenter.build([text], max_words=1000, hash_buckets=64)


@pytest.mark.parametrize("name", MODELS)
def test_real_text_is_predicted_better_than_by_its_own_bigrams(name, text, words):
    """Most of the windows that are predicted were never drawn: there are too few steps."""
    torch.manual_seed(0)
    model = MODELS[name](words.num_ids)
    windows = TextWindows.of(text, words, **OPTIONS)
    steps = SLOWER_TO_LEARN.get(name, STEPS)
    schedule = warmup_cosine(steps, warmup=10)
    optimizer = RMSuon(model.parameters(), lr=2e-2)
    fit(model, windows, optimizer, steps=steps, schedule=schedule)
    fresh = TextWindows.of(text, words, **OPTIONS, seed=1)
    assert evaluate(model, fresh, batches=12) < bigram_loss(windows.char_ids) - 0.03


@pytest.mark.parametrize("name", ["dynsiha", "flat"])
def test_all_auxiliary_losses_leave_it_so(name, text, words):
    torch.manual_seed(0)
    model = MODELS[name](words.num_ids)
    windows = TextWindows.of(text, words, **OPTIONS)
    optimizer = RMSuon(model.parameters(), lr=2e-2)
    neurons = name == "dynsiha"
    objective = Objective(
        surprise_weight=0.1 * neurons,
        kl_weight=0.01 * neurons,
        sars=SurpriseAwareRoutingShaping(),
        sars_weight=0.01,
    )
    schedule = warmup_cosine(STEPS, warmup=10)
    fit(model, windows, optimizer, steps=STEPS, objective=objective, schedule=schedule)
    fresh = TextWindows.of(text, words, **OPTIONS, seed=1)
    assert evaluate(model, fresh, batches=12) < bigram_loss(windows.char_ids)


def test_the_command_trains_resumes_and_compares(tmp_path, capsys):
    small = ["--modules", "textwrap", "--d-model", "16", "--layers", "1", "--heads", "1"]
    small += ["--seq-len", "32", "--batch", "2", "--out", str(tmp_path)]
    shaping = ["--surprise", "0.1", "--kl", "0.1", "--sars", "0.1", "--fars", "0.1"]
    main([*small, *shaping, "--steps", "2"])
    capsys.readouterr()
    main([*small, *shaping, "--steps", "3", "--resume", "--optimizer", "rmsuon"])
    numbers = [float(n) for n in re.findall(r"  .*?([\d.]+)$", capsys.readouterr().out, re.M)]
    model, trained, own = numbers
    assert own <= trained
    assert model > own  # two steps teach little
