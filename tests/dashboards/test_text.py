import math
import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dynbench.dashboards import text


@given(st.floats(min_value=1e-9, max_value=1e12))
def test_number_text_keeps_three_digits(value: float) -> None:
    assert float(text.number_text(value)) == pytest.approx(value, rel=6e-3)
    assert float(text.plain_text(value)) == pytest.approx(value, rel=6e-3)


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (0, "0"),
        (None, ""),
        (math.nan, ""),
        (9.996, "10.0"),
        (0.5, "0.500"),
        (2870, "2870"),
        (9.996e-5, "1.00e-04"),
    ],
)
def test_number_text_examples(value: float | None, shown: str) -> None:
    assert text.number_text(value) == shown


def test_plain_text_drops_zeros() -> None:
    assert [text.plain_text(v) for v in (0.5, 0.005, 1.0, 100, 702.0)] == [
        "0.5",
        "0.005",
        "1",
        "100",
        "702",
    ]


@given(st.integers(min_value=1, max_value=2**24))
def test_length_text_reads_back(tokens: int) -> None:
    shown = text.length_text(tokens)
    factor = {"k": 1024, "m": 1024**2}.get(shown[-1], 1)
    assert int(shown.rstrip("km")) * factor == tokens


@pytest.mark.parametrize(
    ("shown", "expected"),
    [
        (text.time_text(28_100), "28.1 s"),
        (text.time_text(3.1), "3.10 ms"),
        (text.time_text(0.0421), "42.1 µs"),
        (text.bytes_text(2**25), "32.0 MiB"),
        (text.bytes_text(2**31, text.plain_text), "2 GiB"),
        (text.times_text(9.414), "9.41×"),
        (text.percent_text(0.931), "93.1 %"),
        (text.listing(["8k", "16k", "32k"]), "8k, 16k and 32k"),
        (text.count_text(1, "case"), "1 case"),
    ],
)
def test_units(shown: str, expected: str) -> None:
    assert shown == expected


@given(st.text(alphabet=st.characters()))
def test_visible_leaves_nothing_unseen(value: str) -> None:
    shown = text.visible(value)
    assert not [c for c in shown if unicodedata.category(c) in ("Cc", "Cs")]
    assert not set(shown) & set("\u202e\u2066\u200b\ufeff\u200f")
    assert text.visible(shown) == shown
    shown.encode()


def test_visible_names_what_it_replaces() -> None:
    assert text.visible("a\u202eb\x00\tc\n") == "a⟨U+202E⟩b⟨U+0000⟩ c"


def test_long_text_is_cut_and_says_so() -> None:
    assert text.cell_text("x" * 10_000).endswith("… (9400 more characters)")
    assert len(text.label_text("x" * 10_000)) == text.LABEL_CHARS


def test_plot_text_leaves_no_tag() -> None:
    assert text.plot_text("<b>&lt;") == "&lt;b&gt;&amp;lt;"
