"""Suite layer: right layers pass, wrong ones fail."""

from dataclasses import replace

import pytest
import torch

from dynbench.harness.subject import Unsupported
from dynbench.suites import layer as layer_module
from dynbench.suites import sampling
from dynbench.suites.inputs import layer_inputs
from dynbench.suites.layer import LayerCall, build_layer
from dynbench.suites.plan import PlanOptions, plan
from dynbench.suites.prepare import prepare
from dynbench.suites.providers.loading import load_provider
from dynbench.suites.shapes import Shape
from dynbench.suites.spec import Spec
from dynnsiha.forms.dispatch import Dispatch

SHAPE = Shape("", 4, 2, 8, model_dim=24)
SINGLE = ["sdpa", "nsa", "dynsiha", "dynnsiha", "dimension"]
BLOCKS = ["flat", "recursive", "transformer"]
PROVIDERS = SINGLE + BLOCKS


def case_of(provider, pass_="forward", seq_len=150, **changes):
    options = {"shapes": (SHAPE,), "batch": 2, "query_tiles": (16,)} | changes
    request = PlanOptions(
        (seq_len,), "cpu", suite="layer", providers=(provider,), passes=(pass_,), **options
    )
    return plan(request)[0]


def call_of(provider, pass_="forward", seq_len=150, **changes):
    spec = Spec.of(case_of(provider, pass_, seq_len, **changes))
    return LayerCall(spec, build_layer(spec, load_provider(spec)), layer_inputs(spec))


@pytest.fixture
def little_budget(monkeypatch):
    """Makes short sequences large: sampled rows, a tail of keys and a further call."""
    monkeypatch.setitem(sampling.WHOLE_PAIRS, "cpu", 2**10)
    monkeypatch.setitem(sampling.GRADIENT_PAIRS, "cpu", 2**20)


@pytest.mark.parametrize("pass_", ["forward", "backward", "forward_backward"])
@pytest.mark.parametrize("provider", PROVIDERS)
@pytest.mark.parametrize("seq_len", [1, 150])
def test_layers_pass(provider, pass_, seq_len):
    subject = prepare(case_of(provider, pass_, seq_len))
    if subject.setup:
        subject.setup()
    found = subject.check(subject.run())
    assert found.passed, found
    assert found.rms_error < 1e-4
    assert found.checked.startswith("whole")


def test_layers_without_a_window_pass():
    call = call_of("dynnsiha", "forward_backward", branches=("compressed", "selected"))
    assert call.check(call.forward_backward()).passed
    assert call.facts()["attended_share"] <= 1


@pytest.mark.parametrize("pass_", ["backward", "forward_backward"])
@pytest.mark.parametrize("provider", SINGLE)
def test_long_layers_pass_sampled(provider, pass_, little_budget):
    call = call_of(provider, pass_, 700)
    call.keep_forward() if pass_ == "backward" else None
    outputs = call.backward() if pass_ == "backward" else call.forward_backward()
    found = call.check(outputs)
    assert found.passed, found
    assert "dx on the last" in found.checked
    assert "in a further call" in found.checked


@pytest.mark.parametrize("pass_", ["forward", "backward", "forward_backward"])
@pytest.mark.parametrize("provider", BLOCKS)
def test_long_layers_of_several_blocks_pass_on_their_first_tokens(provider, pass_, monkeypatch):
    monkeypatch.setitem(sampling.GRADIENT_PAIRS, "cpu", 2**17)
    call = call_of(provider, pass_, 300)
    call.keep_forward() if pass_ == "backward" else None
    outputs = getattr(call, pass_)()
    found = call.check(outputs)
    assert found.passed, found
    assert "the first 128 tokens" in found.checked
    for index in range(len(outputs)):
        assert not call.check(spoilt(outputs, index, 1.02)).passed
    if pass_ != "forward":
        wrong = call_of(provider, pass_, 300)
        wrong.keep_forward() if pass_ == "backward" else None
        right = wrong.gradients_for
        wrong.gradients_for = lambda d_out: spoilt(right(d_out), 3, 1.01)
        assert not wrong.check(getattr(wrong, pass_)()).passed


@pytest.mark.parametrize("provider", ["flat", "recursive"])
def test_layers_that_take_the_wrong_experts_fail(provider):
    call = call_of(provider)
    router = call.layer.sequence[1].mlp.router
    forward = router.forward

    def worst_expert(x):
        choice = forward(x)
        indices = torch.cat((choice.indices[..., :1], choice.logits.argmin(-1, True)), -1)
        weights = router.prototypes.weights(choice.logits).gather(-1, indices)
        dispatch = Dispatch.of(indices.flatten(0, 1), router.experts)
        return replace(choice, indices=indices, weights=weights, dispatch=dispatch)

    router.forward = worst_expert
    found = call.check(call.forward())
    assert not found.passed
    assert "100.00% of the tokens took an expert" in found.problem


