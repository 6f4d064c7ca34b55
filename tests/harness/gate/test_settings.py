"""Settings: what a file may say, what is refused, and that printing them loses nothing."""

from __future__ import annotations

import re
import tomllib
from dataclasses import fields, replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dynbench.harness.gate.errors import SettingsError
from dynbench.harness.gate.settings import (
    Override,
    Settings,
    dump_settings,
    names_case,
    parse_settings,
    read_settings,
)

TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)
SHARES = st.none() | st.floats(0, 10)
SETTINGS = st.builds(
    Settings,
    threshold=st.floats(0, 10),
    floor_us=st.floats(0, 1e6),
    confidence=st.floats(0.5, 0.9999),
    min_rounds=st.integers(2, 5),
    max_rounds=st.integers(5, 1000),
    retest=st.booleans(),
    strict=st.booleans(),
    tolerated_throttling=st.lists(TEXT, max_size=3).map(tuple),
    run=st.dictionaries(TEXT, st.integers(0, 9) | TEXT | st.lists(st.integers(0, 9), max_size=3)),
    override=st.lists(
        st.builds(Override, case=TEXT, threshold=SHARES, floor_us=SHARES), max_size=3
    ).map(tuple),
)


@given(SETTINGS)
def test_printed_settings_are_read_back(settings):
    assert parse_settings(tomllib.loads(dump_settings(settings))) == settings


def test_the_defaults_are_those_of_an_empty_file(tmp_path):
    (tmp_path / "empty.toml").write_text("")
    assert read_settings(tmp_path / "empty.toml") == Settings()
    assert Settings().threshold == 0.03


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("treshold = 0.05", "unknown key 'treshold': did you mean 'threshold'?"),
        ("override = [{case = 'x', treshold = 1}]", "override: unknown key 'treshold'"),
        ("[[override]]\nthreshold = 0.1", "has no case"),
        ("threshold = '3 %'", "threshold = '3 %': must be a number"),
        ("threshold = true", "must be a number"),
        ("threshold = -0.1", "threshold = -0.1: must lie between 0 and 10"),
        ("threshold = nan", "must lie between"),
        ("min_rounds = 1", "min_rounds = 1: must lie between 2"),
        ("min_rounds = 2.5", "must be a whole number"),
        ("min_rounds = 9\nmax_rounds = 8", "max_rounds = 8: must be at least min_rounds = 9"),
        ("strict = 1", "must be true or false"),
        ("run = 'seq'", "must be a table"),
        ("tolerated_throttling = 'all'", "must be a list of texts"),
        ("[[override]]\ncase = 'x'\nfloor_us = -1", "override 'x': floor_us = -1"),
        ("threshold = ", "Invalid value"),
    ],
)
def test_what_makes_no_sense_is_refused_in_one_line(text, complaint, tmp_path):
    path = tmp_path / "gate.toml"
    path.write_text(text)
    with pytest.raises(SettingsError) as refusal:
        read_settings(path)
    assert complaint in str(refusal.value)
    assert str(path) in str(refusal.value)
    assert refusal.value.exit_code == 2


def test_the_documented_file_has_the_defaults_and_all_of_them():
    text = (Path(__file__).parents[3] / "docs" / "gate.md").read_text(encoding="utf-8")
    (block,) = re.findall(r"```toml\n(.*?)```", text, re.DOTALL)
    documented = parse_settings(tomllib.loads(block))
    assert replace(documented, run={}, override=()) == Settings()
    assert set(tomllib.loads(block)) == {f.name for f in fields(Settings)}
    assert documented.override


def test_a_file_that_is_not_there(tmp_path):
    with pytest.raises(SettingsError, match="No such file"):
        read_settings(tmp_path / "nothing.toml")


def test_limits_of_single_cases():
    settings = Settings(
        override=(
            Override("attention/nsa*", threshold=0.1),
            Override("*T=8k*", floor_us=50.0),
            Override("abcd", threshold=0.2),
        )
    )
    assert settings.limits("0" * 16, "attention/sdpa forward T=1k") == (0.03, 1.0)
    assert settings.limits("0" * 16, "attention/nsa forward T=8k") == (0.1, 50.0)
    assert settings.limits("abcd" * 4, "attention/nsa forward T=1k") == (0.2, 1.0)


@pytest.mark.parametrize(
    ("pattern", "means"),
    [("abcd", True), ("abc", False), ("bcde", False), ("*nsa*", True), ("nsa", False)],
)
def test_a_pattern_is_of_the_label_or_the_start_of_an_id(pattern, means):
    assert names_case(pattern, "abcdef0123456789", "attention/nsa forward T=8k") == means
