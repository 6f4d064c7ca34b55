"""Checks of suite attention must pass what is right and fail what is wrong."""

import importlib.util
from pathlib import Path

import pytest
import torch

from dynbench.harness.case import Case
from dynbench.harness.subject import Correctness, Subject, Unsupported
from dynbench.suites.plan import PlanOptions, plan
from dynbench.suites.prepare import prepare
from dynbench.suites.shapes import Shape

_FILE = Path(__file__).with_name("planted_kernels.py")
_SPEC = importlib.util.spec_from_file_location("planted_kernels", _FILE)
assert _SPEC is not None
assert _SPEC.loader is not None
planted = importlib.util.module_from_spec(_SPEC)
_SPEC.loader.exec_module(planted)

WHOLE, SAMPLED = 320, 1500
GROUPED = Shape("", 4, 2, 16)


def run(subject: Subject) -> Correctness:
    if subject.setup is not None:
        subject.setup()
    return subject.check(subject.run())


def built_in(provider, pass_="forward", seq_len=200, **changes):
    options = {"shapes": (GROUPED,), "batch": 2, "query_tiles": (16,)} | changes
    request = PlanOptions((seq_len,), "cpu", providers=(provider,), passes=(pass_,), **options)
    return plan(request)[0]


def own_file(tmp_path, text, pass_, seq_len):
    path = tmp_path / "mine.py"
    path.write_text(text)
    shape = Shape("", 2, 1, 16)
    request = PlanOptions(
        (seq_len,),
        "cpu",
        providers=("mine",),
        passes=(pass_,),
        shapes=(shape,),
        provider_files=(path,),
    )
    return run(prepare(plan(request)[0], [str(path)]))


@pytest.mark.parametrize("pass_", ["forward", "backward", "forward_backward"])
@pytest.mark.parametrize("provider", ["sdpa", "sdpa:math", "nsa", "dynsiha", "dynnsiha"])
@pytest.mark.parametrize("seq_len", [1, 65, 333])
def test_built_in_providers_pass(provider, pass_, seq_len):
    found = run(prepare(built_in(provider, pass_, seq_len)))
    assert found.passed, found
    assert found.rms_error < 1e-5
    assert (found.dense_error is None) == (pass_ == "backward")


@pytest.mark.parametrize("branches", [("compressed", "selected"), ("selected",)])
@pytest.mark.parametrize("provider", ["nsa", "dynnsiha"])
def test_branches_may_be_left_out(provider, branches):
    found = run(prepare(built_in(provider, "forward_backward", 333, branches=branches)))
    assert found.passed, found
    assert f"; branches {' and '.join(branches)} alone" in found.checked


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize("provider", ["sdpa", "nsa", "dynnsiha"])
def test_low_precision_passes_within_its_own_tolerance(provider, dtype):
    found = run(prepare(built_in(provider, "forward_backward", 300, dtype=dtype)))
    assert found.passed, found
    assert found.rms_error > 1e-5
    assert 5e-3 <= found.rms_tolerance < 3e-2


@pytest.mark.parametrize("provider", ["sdpa", "nsa", "dynnsiha"])
def test_long_sequences_are_sampled_and_pass(provider):
    found = run(prepare(built_in(provider, "forward_backward", SAMPLED, batch=1)))
    assert found.passed, found
    assert " rows of 2 of 2 K/V heads" in found.checked


def test_as_many_blocks_as_there_are_is_nearly_dense():
    """With every block listed and only the selected branch left apart, nothing else is left out."""
    few = run(prepare(built_in("nsa", seq_len=640, batch=1, top_n=3, window=1)))
    many = run(prepare(built_in("nsa", seq_len=640, batch=1, top_n=50, window=1)))
    assert few.passed
    assert many.passed
    assert few.dense_error != many.dense_error


@pytest.mark.parametrize(("pass_", "seq_len"), [("forward_backward", WHOLE), ("forward", SAMPLED)])
@pytest.mark.parametrize("name", list(planted.RIGHT_DENSE))
def test_right_own_kernels_pass(tmp_path, name, pass_, seq_len):
    found = own_file(tmp_path, planted.source(planted.RIGHT_DENSE[name]), pass_, seq_len)
    assert found.passed, found


