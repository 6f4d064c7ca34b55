"""Suite training: right steps pass, wrong ones fail, and no step changes the model."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from dynbench.harness.measure import Limits, measure
from dynbench.harness.schema import complete_row
from dynbench.harness.subject import Unsupported
from dynbench.suites import sampling
from dynbench.suites.coretrace import with_experts
from dynbench.suites.modeltext import text_ids
from dynbench.suites.plan import PlanOptions, plan
from dynbench.suites.prepare import prepare
from dynbench.suites.shapes import Shape
from dynbench.suites.spec import Spec
from dynbench.suites.stepmodel import step_model
from dynbench.suites.training import TrainingCall

from . import small_models
from .small_models import every_provider


def case_of(provider, seq_len=150, **changes):
    return small_models.case_of("training", provider, seq_len, **changes)


def call_of(provider, seq_len=150, **changes):
    spec = Spec.of(case_of(provider, seq_len, **changes))
    return TrainingCall(spec, step_model(spec), text_ids(spec, spec.seq_len))


def spoilt(outputs, index, factor):
    return tuple(o * factor if i == index else o for i, o in enumerate(outputs))


@every_provider
@pytest.mark.parametrize("seq_len", [2, 150])
def test_steps_pass(provider, seq_len):
    subject = prepare(case_of(provider, seq_len))
    found = subject.check(subject.run())
    assert found.passed, found
    assert found.checked.startswith("whole loss, parameter gradients")
    assert found.rms_error < 1e-3


@every_provider
def test_steps_in_low_precision_pass(provider):
    call = call_of(provider, dtype="bfloat16")
    for _ in range(3):
        found = call.check(call.step())
        assert found.passed, found


def test_experts_chosen_in_low_precision_pass_in_a_deeper_model():
    # Plain torch takes other experts for some of these tokens, too: rounding grows by the block.
    shape = Shape("", 4, 2, 8, model_dim=64)
    call = call_of("flat", shapes=(shape,), layers=4, dtype="bfloat16")
    found = call.check(call.step())
    assert found.passed, found


@every_provider
def test_no_step_changes_the_model(provider):
    call = call_of(provider, 64)
    before = [parameter.detach().clone() for parameter in call.model.parameters()]
    first = call.step()
    for _ in range(40):
        again = call.step()
    assert all(map(torch.equal, before, call.model.parameters()))
    assert all(map(torch.equal, first, again))
    assert call.check(again).passed
    assert all(parameter.grad is None for parameter in call.model.parameters())


@every_provider
def test_every_spoilt_output_fails(provider):
    call = call_of(provider, 70)
    outputs = call.step()
    assert call.check(outputs).passed
    for index in range(len(outputs)):
        assert not call.check(spoilt(outputs, index, 1.02)).passed
    assert not call.check(outputs[:-1]).passed
    outputs[-1][0, 0] = float("nan")
    assert "is not finite at [0, 0]" in call.check(outputs).problem


@every_provider
def test_long_steps_pass_on_their_first_tokens(provider, monkeypatch):
    monkeypatch.setitem(sampling.GRADIENT_PAIRS, "cpu", 2**18)
    call = call_of(provider, 300)
    outputs = call.step()
    found = call.check(outputs)
    assert found.passed, found
    assert "of the first" in found.checked
    for index in range(len(outputs)):
        assert not call.check(spoilt(outputs, index, 1.02)).passed
    wrong = call_of(provider, 300)
    right = wrong.gradients_of
    wrong.gradients_of = lambda predictions: spoilt(right(predictions), 3, 1.02)
    assert not wrong.check(wrong.step()).passed


@every_provider
def test_a_model_that_sees_the_future_fails(provider):
    call = call_of(provider)
    core = next(m for name, m in call.model.named_modules() if name.endswith(".core"))
    forward = core.forward
    core.forward = lambda q, k, v, x, **more: forward(q, k.roll(-1, 1), v.roll(-1, 1), x, **more)
    assert not call.check(call.step()).passed


@pytest.mark.parametrize("provider", ["flat", "recursive"])
def test_steps_that_take_the_wrong_experts_fail(provider):
    call = call_of(provider)
    router = call.model.experts.sequence[1].mlp.router
    forward = router.forward

    def worst_experts(x):
        logits = forward(x).logits
        return with_experts(router, logits, logits.topk(2, largest=False).indices)

    router.forward = worst_experts
    assert "of the tokens took an expert that was not among the best" in (
        call.check(call.step()).problem
    )


def test_worse_blocks_than_the_best_are_named():
    call = call_of("nsa", 800)
    core = call.model.blocks[1].attention.core
    forward = core.forward

    def other_blocks(q, k, v, x, **more):
        o, routing = forward(q, k, v, x, **more)
        if routing.attention is None:
            return o, routing
        lists = routing.attention.block_indices.clone()
        lists[:, -1] = torch.tensor([0, 12, 11, 1, 2, 3])
        return o, replace(routing, attention=replace(routing.attention, block_indices=lists))

    core.forward = other_blocks
    problem = call.check(call.step()).problem
    assert problem.startswith("blocks.1.attention.core: list of query 799")


def test_an_optimizer_that_does_not_step_is_found():
    call = call_of("sdpa", 64)
    call.optimizer.step = lambda: None
    assert "no optimizer step for" in call.check(call.step()).problem


def test_gradients_that_add_up_from_call_to_call_are_found():
    call = call_of("sdpa", 64)
    zero = call.optimizer.zero_grad
    call.step()
    call.optimizer.zero_grad = lambda **_: None
    call.step()
    outputs = tuple(x.clone() for x in call.step())
    assert not call.check(outputs).passed
    zero()


def test_steps_that_change_the_model_are_found():
    call = call_of("sdpa", 64)
    call.optimizer.param_groups[0]["lr"] = 1e-3
    assert call.check(call.step()).problem.startswith("steps changed ")


def test_the_row_tells_tokens_and_sparsity():
    case = case_of("dynnsiha", 512)
    row = complete_row(measure(prepare(case), case, {}, None, Limits.quick(), stages=True))
    assert row["status"] == "ok", row["reason"]
    assert row["tokens_per_s"] == pytest.approx(2 * 512 / row["latency_ms"] * 1e3)
    assert 0.05 < row["sparsity"] < 0.5
    assert 0.2 < row["activation_rate"] < 0.8
    assert row["parameters"] > 5121 * 24
    assert row["backend"] == "blockwise"
    assert "compressed" in row["stages_ms"]
    # gradients and AdamW's moments at least
    assert row["peak_memory_bytes"] > 3 * 4 * row["parameters"] * 0.9


@pytest.mark.parametrize(
    ("seq_len", "changes", "message"),
    [
        (1, {}, "seq_len=1: a next character to learn from needs at least 2"),
        (64, {"dtype": "float16"}, "dtype=float16: .* use bfloat16 or float32"),
        (64, {"providers": ("transformer",)}, "use --suite layer"),
        (64, {"providers": ("sdpa:math",)}, "a model takes torch's own choice, use sdpa"),
    ],
)
def test_what_cannot_be_trained_says_so(seq_len, changes, message):
    options = {"providers": ("sdpa",)} | changes
    (case,) = plan(PlanOptions((seq_len,), "cpu", suite="training", **options))
    with pytest.raises(Unsupported, match=message):
        prepare(case)
