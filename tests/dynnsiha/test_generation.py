"""Generation through the cache: the same as without it, for every form and part."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file

from dynnsiha import DynNSIHAConfig, DynNSIHALanguageModel, WordSegmenter, character_ids
from dynnsiha.generation import _WordReader
from dynnsiha.sampling import Sampling

from .variants import HYBRID, VARIANTS, every_variant


@pytest.fixture(scope="module")
def text(library_source) -> str:
    return library_source[2000:2120]


@pytest.fixture(scope="module")
def segmenter(library_source) -> WordSegmenter:
    return WordSegmenter.build([library_source], max_words=300, hash_buckets=64)


def model_of(name: str, segmenter: WordSegmenter, **options) -> DynNSIHALanguageModel:
    torch.manual_seed(0)
    config = DynNSIHAConfig(
        char_vocab=256,
        word_vocab=segmenter.num_ids,
        **{"d_model": 32, "layers": 2, "heads": 2} | VARIANTS[name] | options,
    )
    model = DynNSIHALanguageModel(config)
    for parameter in model.parameters():  # tables of ones and zeros would hide what they do
        torch.nn.init.normal_(parameter, std=0.3)
    return model.double()


def ids_of(text: str, segmenter: WordSegmenter) -> tuple[torch.Tensor, torch.Tensor]:
    return character_ids(text, 256)[None], segmenter.segment(text)[None]


@every_variant
def test_cached_steps_equal_one_full_forward(name, text, segmenter):
    model = model_of(name, segmenter)
    chars, words = ids_of(text, segmenter)
    with torch.no_grad():
        whole = model(chars, words)
    cache = model.new_cache(1, len(text))
    pieces, at = [], 0
    for size in (37, 1, 1, 11, 1, len(text) - 51):
        pieces.append(model(chars[:, at : at + size], words[:, at : at + size], cache=cache))
        at += size
    torch.testing.assert_close(torch.cat(pieces, 1), whole, rtol=1e-7, atol=1e-7)
    assert cache.lengths == (len(text),)
    with pytest.raises(ValueError, match="do not fit"):
        model(chars[:, :1], words[:, :1], cache=cache)


@pytest.mark.parametrize("error", [torch.OutOfMemoryError, KeyboardInterrupt])
@pytest.mark.parametrize("scoring", ["leader", "aggregate"])
@pytest.mark.parametrize(
    ("name", "part", "call"),
    [
        ("dynnsiha hybrid", "blocks.1.attention.output", 1),
        ("deep embed", "logits", 1),
        ("flat sparse", "experts.blocks.1.mlp", 1),
        ("recursive sparse", "experts.block.heads.core", 2),
        ("recursive sparse", "logits", 1),
    ],
)
def test_a_call_that_fails_leaves_the_cache_as_it_was(
    name, part, call, scoring, error, text, segmenter
):
    model = model_of(name, segmenter, nsa=replace(HYBRID, tile_scoring=scoring))
    chars, words = ids_of(text, segmenter)
    with torch.no_grad():
        whole = model(chars, words)
    cache, pieces, at, calls = model.new_cache(1, len(text)), [], 0, 0

    def fail(*_):
        nonlocal calls
        calls += 1
        if calls == call:
            raise error

    for size in (79, 1, 1, 30, 1):
        ids = chars[:, at : at + size], words[:, at : at + size]
        calls = 0
        hook = model.get_submodule(part).register_forward_pre_hook(fail)
        with pytest.raises(error):
            model(*ids, cache=cache)
        hook.remove()
        assert calls == call
        pieces.append(model(*ids, cache=cache))
        at += size
    torch.testing.assert_close(torch.cat(pieces, 1), whole[:, :at], rtol=1e-7, atol=1e-7)


@every_variant
def test_greedy_text_is_what_full_forwards_choose(name, text, segmenter):
    model = model_of(name, segmenter)
    prompts = [text[:50], text[10:33], text[40:100]]
    together = model.generate(prompts, segmenter, 12, temperature=0)
    for prompt, added in zip(prompts, together, strict=True):
        written = prompt
        for _ in range(12):
            with torch.no_grad():
                logits = model(*ids_of(written, segmenter))[0, -1]
            written += chr(int(logits.argmax()))
        assert added == written[len(prompt) :]


@pytest.mark.parametrize("form", ["blocks", "recursive"])
def test_summed_scores_take_together_what_they_can_and_name_what_they_cannot(form, text, segmenter):
    """Sums of tiles of 4 are kept to the last token alone: padding ends where a tile begins."""
    nsa = replace(HYBRID, tile_scoring="aggregate")
    options = {"form": form, "experts": 4} if form == "recursive" else {}
    model = model_of("dynnsiha hybrid", segmenter, nsa=nsa, positions="none", **options)
    prompts = [text[:49], text[10:32], text[40:73]]  # 49, 22 and 33
    fitting = [prompts[0], prompts[2], text[:50]]
    together = model.generate(fitting, segmenter, 6, temperature=0)
    assert together == [model.generate(p, segmenter, 6, temperature=0) for p in fitting]
    message = "has 22 characters beside one of 49, .*'aggregate' .*; generate from one at a time"
    with pytest.raises(ValueError, match=message):
        model.generate(prompts, segmenter, 6)


def test_a_seed_repeats_a_text_and_another_seed_does_not(text, segmenter):
    model = model_of("dynnsiha hybrid", segmenter)
    first = model.generate(text[:20], segmenter, 30, seed=1)
    assert len(first) == 30
    assert model.generate(text[:20], segmenter, 30, seed=1) == first
    assert model.generate(text[:20], segmenter, 30, seed=2) != first


@torch.no_grad()
@pytest.mark.parametrize(
    ("options", "choices"),
    [({"top_k": 2}, 2), ({"top_p": 0.6}, None), ({"top_k": 3, "top_p": 0.5}, 3)],
    ids=str,
)
def test_a_text_holds_only_what_the_options_leave(options, choices, text, segmenter):
    """Each character beside the distribution of a full forward pass without options."""
    model = model_of("dynnsiha hybrid", segmenter)
    added = model.generate(text[:20], segmenter, 40, seed=4, **options)
    logits = model(*ids_of(text[:20] + added, segmenter))[0, 19:-1]
    ranks = []
    for row, char in zip(logits.softmax(-1), added, strict=True):
        better = row[row > row[ord(char)]]
        ranks.append(len(better))
        assert choices is None or len(better) < choices
        if options == {"top_p": 0.6}:
            assert float(better.sum()) < 0.6
    assert max(ranks) > 0  # it is not the most probable one each time


def test_temperature_widens_or_narrows_the_choice(text, segmenter):
    model = model_of("dynsiha", segmenter)
    greedy = model.generate(text[:20], segmenter, 30, temperature=0)
    assert model.generate(text[:20], segmenter, 30, temperature=1e-3, seed=1) == greedy
    assert model.generate(text[:20], segmenter, 30, top_k=1, seed=1) == greedy
    assert model.generate(text[:20], segmenter, 30, temperature=1e6, seed=1) != greedy


def test_without_a_seed_torchs_own_stream_decides(text, segmenter):
    model = model_of("dynsiha", segmenter)
    texts = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        texts.append(model.generate(text[:20], segmenter, 30))
    assert texts[0] == texts[1] != texts[2]


def test_rows_of_a_cache_can_be_taken_back_and_repeated(text, segmenter):
    model = model_of("deep embed", segmenter)
    chars, words = ids_of(text, segmenter)
    with torch.no_grad():
        whole = model(chars[:, :60], words[:, :60])
    cache = model.new_cache(1, 64)
    model(chars[:, :59], words[:, :59], cache=cache)
    cache.truncate([40])
    cache.select([0, 0])
    twice = [x[:, 40:60].expand(2, -1) for x in (chars, words)]
    rest = model(*twice, cache=cache)
    torch.testing.assert_close(rest, whole[:, 40:].expand(2, -1, -1), rtol=1e-7, atol=1e-7)
    with pytest.raises(ValueError, match="40 lies before the latest call"):
        cache.truncate([40, 60])
    assert cache.nbytes > 0


@pytest.mark.parametrize("rows", [[0], [1, 0], [1, 0, 1]])
def test_rows_of_a_cache_may_be_a_tensor(rows, text, segmenter):
    model = model_of("deep embed", segmenter)
    chars, words = (ids.unflatten(1, (2, -1))[0] for ids in ids_of(text[:100], segmenter))
    with torch.no_grad():
        whole = model(chars, words)
    cache = model.new_cache(2, 64)
    model(chars[:, :40], words[:, :40], cache=cache)
    cache.select(torch.tensor(rows))
    rest = model(chars[rows, 40:], words[rows, 40:], cache=cache)
    torch.testing.assert_close(rest, whole[rows, 40:], rtol=1e-7, atol=1e-7)


@pytest.mark.parametrize("name", ["deep embed", "flat sparse"])
def test_a_reset_cache_is_as_new(name, text, segmenter):
    model = model_of(name, segmenter)
    chars, words = ids_of(text[:50], segmenter)
    cache = model.new_cache(1, 50)
    first = model(chars, words, cache=cache)
    cache.reset()
    assert cache.lengths == (0,)
    assert cache.nbytes == model.new_cache(1, 50).nbytes
    assert torch.equal(model(chars, words, cache=cache), first)


@pytest.mark.parametrize("name", [name for name in VARIANTS if "deep embed" not in name])
@settings(max_examples=12)
@given(prompt=st.integers(1, 100), count=st.integers(1, 3), after=st.integers(1, 19))
def test_a_step_taken_back_leaves_no_trace(name, text, segmenter, prompt, count, after):
    """Summaries and shared lists that the step completed included: it repeats bit for bit."""
    model = model_of(name, segmenter)
    chars, words = ids_of(text, segmenter)
    with torch.no_grad():
        whole = model(chars[:, : prompt + after], words[:, : prompt + after])
    cache = model.new_cache(1, len(text))
    model(chars[:, :prompt], words[:, :prompt], cache=cache)
    held_bytes = cache.held_bytes
    other = chars[:, prompt : prompt + 1] + 1
    token = chars[:, prompt : prompt + 1], words[:, prompt : prompt + 1]
    steps = []
    for _ in range(count):
        model(other, token[1], cache=cache)
        cache.truncate([prompt])
        assert cache.held_bytes == held_bytes
        steps.append(model(*token, cache=cache))
        cache.truncate([prompt])
    assert all(torch.equal(step, steps[0]) for step in steps)
    rest = model(chars[:, prompt : prompt + after], words[:, prompt : prompt + after], cache=cache)
    torch.testing.assert_close(rest, whole[:, prompt:], rtol=1e-7, atol=1e-7)


@settings(max_examples=150, deadline=None)
@given(st.text(alphabet=" ab_1.\n\u4e2d\u6587\u5b57é", min_size=1, max_size=40), st.data())
@pytest.mark.parametrize("language", ["space", "chinese"])
def test_word_ids_of_written_text_are_those_of_read_text(language, text, data):
    if language == "chinese":
        pytest.importorskip("jieba")
    segmenter = WordSegmenter(["ab", "a"], hash_buckets=7, language=language)
    cut = data.draw(st.integers(1, len(text)))
    reader = _WordReader(segmenter, text[:cut])
    ids = [reader.read(char) for char in text[cut:]]
    assert ids == segmenter.segment(text)[cut:].tolist()


def test_chinese_word_ids_cost_the_same_however_long_the_text_is():
    """A character is cut with the few words before it, not with all since the last separator."""
    jieba = pytest.importorskip("jieba")
    segmenter = WordSegmenter(hash_buckets=5000, language="chinese")
    text = "我们去北京大学看书" * 60
    expected, lengths, original = segmenter.segment(text).tolist(), [], jieba.lcut
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(jieba, "lcut", lambda run: lengths.append(len(run)) or original(run))
        reader = _WordReader(segmenter, text[:9])
        assert [reader.read(char) for char in text[9:]] == expected[9:]
    assert len(lengths) <= len(text)
    assert max(lengths) < 30


def test_prompts_and_segmenters_that_do_not_fit(text, segmenter):
    model = model_of("dynsiha", segmenter)
    other = WordSegmenter(["a"], hash_buckets=3)
    leaking = WordSegmenter.from_dict(segmenter.to_dict() | {"alignment": "full"})
    for arguments, message in (
        (("", segmenter, 3), "prompt: is empty"),
        ((["a", ""], segmenter, 3), "prompt: is empty"),
        (("a", segmenter, 0), "max_new=0: must be at least 1"),
        (("a", other, 3), "segmenter: has 5 ids"),
        (("a", leaking, 3), "segmenter: has alignment 'full'"),
    ):
        with pytest.raises(ValueError, match=message):
            model.generate(*arguments)


logits_of = st.lists(st.floats(-20, 20), min_size=1, max_size=12)


@given(logits_of, st.floats(0.1, 5), st.none() | st.integers(1, 14), st.none() | st.floats(0.01, 1))
def test_the_distribution_holds_the_fewest_best_tokens(values, temperature, top_k, top_p):
    logits = torch.tensor(values)
    p = Sampling(temperature, top_k, top_p).probabilities(logits)
    plain = (logits / temperature).double().softmax(-1)
    assert float(p.sum()) == pytest.approx(1, abs=1e-5)
    kept = p > 0
    # Logits may differ by less than their probabilities show: any of the most probable will do.
    assert plain[kept].max() >= plain.max() - 1e-7
    if top_k is None and top_p is None:
        torch.testing.assert_close(p.double(), plain, rtol=1e-4, atol=1e-6)
    if top_k is not None:
        assert int(kept.sum()) <= top_k
    if top_p is not None and top_k is None:
        assert float(plain[kept].sum()) >= top_p - 1e-5
        least = plain[kept].min()
        assert float(plain[kept].sum() - least) < top_p + 1e-5
    assert plain[kept].min() >= plain[~kept].max() - 1e-6 if (~kept).any() else True


@given(logits_of, st.integers(1, 14), st.floats(0.01, 1))
def test_top_p_counts_in_what_top_k_leaves(values, top_k, top_p):
    """One after the other, by sorting: the k best, then the fewest of them that reach top_p."""
    logits = torch.tensor(values)
    both = Sampling(1.0, top_k, top_p).probabilities(logits).tolist()
    best = sorted(values, reverse=True)[:top_k]
    powers = [math.exp(value - best[0]) for value in best]
    kept, reached = [], 0.0
    for power in powers:
        if reached >= top_p - 1e-6 and kept:
            break
        kept.append(power)
        reached += power / sum(powers)
    if abs(reached - top_p) < 1e-5:
        return  # rounding may keep one more or less there
    expected = [power / sum(kept) for power in kept] + [0.0] * (len(values) - len(kept))
    # Equal tokens may change places: which are kept is the test above.
    assert sorted(both, reverse=True) == pytest.approx(expected, abs=1e-5)


def test_tokens_are_drawn_as_often_as_they_are_probable():
    sampling = Sampling(0.7, top_k=4, top_p=0.95)
    logits = torch.tensor([1.0, 0.0, 2.0, -1.0, 1.5, 0.5])
    p = sampling.probabilities(logits)
    assert int((p > 0).sum()) == 4
    generator = torch.Generator().manual_seed(0)
    drawn = sampling.draw(logits.expand(20_000, 6), generator)
    share = torch.bincount(drawn, minlength=6) / 20_000
    torch.testing.assert_close(share, p, rtol=0, atol=0.015)  # four standard deviations
    assert not share[p == 0].any()


@pytest.mark.parametrize("options", [{}, {"top_k": 2}, {"top_p": 0.9}], ids=str)
@pytest.mark.parametrize("temperature", [1e-6, 1e-38, 1e-45, 1e-300, 5e-324])
def test_the_smallest_temperatures_are_greedy(temperature, options):
    logits = torch.tensor([[0.0, 30.0, 1.0], [-5.0, -3.0, -1e30], [-torch.inf, 0.0, 2.0]])
    sampling = Sampling(temperature, **options)
    assert torch.equal(sampling.probabilities(logits), Sampling(0).probabilities(logits))
    assert sampling.draw(logits).tolist() == [1, 1, 2]


def test_temperature_zero_is_greedy():
    logits = torch.tensor([[0.0, 3.0, 1.0], [5.0, 3.0, 1.0]])
    assert Sampling(0).draw(logits).tolist() == [1, 0]
    assert Sampling(0).probabilities(logits).tolist() == [[0, 1, 0], [1, 0, 0]]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"temperature": -1}, "temperature=-1"),
        ({"top_k": 0}, "top_k=0"),
        ({"top_p": 0.0}, "top_p=0.0"),
        ({"top_p": 1.5}, "top_p=1.5"),
    ],
)
def test_sampling_out_of_range(options, message):
    with pytest.raises(ValueError, match=message):
        Sampling(**options)


@every_variant
def test_a_saved_model_writes_the_same_text(name, text, segmenter, tmp_path):
    model = model_of(name, segmenter).float()
    model.save(tmp_path / "kept", segmenter)
    again, same_words = DynNSIHALanguageModel.load(tmp_path / "kept")
    assert again.config == model.config
    assert same_words.to_dict() == segmenter.to_dict()
    written = load_file(tmp_path / "kept" / "model.safetensors")
    assert set(written) == set(model.state_dict()) == set(again.state_dict())
    for part, value in model.state_dict().items():
        assert torch.equal(written[part], value), part
        assert torch.equal(again.state_dict()[part], value), part
    assert all(p.requires_grad for p in again.parameters())
    expected = model.generate(text[:20], segmenter, 8, seed=3)
    assert again.generate(text[:20], same_words, 8, seed=3) == expected


def test_a_loaded_recursive_model_has_the_steps_that_it_was_given_last(text, segmenter, tmp_path):
    model = model_of("recursive", segmenter)
    model.experts.steps = 5
    model.save(tmp_path)
    again, _ = DynNSIHALanguageModel.load(tmp_path)
    assert again.experts.steps == again.config.layers == 5
    assert torch.equal(again(*ids_of(text, segmenter)), model(*ids_of(text, segmenter)))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_a_loaded_model_has_the_dtype_that_was_saved(dtype, text, segmenter, tmp_path):
    model = model_of("dynnsiha exact", segmenter).to(dtype)
    model.save(tmp_path, segmenter)
    again, _ = DynNSIHALanguageModel.load(tmp_path)
    assert {p.dtype for p in again.parameters()} == {dtype}
    expected = model(*ids_of(text, segmenter))
    model.save(tmp_path, segmenter)  # over the file that it was loaded from
    with torch.no_grad():
        model.logits.weight.zero_()
    model.save(tmp_path, segmenter)
    assert torch.equal(again(*ids_of(text, segmenter)), expected)


@pytest.mark.parametrize("name", ["deep embed", "deep embed 1x"])
def test_tables_on_disk_write_the_same_text(name, text, segmenter, tmp_path):
    model = model_of(name, segmenter).float()
    ids = ids_of(text, segmenter)
    in_memory = model(*ids), model.generate(text[:20], segmenter, 12, seed=3)
    size = sum(p.numel() for p in model.parameters())
    for i, block in enumerate(model.blocks):
        block.feed_forward.write_table(tmp_path / str(i))
        block.feed_forward.map_table(tmp_path / str(i))
    width = 32 if model.config.deep_embed == "1x" else 128
    assert size - sum(p.numel() for p in model.parameters()) == 2 * 256 * width
    assert torch.equal(model(*ids), in_memory[0])
    assert model.generate(text[:20], segmenter, 12, seed=3) == in_memory[1]


@pytest.mark.parametrize("name", ["deep embed", "deep embed 1x"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_tables_may_stay_in_the_saved_file(name, dtype, text, segmenter, tmp_path):
    model = model_of(name, segmenter).to(dtype)
    expected = model(*ids_of(text, segmenter))
    model.save(tmp_path, segmenter)
    mapped, _ = DynNSIHALanguageModel.load(tmp_path, map_tables=True)
    assert torch.equal(mapped(*ids_of(text, segmenter)), expected)
    held, all_held = (sum(p.numel() for p in one.parameters()) for one in (mapped, model))
    width = 32 if model.config.deep_embed == "1x" else 128
    assert all_held - held == 2 * 256 * width
    with torch.no_grad():
        mapped.logits.weight.zero_()
    mapped.save(tmp_path)  # over the file that its tables are in; they are saved as well
    saved = load_file(tmp_path / "model.safetensors")
    assert set(saved) == set(model.state_dict())
    assert not saved["logits.weight"].any()
    assert not (tmp_path / "model.safetensors.unfinished").exists()
    hidden = [m.blocks[0].feed_forward.table(torch.arange(256)) for m in (model, mapped)]
    assert torch.equal(*hidden)


def test_loading_what_is_not_there_or_does_not_fit(segmenter, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"holds no config\.json"):
        DynNSIHALanguageModel.load(tmp_path)
    model_of("dynsiha", segmenter).save(tmp_path)
    config = tmp_path / "config.json"
    kept = config.read_text()
    config.write_text(kept.replace('"d_model": 32', '"d_model": 64'))
    with pytest.raises(ValueError, match="does not fit"):
        DynNSIHALanguageModel.load(tmp_path)
    config.write_text(kept.replace('"d_model"', '"model_width"'))
    with pytest.raises(ValueError, match=r"unknown settings \['model_width'\]"):
        DynNSIHALanguageModel.load(tmp_path)
    config.write_text(kept)
    assert DynNSIHALanguageModel.load(tmp_path)[1] is None


def test_what_is_saved_without_a_segmenter_is_loaded_without_one(segmenter, tmp_path):
    model = model_of("dynsiha", segmenter)
    model.save(tmp_path, segmenter)
    model.save(tmp_path)
    assert DynNSIHALanguageModel.load(tmp_path)[1] is None


@pytest.mark.parametrize(
    ("name", "found", "written", "complaint"),
    [
        ("config.json", '"top_n"', '"top_m"', r"unknown settings \['top_m'\]; written by a later"),
        ("config.json", '"char_vocab": 256,', "", r"has no settings \['char_vocab'\]"),
        ("config.json", '"char_vocab"', "char_vocab", "cannot be read: Expecting"),
        ("segmenter.json", '"words"', '"wards"', r"unknown settings \['wards'\]"),
        ("config.json", '"char_vocab": 256', '"char_vocab": "256"', "char_vocab='256': has "),
        ("config.json", '"d_model": 32', '"d_model": 32.0', r"d_model=32\.0: has another type"),
        ("config.json", '"layers": 2', '"layers": null', "layers=None: has another type; save the"),
        ("config.json", '"form": "blocks"', '"form": ["blocks"]', r"form=\['blocks'\]: has "),
        ("config.json", '"top_n": 4', '"top_n": {}', r"top_n=\{\}: has another type; save the"),
        ("config.json", '"sliding"', "3", "branches=.*: has another type; save the model again"),
        ("segmenter.json", '"the"', "1", "words=.{60}: has another type; save the model again"),
    ],
)
def test_settings_that_are_not_understood_name_their_file(
    name, found, written, complaint, segmenter, tmp_path
):
    model_of("nsa", segmenter).save(tmp_path, segmenter)
    kept = (tmp_path / name).read_text(encoding="utf-8")
    assert found in kept
    (tmp_path / name).write_text(kept.replace(found, written), encoding="utf-8")
    with pytest.raises(ValueError, match=rf"{name}: {complaint}"):
        DynNSIHALanguageModel.load(tmp_path)


@pytest.mark.parametrize("name", ["config.json", "segmenter.json"])
@pytest.mark.parametrize("content", ["[]", "3", "null", '"words"'])
def test_settings_that_are_none_name_their_file(name, content, segmenter, tmp_path):
    model_of("nsa", segmenter).save(tmp_path, segmenter)
    (tmp_path / name).write_text(content)
    with pytest.raises(ValueError, match=rf"{name}: holds no settings but .*; save the model"):
        DynNSIHALanguageModel.load(tmp_path)


@pytest.mark.parametrize("nsa", [3, [], "paper", True])
def test_attention_settings_of_another_type_name_their_file(nsa, segmenter, tmp_path):
    model_of("dense", segmenter).save(tmp_path)
    config = tmp_path / "config.json"
    settings = json.loads(config.read_text()) | {"nsa": nsa}
    config.write_text(json.dumps(settings))
    with pytest.raises(ValueError, match=r"config\.json: nsa=.*: has another type; save the model"):
        DynNSIHALanguageModel.load(tmp_path)


@pytest.mark.parametrize("share", [0.0, 0.001, 0.5, 0.999])
def test_weights_that_are_cut_short_name_their_file(share, segmenter, tmp_path):
    model_of("dynsiha", segmenter).save(tmp_path)
    weights = tmp_path / "model.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[: int(share * len(whole))])
    with pytest.raises(ValueError, match=r"model\.safetensors: cannot be read: .*; save it again"):
        DynNSIHALanguageModel.load(tmp_path)


def test_words_of_any_script_are_saved_in_any_locale(tmp_path):
    program = (
        "import sys\n"
        "from dynnsiha import DynNSIHAConfig, DynNSIHALanguageModel, WordSegmenter\n"
        "words = WordSegmenter(['\\u4e2d\\u6587', '\\u00e9'], hash_buckets=1)\n"
        "config = DynNSIHAConfig(char_vocab=8, word_vocab=4, d_model=8, layers=1, heads=1)\n"
        "DynNSIHALanguageModel(config).save(sys.argv[1], words)\n"
        "assert DynNSIHALanguageModel.load(sys.argv[1])[1].words == words.words\n"
    )
    locale = {"LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"}
    subprocess.run(
        [sys.executable, "-c", program, str(tmp_path)], env=os.environ | locale, check=True
    )
    assert DynNSIHALanguageModel.load(tmp_path)[1].words == ("\u4e2d\u6587", "\u00e9")
