"""The language model on real text: it trains, and it never sees the future."""

from __future__ import annotations

import math
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor

from dynnsiha import (
    DynNSIHAConfig,
    DynNSIHALanguageModel,
    WordSegmenter,
    character_ids,
)

from .variants import VARIANTS, every_variant, of_experts

SEQ_LEN = 200


@pytest.fixture(scope="module")
def text(library_source) -> str:
    return library_source[2000 : 2000 + SEQ_LEN]


@pytest.fixture(scope="module")
def segmenter(library_source) -> WordSegmenter:
    return WordSegmenter.build([library_source], max_words=300, hash_buckets=64)


def _model(name: str, segmenter: WordSegmenter, **options) -> DynNSIHALanguageModel:
    torch.manual_seed(0)
    config = DynNSIHAConfig(
        char_vocab=256,
        word_vocab=segmenter.num_ids,
        **{"d_model": 32, "layers": 2, "heads": 2} | VARIANTS[name] | options,
    )
    return DynNSIHALanguageModel(config)


def _ids(text: str, segmenter: WordSegmenter) -> tuple[Tensor, Tensor]:
    return character_ids(text, 256)[None], segmenter.segment(text)[None]


@every_variant
def test_no_output_depends_on_a_later_character(name, text, segmenter):
    """To the last bit; with experts up to float64's rounding."""
    model = _model(name, segmenter)
    if of_experts(name):
        model = model.double()
    with torch.no_grad():
        before = model(*_ids(text, segmenter))
        for position in (1, 16, 47, 48, 97, 150, SEQ_LEN - 1):
            for tail in ("~" + text[position + 1 :], " (x) "[position % 5] * (SEQ_LEN - position)):
                if tail[0] == text[position]:
                    continue
                after = model(*_ids(text[:position] + tail, segmenter))
                change = (before - after).abs()
                assert float(change[:, :position].max()) <= (1e-12 if of_experts(name) else 0)
                assert float(change[:, position].max()) > 1e-6


@every_variant
def test_full_alignment_fails_that_check(name, text, segmenter):
    leaking = WordSegmenter.from_dict(segmenter.to_dict() | {"alignment": "full"})
    word = re.search(r"\w{4,}", text[40:])
    position = 40 + word.end() - 1
    model = _model(name, segmenter)
    with torch.no_grad():
        before = model(*_ids(text, leaking))
        after = model(*_ids(text[:position] + "~" + text[position + 1 :], leaking))
    assert not torch.equal(before[:, :position], after[:, :position])


@every_variant
@torch.no_grad()
def test_words_reach_the_output_by_their_embedding_alone(name, text, segmenter):
    model = _model(name, segmenter)
    chars, words = _ids(text, segmenter)
    none = torch.zeros_like(words)
    assert not torch.allclose(model(chars, words), model(chars, none))
    torch.nn.init.zeros_(model.embedding.word_embed.weight)
    assert torch.equal(model(chars, words), model(chars, none))


@torch.no_grad()
def test_the_key_of_a_character_carries_its_word(text, segmenter):
    """Nothing but the key and what is made beside it: other tokens' keys stay as they are."""
    model = _model("dynnsiha exact", segmenter)
    chars, words = _ids(text, segmenter)
    other = words.clone()
    other[0, 50] = (words[0, 50] + 1) % segmenter.num_ids
    layer = model.blocks[0].attention
    keys = []
    for ids in (words, other):
        made = layer.qkv(model.blocks[0].attention_norm(model.embedding(chars, ids)))
        keys.append(layer.layout.split(made)[1])
    changed = (keys[0] != keys[1]).flatten(2).any(-1)
    assert changed.nonzero().tolist() == [[0, 50]]