def test_blocks_with_another_attention_fail():
    call = call_of("recursive")
    core = call.layer.block.heads.core
    attention = core.attention
    core.attention = lambda q, k, v: attention(q.roll(1, 1), k, v)
    assert not call.check(call.forward()).passed


@pytest.mark.parametrize("provider", ["sdpa", "dynnsiha", *BLOCKS])
def test_low_precision_layers_pass(provider):
    call = call_of(provider, "forward_backward", dtype="bfloat16")
    found = call.check(call.forward_backward())
    assert found.passed, found
    assert found.rms_error > 1e-4


def test_wrong_gradients_fail_in_low_precision_too():
    """Ten per cent are far beyond what plain torch in bfloat16 makes of the same layer."""
    call = call_of("dynnsiha", "forward_backward", dtype="bfloat16", seq_len=256)
    outputs = call.forward_backward()
    assert call.check(outputs).passed
    assert not call.check((outputs[0], *(1.15 * gradient for gradient in outputs[1:]))).passed


def spoilt(outputs, index, factor):
    return tuple(o * factor if i == index else o for i, o in enumerate(outputs))


@pytest.mark.parametrize("provider", PROVIDERS)
def test_every_spoilt_output_fails(provider):
    call = call_of(provider, "forward_backward")
    outputs = call.forward_backward()
    assert call.check(outputs).passed
    for index in range(len(outputs)):
        assert not call.check(spoilt(outputs, index, 1.02)).passed
    unwritten = outputs[0].clone()
    unwritten[1, 33] = float("nan")
    assert not call.check((unwritten, *outputs[1:])).passed
    assert not call.check((outputs[0].double(), *outputs[1:])).passed


def test_a_layer_with_other_parameters_fails_and_so_does_one_with_other_attention():
    call = call_of("dynnsiha")
    with torch.no_grad():
        y = call.forward()
        call.layer.output.bias += 1.0
        changed = call.forward()
        call.layer.output.bias -= 1.0
    assert call.check(y).passed
    assert not call.check(changed).passed
    dense = call_of("dynsiha")
    assert not call.check(dense.forward()).passed


def test_wrong_gradients_of_parameters_fail_in_the_further_call(little_budget):
    call = call_of("sdpa", "backward", 700)
    right = call.gradients_for
    call.gradients_for = lambda d_out: spoilt(right(d_out), 1, 1.01)
    call.keep_forward()
    found = call.check(call.backward())
    assert not found.passed
    assert "of rows" in found.checked


def test_own_kernels_stand_between_plain_projections(tmp_path):
    texts = {
        "dense": "from dynnsiha.forms.layer import causal_attention as attention",
        "early": (
            "from dynnsiha.forms.layer import causal_attention\n"
            "def attention(q, k, v):\n    return causal_attention(q.roll(1, 1), k, v)"
        ),
        "sparse": (
            "from dynnsiha import native_sparse_attention\nREFERENCE = 'dynnsiha'\n"
            "def attention(*operands):\n    return native_sparse_attention(*operands)"
        ),
        "leaky": (
            "from dynnsiha import native_sparse_attention\nREFERENCE = 'nsa'\n"
            "def attention(q, *rest):\n    return native_sparse_attention(q.roll(1, 1), *rest)"
        ),
    }
    passed = {}
    for name, text in texts.items():
        path = tmp_path / f"{name}.py"
        path.write_text(text)
        case = case_of(name, "forward_backward", provider_files=(path,))
        subject = prepare(case, [path])
        passed[name] = subject.check(subject.run()).passed
        assert "activation_rate" not in subject.facts()
    assert passed == {"dense": True, "early": False, "sparse": True, "leaky": False}


def test_facts_of_a_synthesised_layer():
    call = call_of("dynnsiha", seq_len=900, window=64, top_n=6)
    call.forward()
    facts = call.facts()
    assert facts["backend"] == "blockwise"
    assert 0 < facts["sparsity"] < 1
    assert 0.3 < facts["activation_rate"] < 0.8
    assert call_of("sdpa").facts() == {"attended_share": 1.0, "sparsity": 0.0}


def test_providers_of_plain_projections_have_the_same_input():
    one, other = (call_of(name).inputs.x for name in ("sdpa", "dynnsiha"))
    assert torch.equal(one, other)


def test_heads_that_rotary_positions_cannot_turn_are_unsupported():
    with pytest.raises(Unsupported, match="head_dim=7"):
        prepare(case_of("dynsiha", shapes=(replace(SHAPE, head_dim=7),)))


def test_activation_rate_looks_at_a_bounded_number_of_tokens(monkeypatch):
    monkeypatch.setattr(layer_module, "ACTIVATION_TOKENS", 16)
    call = call_of("dynsiha")
    seen = []
    forward = call.layer.forward
    monkeypatch.setattr(
        call.layer, "forward", lambda x, **options: seen.append(x.shape[1]) or forward(x, **options)
    )
    assert 0 < call.facts()["activation_rate"] < 1
    assert seen == [16]