@pytest.mark.parametrize("seq_len", [WHOLE, SAMPLED])
@pytest.mark.parametrize("name", list(planted.WRONG_DENSE))
def test_wrong_own_kernels_fail(tmp_path, name, seq_len):
    found = own_file(tmp_path, planted.source(planted.WRONG_DENSE[name]), "forward", seq_len)
    assert not found.passed, found


@pytest.mark.parametrize("seq_len", [WHOLE, SAMPLED])
@pytest.mark.parametrize("name", list(planted.WRONG_DENSE_BACKWARD))
def test_wrong_own_gradients_fail(tmp_path, name, seq_len):
    text = planted.source(planted.WRONG_DENSE_BACKWARD[name])
    assert not own_file(tmp_path, text, "backward", seq_len).passed
    assert own_file(tmp_path, text, "forward", seq_len).passed


@pytest.mark.parametrize("seq_len", [WHOLE, SAMPLED])
@pytest.mark.parametrize("name", list(planted.RIGHT_SPARSE))
def test_right_own_sparse_kernels_pass(tmp_path, name, seq_len):
    text = planted.source(planted.RIGHT_SPARSE[name], sparse=True)
    found = own_file(tmp_path, text, "forward_backward", seq_len)
    assert found.passed, found
    assert ("lists unknown" in found.checked) == (name == "silent")


@pytest.mark.parametrize("name", list(planted.WRONG_SPARSE))
def test_wrong_own_sparse_kernels_fail(tmp_path, name):
    text = planted.source(planted.WRONG_SPARSE[name], sparse=True)
    found = own_file(tmp_path, text, "forward", SAMPLED)
    assert not found.passed, found


@pytest.mark.parametrize("change", ["window=500", "top_n=4"])
def test_silent_sparse_kernels_must_be_right_in_the_typical_row(tmp_path, change):
    """Without lists a few rows may differ by another block; here most of them are slightly off."""
    text = planted.source(
        f"    return run(q, k, v, gates, replace(config, {change}))[0]", sparse=True
    )
    found = own_file(tmp_path, text, "forward", SAMPLED)
    assert "typical row" in found.checked
    assert not found.passed, found


def test_unwritten_values_are_named_where_no_row_is_sampled(tmp_path):
    text = planted.source(planted.WRONG_DENSE["unwritten_row"])
    assert "o is not finite at [0, 77" in own_file(tmp_path, text, "forward", SAMPLED).problem


def test_a_kernel_without_gradient_is_unsupported_backward(tmp_path):
    text = planted.source("    return dense(q, k, v).detach()")
    assert own_file(tmp_path, text, "forward", 64).passed
    with pytest.raises(Unsupported, match="mine has no gradient"):
        own_file(tmp_path, text, "backward", 64)


def test_a_check_that_failed_can_pass_later_and_the_other_way_round():
    subject = prepare(built_in("dynnsiha"))
    (good,) = subject.run()
    bad = good.clone()
    bad[1, 150] = float("nan")
    passed = [subject.check((o,)).passed for o in (good, bad, good)]
    assert passed == [True, False, True]


def test_backward_can_run_again_and_again():
    subject = prepare(built_in("dynnsiha", "backward"))
    subject.setup()
    first, second = subject.run(), subject.run()
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    assert all(a.data_ptr() != b.data_ptr() for a, b in zip(first, second, strict=True))


def test_facts_are_columns_of_the_row():
    from dynbench.harness.schema import complete_row

    for provider in ("sdpa", "nsa", "dynnsiha"):
        subject = prepare(built_in(provider, seq_len=1500, window=64, top_n=6))
        subject.run()
        facts = subject.facts()
        complete_row(dict(facts))
        if provider == "sdpa":
            assert facts == {"attended_share": 1.0, "sparsity": 0.0}
        else:
            assert facts["backend"] == "blockwise"
            assert 0.2 < facts["sparsity"] < 0.8
            assert 3 < facts["mean_blocks"] <= 6


def test_more_sharing_means_more_overlap():
    overlap = {}
    for tile in (1, 16):
        axes = {"query_tiles": (tile,), "private_blocks": (0,), "top_n": 6}
        subject = prepare(built_in("dynnsiha", seq_len=1500, **axes))
        subject.run()
        overlap[tile] = subject.facts()["list_overlap"]
    assert overlap[1] < 0.85
    assert overlap[16] > 0.95


def test_a_case_survives_its_journey_as_json():
    case = built_in("dynnsiha")
    assert run(prepare(Case.from_json(case.to_json()))).passed