@every_variant
def test_loss_reaches_every_parameter(name, text, segmenter):
    model = _model(name, segmenter)
    loss = model.loss(*_ids(text, segmenter))
    assert float(loss.detach()) == pytest.approx(math.log(256), abs=0.6)
    loss.backward()
    for parameter_name, parameter in model.named_parameters():
        assert parameter.grad is not None, parameter_name
        assert parameter.grad.isfinite().all(), parameter_name
        assert parameter.grad.abs().sum() > 0, parameter_name


def test_loss_is_the_mean_surprise_of_the_next_character(text, segmenter):
    model = _model("dynsiha", segmenter)
    chars, words = _ids(text[:9], segmenter)
    logits = model(chars, words)[0].detach().double()
    surprise = [float(torch.logsumexp(logits[t], 0) - logits[t, chars[0, t + 1]]) for t in range(8)]
    loss = float(model.loss(chars, words).detach())
    assert loss == pytest.approx(sum(surprise) / 8, rel=1e-5)
    with pytest.raises(ValueError, match="seq_len=1: a next character needs at least 2"):
        model.loss(chars[:, :1], words[:, :1])


@every_variant
def test_training_lowers_the_loss(name, text, segmenter):
    model = _model(name, segmenter)
    ids = _ids(text, segmenter)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    losses = []
    for _ in range(20):
        loss = model.loss(*ids)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.6 * losses[0]


@every_variant
def test_activation_checkpointing_repeats_the_gradients(name, text, segmenter):
    gradients = []
    for recompute in (False, True):
        model = _model(name, segmenter, activation_checkpointing=recompute)
        loss = model.loss(*_ids(text, segmenter))
        gradients.append(torch.autograd.grad(loss, list(model.parameters())))
    assert all(torch.equal(*pair) for pair in zip(*gradients, strict=True))


def test_activation_checkpointing_keeps_fewer_activations(text, segmenter):
    kept = []
    for recompute in (False, True):
        model = _model("dynsiha", segmenter, activation_checkpointing=recompute)
        count = 0

        def pack(tensor: Tensor) -> Tensor:
            nonlocal count
            count += tensor.numel()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            model.loss(*_ids(text, segmenter))
        kept.append(count)
    assert kept[1] < kept[0] / 2


@pytest.mark.parametrize("name", ["flat", "recursive sparse"])
def test_activation_checkpointing_computes_one_block_of_experts_at_a_time(name, text, segmenter):
    """Else the backward pass would hold the activations of all of them, as without it."""
    model = _model(name, segmenter, activation_checkpointing=True)
    events = []

    def report(block, args):
        events.append("computed")
        if len(events) <= steps:  # in the forward pass, not when the backward one repeats it
            args[0].register_hook(lambda grad: events.append("done"))

    steps = len(model.experts.sequence)
    for block in set(model.experts.sequence):
        block.register_forward_pre_hook(report)
    loss = model.loss(*_ids(text, segmenter))
    assert events == ["computed"] * steps
    assert steps > 1
    loss.backward()
    assert events[steps:] == ["computed", "done"] * steps


@every_variant
def test_bfloat16_autocast_trains(name, text, segmenter):
    model = _model(name, segmenter)
    ids = _ids(text, segmenter)
    with torch.autocast("cpu", torch.bfloat16):
        loss = model.loss(*ids)
    loss.backward()
    assert all(bool(p.grad.isfinite().all()) for p in model.parameters())
    assert float(loss.detach()) == pytest.approx(float(model.loss(*ids).detach()), abs=0.1)


@every_variant
def test_float32_follows_float64(name, text, segmenter):
    model = _model(name, segmenter)
    ids = _ids(text, segmenter)
    single = model(*ids)
    torch.testing.assert_close(single.double(), model.double()(*ids), rtol=1e-3, atol=1e-3)


@every_variant
def test_state_dict_round_trip(name, text, segmenter):
    source, target = _model(name, segmenter), _model(name, segmenter)
    torch.nn.init.normal_(source.logits.weight)
    target.load_state_dict(source.state_dict())
    ids = _ids(text, segmenter)
    assert torch.equal(source(*ids), target(*ids))


