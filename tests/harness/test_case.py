"""Ids of cases: stable, canonical, and different where the work differs."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dynbench.harness.case import SETTING_COLUMNS, WORKLOAD_COLUMNS, Case
from dynbench.harness.schema import COLUMNS, complete_row

VALUES = st.one_of(st.integers(0, 2**40), st.floats(0, 1), st.text(max_size=8))
WORKLOADS = st.dictionaries(st.sampled_from(WORKLOAD_COLUMNS), VALUES)
SETTINGS = st.dictionaries(st.sampled_from(SETTING_COLUMNS), VALUES)


def make(workload: dict[str, Any], settings: dict[str, Any], **changed: str) -> Case:
    names = {
        "suite": "attention",
        "provider": "nsa",
        "pass_": "forward",
        "device": "cpu",
        "dtype": "float32",
        "timer": "wall",
    }
    return Case(**{**names, **changed}, workload=workload, settings=settings)


@given(WORKLOADS, SETTINGS, st.randoms())
def test_ids_do_not_depend_on_the_order_of_keys(workload, settings, random):
    def shuffled(values):
        items = list(values.items())
        random.shuffle(items)
        return dict(items)

    first, second = make(workload, settings), make(shuffled(workload), shuffled(settings))
    assert first.case_id == second.case_id
    assert first.workload_id == second.workload_id


@given(WORKLOADS, SETTINGS)
def test_json_gives_the_same_case_back(workload, settings):
    case = make(workload, settings)
    again = Case.from_json(json.loads(json.dumps(case.to_json())))
    assert again == case
    assert again.case_id == case.case_id


@given(WORKLOADS, SETTINGS, st.sampled_from(WORKLOAD_COLUMNS), st.integers(2**41, 2**42))
def test_another_workload_has_other_ids(workload, settings, key, value):
    first, second = make(workload, settings), make({**workload, key: value}, settings)
    assert first.workload_id != second.workload_id
    assert first.case_id != second.case_id


@given(WORKLOADS, SETTINGS, st.sampled_from(SETTING_COLUMNS), st.integers(2**41, 2**42))
def test_settings_change_the_case_and_not_the_workload(workload, settings, key, value):
    first, second = make(workload, settings), make(workload, {**settings, key: value})
    assert first.workload_id == second.workload_id
    assert first.case_id != second.case_id


@pytest.mark.parametrize(
    ("changed", "same_workload"),
    [
        ({"provider": "sdpa"}, True),
        ({"timer": "event"}, True),
        ({"pass_": "backward"}, False),
        ({"dtype": "bfloat16"}, False),
        ({"device": "cuda"}, False),
        ({"suite": "layer"}, False),
    ],
)
def test_what_a_workload_is(changed, same_workload):
    first, second = make({"seq_len": 8192}, {}), make({"seq_len": 8192}, {}, **changed)
    assert first.case_id != second.case_id
    assert (first.workload_id == second.workload_id) is same_workload


def test_ids_are_those_of_earlier_versions():
    """Stored rows are matched by these: a change here needs a new schema version."""
    case = make({"seq_len": 8192, "q_heads": 1}, {"top_n": 16})
    assert (case.workload_id, case.case_id) == ("a000478b0881e2ef", "132d973127c1aaa2")


def test_columns_are_columns_of_the_schema():
    case = make(dict.fromkeys(WORKLOAD_COLUMNS, 1), dict.fromkeys(SETTING_COLUMNS, 1))
    assert set(case.columns()) <= set(COLUMNS)
    assert case.columns()["pass"] == "forward"


def test_an_unknown_parameter_is_named():
    with pytest.raises(KeyError, match="seqlen"):
        make({"seqlen": 8192}, {})


def test_label():
    assert make({"seq_len": 8192}, {}).label == "attention/nsa forward T=8192"


@pytest.mark.parametrize("settings", [{}, {"top_n": 16}, {"top_n": 16, "backend": "blockwise"}])
@pytest.mark.parametrize("measured", [{}, {"backend": "blockwise"}])
def test_a_row_leads_back_to_its_case(settings, measured):
    case = make({"seq_len": 8192, "inputs": "normal"}, settings)
    row = complete_row({**case.columns(), **measured})
    assert Case.from_row(row) == case


def test_a_row_that_does_not_is_told_from_one_that_does():
    case = make({"seq_len": 8192}, {"top_n": 16})
    assert Case.from_row(complete_row({**case.columns(), "top_n": 8})) is None
    assert Case.from_row(complete_row({**case.columns(), "case_id": "0" * 16})) is None
