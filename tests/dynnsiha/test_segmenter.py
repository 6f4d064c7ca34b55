"""WordSegmenter: grammar, ids, and that a language model sees no future through it."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import jieba
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dynnsiha.embedding import WordSegmenter, character_ids

SPACED = st.text(alphabet="ab_7 .,\n'é中", max_size=40)
CHINESE = st.text(alphabet="今天气很好北京大学生活中华人民 ，。a1", max_size=24)
LANGUAGES = [("space", SPACED), ("chinese", CHINESE)]


def _words_one_character_at_a_time(text: str, segmenter: WordSegmenter) -> list[int]:
    """Completed alignment as a machine that reads one character and never looks ahead."""
    ids, current, word = [], 0, ""
    for character in text:
        if character.isalnum() or character == "_":
            word += character
        elif word:
            current, word = segmenter.word_id(word), ""
        ids.append(current)
    return ids


@given(SPACED)
def test_completed_equals_a_machine_without_lookahead(text):
    segmenter = WordSegmenter(["a", "ab", "é"], hash_buckets=3)
    assert segmenter.segment(text).tolist() == _words_one_character_at_a_time(text, segmenter)


def test_example_in_both_alignments():
    words = ["def", "main"]
    completed = WordSegmenter(words, hash_buckets=1).segment("def main(x)")
    assert completed.tolist() == [0, 0, 0, 1, 1, 1, 1, 1, 2, 2, 3]
    full = WordSegmenter(words, hash_buckets=1, alignment="full").segment("def main(x)")
    assert full.tolist() == [1, 1, 1, 0, 2, 2, 2, 2, 0, 3, 0]
    assert completed.dtype == full.dtype == torch.int64


@pytest.mark.parametrize(("language", "texts"), LANGUAGES)
def test_ids_of_a_prefix_are_the_prefix_of_the_ids(language, texts):
    segmenter = WordSegmenter(["a", "今天", "天气"], hash_buckets=5000, language=language)

    @settings(max_examples=60, deadline=None)
    @given(texts, st.data())
    def check(text, data):
        cut = data.draw(st.integers(0, len(text)))
        whole = segmenter.segment(text)
        assert len(whole) == len(text)
        assert torch.equal(whole[:cut], segmenter.segment(text[:cut]))

    check()


@pytest.mark.parametrize("language", ["space", "chinese"])
def test_changing_a_character_changes_no_id_before_it(language, library_source):
    text = library_source[:3000]
    segmenter = WordSegmenter.build([text], max_words=100, language=language)
    ids = segmenter.segment(text)
    for position in range(0, len(text), 37):
        for other in "x ":
            changed = text[:position] + other + text[position + 1 :]
            assert torch.equal(segmenter.segment(changed)[:position], ids[:position])


@pytest.mark.parametrize(
    ("language", "text", "position", "other"),
    [("space", "word guided", 3, "m"), ("chinese", "我们去北京大学", 6, "天")],
)
def test_full_alignment_leaks_the_rest_of_the_word(language, text, position, other):
    segmenter = WordSegmenter(hash_buckets=5000, alignment="full", language=language)
    changed = text[:position] + other + text[position + 1 :]
    before, after = segmenter.segment(text), segmenter.segment(changed)
    assert not torch.equal(before[:position], after[:position])


def test_chinese_words_are_not_cut_with_the_characters_after_them():
    segmenter = WordSegmenter(language="chinese")

    def cut(text: str) -> list[str]:
        return [word for _, _, word in segmenter.spans(text)]

    # Only the fourth character shows that the first two are a word.
    assert cut("研究生") == ["研究生"]
    assert cut("研究生命起源") == ["研究", "生命", "起源"]
    completed = dict(segmenter.completions("研究生命起源"))
    assert 2 not in completed
    assert completed[3] == "研究"


def test_chinese_words_mix_with_spaced_ones():
    segmenter = WordSegmenter(language="chinese")
    words = [word for _, _, word in segmenter.spans("我们用python写代码，very好")]
    assert words == ["我们", "用", "python", "写", "代码", "very", "好"]
    assert dict(segmenter.completions("用python写"))[7] == "python"


def test_a_long_chinese_run_costs_no_more_than_its_length():
    lengths = []
    original = jieba.lcut
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(jieba, "lcut", lambda run: lengths.append(len(run)) or original(run))
        WordSegmenter(language="chinese").segment("我们去北京大学看书" * 60)
    assert max(lengths) < 30


def _completions_of_prefixes(run: str) -> list[tuple[int, str]]:
    """Of Han characters: each is cut with up to four words before it, counted from the start."""
    found, context = [], 0
    for length in range(1, len(run) + 1):
        words = jieba.lcut(run[context:length])
        if len(words) >= 2:
            found.append((length - 1, words[-2]))
        if len(words) > 4:
            context += len(words[0])
    return [*found, (len(run), jieba.lcut(run[context:])[-1])]


HAN = st.characters(min_codepoint=0x4E00, max_codepoint=0x9FFF) | st.sampled_from("豈㐀𠀀𲎯")
REAL = "他们研究生命起源并且在北京大学看书今天天气很好中华人民共和国成立了我们用代码生活"


@settings(max_examples=100, deadline=None)
@given(st.text(HAN | st.sampled_from(REAL), min_size=1, max_size=40) | st.sampled_from([REAL * 3]))
def test_chinese_is_read_on_as_its_prefixes_are_cut(text):
    segmenter = WordSegmenter(language="chinese")
    expected = _completions_of_prefixes(text)
    assert list(segmenter.completions(text)) == expected
    run, found = "", []
    for position, char in enumerate(text + "。"):
        run, word = segmenter.read(run, char)
        found += [] if word is None else [(position, word)]
    assert found == expected
    assert run == ""


def test_vocabulary_keeps_the_most_frequent_words():
    segmenter = WordSegmenter.build(["b b b a a c", "c c d"], max_words=3, hash_buckets=4)
    assert segmenter.words == ("b", "c", "a")
    assert segmenter.num_ids == 1 + 3 + 4
    assert [segmenter.word_id(word) for word in "bca"] == [1, 2, 3]
    assert 4 <= segmenter.word_id("d") < 8
    assert WordSegmenter.build(["b a"], max_words=0).words == ()
    with pytest.raises(ValueError, match="max_words=-1: must be at least 0"):
        WordSegmenter.build(["b a"], max_words=-1)


@given(st.text(min_size=1), st.integers(1, 50))
def test_unknown_words_fall_into_their_buckets(word, buckets):
    segmenter = WordSegmenter(["known"], hash_buckets=buckets)
    if word != "known":
        assert 2 <= segmenter.word_id(word) < segmenter.num_ids


def test_buckets_are_the_same_in_every_process():
    program = (
        "from dynnsiha import WordSegmenter;"
        "print([WordSegmenter().word_id(w) for w in ('guided', '词', 'x' * 99)])"
    )
    here = [WordSegmenter().word_id(word) for word in ("guided", "词", "x" * 99)]
    for seed in ("1", "2"):
        output = subprocess.run(
            [sys.executable, "-c", program],
            env=os.environ | {"PYTHONHASHSEED": seed},
            capture_output=True,
            text=True,
            check=True,
        )
        assert output.stdout.strip() == str(here)


def test_state_survives_json(library_source):
    source = WordSegmenter.build([library_source], max_words=50, hash_buckets=9, alignment="full")
    copy = WordSegmenter.from_dict(json.loads(json.dumps(source.to_dict())))
    assert copy.to_dict() == source.to_dict()
    assert torch.equal(copy.segment(library_source), source.segment(library_source))


def test_empty_and_wordless_texts():
    for alignment in ("completed", "full"):
        segmenter = WordSegmenter(alignment=alignment)
        assert segmenter.segment("").shape == (0,)
        assert segmenter.segment(" ,\n").tolist() == [0, 0, 0]
    assert WordSegmenter().segment("word").tolist() == [0, 0, 0, 0]


def test_missing_jieba_names_the_fix(monkeypatch):
    monkeypatch.setitem(sys.modules, "jieba", None)
    with pytest.raises(ModuleNotFoundError, match="pip install jieba"):
        WordSegmenter(language="chinese").segment("今天")
    assert WordSegmenter(language="chinese").segment("no Han here").shape == (11,)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"hash_buckets": 0}, "hash_buckets=0: must be at least 1"),
        ({"alignment": "word"}, "alignment='word': must be 'completed' or 'full'"),
        ({"language": "latin"}, "language='latin': must be 'space' or 'chinese'"),
        ({"words": ["a", "b", "a"]}, "'a' is there more than once"),
    ],
)
def test_bad_arguments_name_the_fix(arguments, message):
    with pytest.raises(ValueError, match=message):
        WordSegmenter(**arguments)


def test_one_string_is_not_several_texts():
    with pytest.raises(TypeError, match="give a list of texts"):
        WordSegmenter.build("some text")


@given(st.text(st.characters(codec=None), max_size=30), st.integers(2, 70_000))
def test_character_ids_are_code_points_up_to_the_table(text, vocab):
    assert character_ids(text, vocab).tolist() == [min(ord(c), vocab - 1) for c in text]


def test_character_table_of_one_row_is_refused():
    with pytest.raises(ValueError, match="char_vocab=1: must be at least 2"):
        character_ids("a", 1)