@every_variant
def test_routing_of_every_block(name, text, segmenter):
    model = _model(name, segmenter)
    ids = _ids(text, segmenter)
    logits, routings = model(*ids, return_routing=True)
    assert torch.equal(logits, model(*ids))
    dense = model.config.attention in ("dynsiha", "dense", "dimension")
    if of_experts(name):
        (routing,) = routings
        assert len(routing.blocks) == model.config.layers
        for block in routing.blocks:
            assert (block.heads.attention is None) is dense
            assert block.heads.experts.indices.shape == block.mlp.indices.shape == (1, SEQ_LEN, 2)
        return
    assert len(routings) == 2
    for routing in routings:
        assert (routing.qkv is None) is (model.config.attention in ("nsa", "dense"))
        assert (routing.attention is None) is dense


def test_texts_of_a_batch_do_not_mix(text, segmenter):
    model = _model("dynnsiha hybrid", segmenter).double()
    first, second = _ids(text, segmenter), _ids(text[::-1], segmenter)
    together = model(*(torch.cat(pair) for pair in zip(first, second, strict=True)))
    torch.testing.assert_close(together[:1], model(*first))
    torch.testing.assert_close(together[1:], model(*second))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"attention": "flash"}, r"attention='flash': must be one of"),
        ({"layers": 0}, r"layers=0: must be at least 1"),
        ({"feed_forward_width": -1}, r"feed_forward_width=-1: must be at least 1"),
        ({"compression": "mena"}, r"compression='mena': must be one of"),
        ({"compression": "conv", "attention": "dense"}, r"compression='conv': only attention"),
        ({"compression": "conv", "form": "flat"}, r"compression='conv': only attention"),
        ({"synthesis": "keys"}, r"synthesis='keys': must be one of"),
        ({"synthesis": "values", "attention": "nsa"}, r"synthesis='values': only attention"),
        ({"synthesis": "values", "form": "flat"}, r"synthesis='values': only attention"),
        ({"router": "capr"}, r"router='capr': only forms of experts"),
        ({"halt_below": 0.5, "form": "flat"}, r"halt_below=0.5: only form=.recursive. halts"),
        ({"router": "cap", "form": "flat"}, r"router='cap': must be one of"),
    ],
)
def test_bad_configurations_name_the_fix(options, message):
    with pytest.raises(ValueError, match=message):
        DynNSIHAConfig(char_vocab=256, word_vocab=10, **options)


def test_a_small_char_table_is_named(text, segmenter):
    config = DynNSIHAConfig(char_vocab=64, word_vocab=segmenter.num_ids, d_model=32, layers=1)
    with pytest.raises(ValueError, match="raise char_vocab"):
        DynNSIHALanguageModel(config)(*_ids(text, segmenter))


def test_public_names_exist_and_load_when_used():
    import dynnsiha

    for name in dynnsiha.__all__:
        assert getattr(dynnsiha, name).__name__ == name
    assert set(dynnsiha.__all__) <= set(dir(dynnsiha))
    with pytest.raises(AttributeError, match="no attribute 'Nothing'"):
        _ = dynnsiha.Nothing
    program = "import sys, dynnsiha; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", program], check=True)


def test_modules_do_not_load_the_compiler():
    program = (
        "import sys, dynnsiha; from dynnsiha import *; from dynnsiha import DeepEmbed;"
        " assert 'torch' in sys.modules; assert 'torch._dynamo' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", program], check=True)


def test_the_architecture_pages_examples_run(capsys, tmp_path, monkeypatch):
    page = Path(__file__).parents[2] / "docs" / "architecture.md"
    examples = re.findall(r"```python\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL)
    monkeypatch.chdir(tmp_path)
    exec(compile("\n".join(examples), str(page), "exec"), {})
    assert "loss" in capsys.readouterr().out
    assert (tmp_path / "kept" / "model.safetensors").is_file()
