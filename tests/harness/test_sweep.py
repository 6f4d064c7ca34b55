"""The sweep grammar against lists made by hand, and its one-line errors."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dynbench.harness.sweep import (
    MAX_VALUE,
    SweepError,
    format_length,
    parse_floats,
    parse_ints,
    parse_lengths,
)

K = 1024
LENGTHS = st.integers(1, MAX_VALUE)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("8k..128k", [8 * K, 16 * K, 32 * K, 64 * K, 128 * K]),
        ("8k..128k:x4", [8 * K, 32 * K, 128 * K]),
        ("8k..32k:+8k", [8 * K, 16 * K, 24 * K, 32 * K]),
        ("8k..100k", [8 * K, 16 * K, 32 * K, 64 * K]),
        ("8k..8k", [8 * K]),
        ("8k,12k", [8 * K, 12 * K]),
        ("12k, 8K ,12288", [12 * K, 8 * K]),
        ("1..3:+1,1m", [1, 2, 3, K * K]),
        ("1000", [1000]),
    ],
)
def test_grammar(text, expected):
    assert parse_lengths(text) == expected


@given(st.lists(LENGTHS, min_size=1, max_size=20, unique=True))
def test_lists_of_single_values_are_themselves(values):
    assert parse_lengths(",".join(map(format_length, values))) == values


@given(LENGTHS, st.integers(0, 2**20))
def test_doubling(start, factor):
    end = min(start * (factor + 1), MAX_VALUE)
    values = parse_lengths(f"{start}..{end}")
    assert values[0] == start
    assert all(b == 2 * a for a, b in pairwise(values))
    assert values[-1] <= end < 2 * values[-1]


@given(LENGTHS, st.integers(1, 2**20), st.integers(0, 900))
def test_adding(start, step, count):
    end = start + step * count
    if end <= MAX_VALUE:
        assert parse_lengths(f"{start}..{end}:+{step}") == list(range(start, end + 1, step))


@given(st.text(alphabet="0123456789kmx+.:, -a\u0661", max_size=12))
def test_any_text_is_read_or_refused_in_one_line(text):
    message = ""
    values: list[int] = []
    try:
        values = parse_lengths(text)
    except SweepError as error:
        message = str(error)
    if message:
        assert "--seq" in message
        assert "8k..128k" in message
        assert "\n" not in message
    else:
        assert values
        assert len(set(values)) == len(values)
        assert all(1 <= value <= MAX_VALUE for value in values)


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("8k..4k", "8k..4k"),
        ("abc", "abc"),
        ("0", "0"),
        ("-8k", "-8k"),
        ("", "empty"),
        ("8k,,16k", "empty"),
        ("8k..", "8k.."),
        ("..8k", "..8k"),
        ("8k..16k..32k", "16k..32k"),
        ("8k..16k:8k", "8k..16k:8k"),
        ("8k..16k:x1", "never moves"),
        ("8k..16k:+0", "never moves"),
        ("8k..abc", "abc"),
        ("8.5k", "8.5k"),
        ("8g", "8g"),
        ("1..1m:+1", "1000"),
        ("9" * 30, "too large"),
    ],
)
def test_errors_name_the_bad_part(text, named):
    with pytest.raises(SweepError) as caught:
        parse_lengths(text)
    assert named in str(caught.value)
    assert "for example" in str(caught.value)


def test_integers_have_bounds_and_a_name():
    assert parse_ints("0,2", name="--private-blocks") == [0, 2]
    with pytest.raises(SweepError, match=r"--query-tile: '0' must be at least 1.*1,16"):
        parse_ints("0", name="--query-tile", low=1, example="1,16")
    with pytest.raises(SweepError, match="at most 4"):
        parse_ints("8", high=4)
    with pytest.raises(SweepError, match="never moves"):
        parse_ints("0..8")


def test_floats():
    assert parse_floats("0.5, 0.75,0.5,1", 0, 1) == [0.5, 0.75, 1.0]
    for bad in ("1.5", "-0.1", "nan", "half", "", "0.5,,1"):
        with pytest.raises(SweepError, match="--sparsity"):
            parse_floats(bad, 0, 1, name="--sparsity")
