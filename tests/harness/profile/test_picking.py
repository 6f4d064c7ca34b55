from __future__ import annotations

import pytest

from dynbench.harness.case import Case
from dynbench.harness.profile.errors import NoSuchCase
from dynbench.harness.profile.picking import cases_of, label_of, pick_case
from dynbench.harness.schema import complete_row


def case(provider: str, seq_len: int = 1024) -> Case:
    settings = {"query_tile": 16, "private_blocks": 2} if provider == "dynnsiha" else {}
    work = {"seq_len": seq_len}
    return Case("attention", provider, "forward", "cpu", "float32", "wall", work, settings)


CASES = [case("sdpa"), case("dynnsiha"), case("dynnsiha", 2048)]


def test_a_case_is_named_by_its_label_or_the_beginning_of_its_id():
    assert label_of(CASES[1]) == "attention/dynnsiha forward T=1k float32 R=16 m=2"
    assert pick_case(CASES, CASES[1].case_id[:6], "here") is CASES[1]
    assert pick_case(CASES, "*dynnsiha*T=2k*", "here") is CASES[2]
    assert pick_case([CASES[0], CASES[0]], None, "here") is CASES[0]


@pytest.mark.parametrize("name", [None, "*dynnsiha*", "nowhere"])
def test_what_means_none_or_several_names_the_cases(name):
    with pytest.raises(NoSuchCase) as caught:
        pick_case(CASES, name, "this run")
    line = str(caught.value)
    assert "this run" in line
    assert "\n" not in line
    shown = CASES[1:] if name == "*dynnsiha*" else CASES
    assert all(case.case_id[:8] in line for case in shown)


def test_a_long_list_is_cut():
    many = [case("sdpa", 1024 + i) for i in range(40)]
    with pytest.raises(NoSuchCase, match=r"40 cases in this run: .* and 28 more"):
        pick_case(many, None, "this run")


def test_rows_lead_back_to_their_cases():
    measured = {**CASES[1].columns(), "backend": "blockwise"}
    astray = {**CASES[0].columns(), "case_id": "0" * 16}
    found = cases_of([complete_row(measured), complete_row(astray)])
    assert found == {CASES[1].case_id: CASES[1]}
