"""Every form learns more of real text than its bigrams tell, in a few seconds."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch

from dynnsiha import (
    DynNSIHAConfig,
    DynNSIHALanguageModel,
    RMSuon,
    SurpriseAwareRoutingShaping,
    WordSegmenter,
)
from dynnsiha.learning import (
    Objective,
    TextWindows,
    bigram_loss,
    evaluate,
    fit,
    read_log,
    warmup_cosine,
)
from dynnsiha.learning.__main__ import _SMALL_BLOCKS, library_text, main

pytestmark = pytest.mark.usefixtures("one_thread")

STEPS = 150
OPTIONS = {"char_vocab": 128, "seq_len": 64, "batch": 16}
FORMS: dict[str, dict[str, Any]] = {
    "dynnsiha": {},
    "dynsiha": {"attention": "dynsiha"},
    "nsa": {"attention": "nsa"},
    "dimension": {"attention": "dimension"},
    "moie": {"attention": "dynsiha", "feed_forward": "moie"},
    "deep embed": {"attention": "dynsiha", "feed_forward": "deep_embed"},
    "flat": {"form": "flat", "attention": "dynsiha", "experts": 4},
    "recursive": {"form": "recursive", "experts": 4, "layers": 2},
}
SLOWER_TO_LEARN = {"dimension": 300}


def _model(name: str, word_vocab: int) -> DynNSIHALanguageModel:
    options = {"d_model": 64, "layers": 1, "heads": 2, "nsa": _SMALL_BLOCKS} | FORMS[name]
    torch.manual_seed(0)
    return DynNSIHALanguageModel(DynNSIHAConfig(128, word_vocab, **options))


@pytest.fixture(scope="module")
def text() -> str:
    return library_text(("textwrap", "shutil", "argparse", "tarfile", "typing"))


@pytest.fixture(scope="module")
def words(text) -> WordSegmenter:
    return WordSegmenter.build([text], max_words=1000, hash_buckets=64)


@pytest.mark.parametrize("name", FORMS)
def test_real_text_is_predicted_better_than_by_its_own_bigrams(name, text, words):
    """Most of the windows that are predicted were never drawn: there are too few steps."""
    model = _model(name, words.num_ids)
    windows = TextWindows.of(text, words, **OPTIONS)
    steps = SLOWER_TO_LEARN.get(name, STEPS)
    schedule = warmup_cosine(steps, warmup=10)
    optimizer = RMSuon(model.parameters(), lr=2e-2)
    fit(model, windows, optimizer, steps=steps, schedule=schedule)
    fresh = TextWindows.of(text, words, **OPTIONS, seed=1)
    assert evaluate(model, fresh, batches=12) < bigram_loss(windows.char_ids) - 0.03


@pytest.mark.parametrize("name", ["dynsiha", "flat"])
def test_all_auxiliary_losses_leave_it_so(name, text, words):
    model = _model(name, words.num_ids)
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


SMALL = ["--modules", "textwrap", "--d-model", "16", "--layers", "1", "--heads", "1"]
SMALL += ["--seq-len", "32", "--batch", "2"]


def test_the_command_trains_resumes_and_compares(tmp_path, capsys):
    small = [*SMALL, "--out", str(tmp_path)]
    shaping = ["--surprise", "0.1", "--kl", "0.1", "--sars", "0.1", "--fars", "0.1"]
    main([*small, *shaping, "--steps", "2"])
    capsys.readouterr()
    main([*small, *shaping, "--steps", "3", "--resume", "--optimizer", "rmsuon"])
    numbers = [float(n) for n in re.findall(r"  .*?([\d.]+)$", capsys.readouterr().out, re.M)]
    model, trained, own = numbers
    assert own <= trained
    assert model > own  # two steps teach little


@pytest.mark.parametrize(
    ("arguments", "layers"),
    {
        "--form flat --experts 4 --sars 0.1 --fars 0.1": {
            "experts.blocks.0.heads": 4,
            "experts.blocks.0.mlp": 4,
        },
        "--form recursive --attention dynsiha --experts 3 --active-experts 1": {
            "experts.block.heads": 3,
            "experts.block.mlp": 3,
        },
        "--attention dimension --surprise 0.1": {"blocks.0.attention.qkv.k": 16},
        "--attention nsa --feed-forward moie --kl 0.1": {"blocks.0.feed_forward.inner": 64},
        "--attention nsa --alignment 0.1": {},
        "--attention dense --feed-forward deep_embed": {},
    }.items(),
)
def test_the_command_trains_every_form(arguments, layers, tmp_path, capsys):
    main([*SMALL, *arguments.split(), "--steps", "1", "--out", str(tmp_path)])
    assert "model " in capsys.readouterr().out
    neurons = read_log(tmp_path).set_index("layer").neurons
    assert {name: neurons[name] for name in layers} == layers


@pytest.mark.parametrize(
    ("arguments", "message"),
    {
        "--form spiral": "argument --form: invalid choice: 'spiral'",
        "--form flat --attention nsa": "attention='nsa': form='flat' takes 'dynnsiha' or",
        "--form flat --experts 2 --active-experts 3": "active_experts=3: must be from 1 to",
        "--attention dense --alignment 1": "alignment_weight=1: the model selects no blocks",
        "--attention nsa --surprise 1": "calls has no routed neurons: record a model that has",
        "--heads x": "argument --heads: invalid int value: 'x'",
        "--seq-len 0": "seq_len=0: must be at least 2",
        "--batch 0": "batch=0: must be at least 1",
        "--kl -1": "kl_weight=-1.0: must be at least 0",
        "--modules nothing": "No such file or directory: ",
        "--device tpu": "argument --device: 'tpu' is not here (",
        "--steps 0": "steps=0",
        "--out /proc/x": "No such file or directory: '/proc/x'",
    }.items(),
)
def test_parts_that_do_not_go_together_get_one_line(arguments, message, capsys):
    with pytest.raises(SystemExit) as ended:
        main([*SMALL, *arguments.split()])
    assert ended.value.code == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.startswith("python -m dynnsiha.learning: ")
    assert error.count("\n") == 1
