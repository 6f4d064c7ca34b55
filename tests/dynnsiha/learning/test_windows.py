"""Windows of text: which they are depends on seed and position alone."""

from __future__ import annotations

import pytest
import torch

from dynnsiha import WordSegmenter, character_ids
from dynnsiha.learning import TextWindows


def _windows(text: str, **options) -> TextWindows:
    segmenter = WordSegmenter.build([text])
    return TextWindows.of(
        text, segmenter, **{"char_vocab": 128, "seq_len": 40, "batch": 3} | options
    )


def test_each_row_is_a_window_of_the_text_with_its_words(library_source):
    windows = _windows(library_source)
    chars, words = windows.draw(7)
    assert chars.shape == words.shape == (3, 40)
    all_chars = character_ids(library_source, 128)
    all_words = WordSegmenter.build([library_source]).segment(library_source)
    for row in range(3):
        starts = [
            s for s in range(len(all_chars) - 39) if torch.equal(all_chars[s : s + 40], chars[row])
        ]
        assert any(torch.equal(all_words[s : s + 40], words[row]) for s in starts)


def test_a_batch_is_a_function_of_seed_and_position(library_source):
    windows, again = _windows(library_source), _windows(library_source)
    for position in (5, 0, 1000):
        assert torch.equal(windows.draw(position)[0], again.draw(position)[0])
    assert not torch.equal(windows.draw(0)[0], windows.draw(1)[0])
    other = _windows(library_source, seed=1)
    assert not torch.equal(windows.draw(0)[0], other.draw(0)[0])
    torch.manual_seed(3)  # the global random numbers have no part in it
    assert torch.equal(windows.draw(0)[0], again.draw(0)[0])


def test_every_window_comes_the_last_one_too():
    windows = _windows("abcdefghij", seq_len=8, batch=50)
    firsts = {int(c) for c in windows.draw(0)[0][:, 0]}
    assert firsts == {ord("a"), ord("b"), ord("c")}
    whole = _windows("abcdefghij", seq_len=10, batch=1)
    assert whole.draw(3)[0].tolist() == [[ord(c) for c in "abcdefghij"]]


def test_the_identity_tells_data_apart(library_source):
    base = _windows(library_source).identity()
    assert base == _windows(library_source).identity()
    others = [
        _windows(library_source + " "),
        _windows(library_source[:-1] + "~"),
        _windows(library_source, seq_len=41),
        _windows(library_source, batch=4),
        _windows(library_source, seed=1),
    ]
    assert all(other.identity() != base for other in others)
    same_chars = _windows(library_source)
    same_chars.word_ids = same_chars.word_ids + 1
    assert same_chars.identity() != base


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"seq_len": 1}, "seq_len=1: must be at least 2 and at most the text's 10"),
        ({"seq_len": 11}, "seq_len=11: must be at least 2 and at most the text's 10"),
        ({"batch": 0}, "batch=0: must be at least 1"),
        ({"seed": -1}, "seed=-1: must be at least 0"),
    ],
)
def test_bad_numbers_name_the_fix(options, message):
    with pytest.raises(ValueError, match=message):
        _windows("abcdefghij", **{"seq_len": 5} | options)


def test_ids_must_match():
    ids = torch.zeros(10, dtype=torch.int64)
    with pytest.raises(ValueError, match=r"char_ids \[10\] and word_ids \[9\]"):
        TextWindows(ids, ids[1:], seq_len=4, batch=1)
