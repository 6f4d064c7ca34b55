"""Suite generation: right steps pass, wrong ones fail, every call does the same work."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from dynbench.harness.measure import Limits, measure
from dynbench.harness.schema import complete_row
from dynbench.harness.subject import Unsupported
from dynbench.suites.coretrace import with_experts
from dynbench.suites.generation import GenerationCall
from dynbench.suites.modeltext import text_ids
from dynbench.suites.plan import PlanOptions, plan
from dynbench.suites.prepare import prepare
from dynbench.suites.spec import Spec
from dynbench.suites.stepmodel import step_model
from dynnsiha.attention.cache import KVCache

from . import small_models
from .small_models import SHAPE, every_provider


def case_of(provider, seq_len=150, **changes):
    return small_models.case_of("generation", provider, seq_len, **changes)


def call_of(provider, seq_len=150, **changes):
    spec = Spec.of(case_of(provider, seq_len, **changes))
    call = GenerationCall(spec, step_model(spec), text_ids(spec, spec.seq_len + 1))
    call.read_prompt()
    return call


@every_provider
@pytest.mark.parametrize("seq_len", [1, 64, 150, 256])
def test_steps_pass(provider, seq_len):
    subject = prepare(case_of(provider, seq_len))
    subject.setup()
    found = subject.check(subject.run())
    assert found.passed, found
    assert found.rms_error < 1e-4


@every_provider
def test_steps_in_low_precision_pass(provider):
    for seed in range(4):
        call = call_of(provider, 200, dtype="bfloat16", seed=seed)
        found = call.check(call.step())
        assert found.passed, found


@every_provider
def test_every_call_does_the_same_work(provider):
    call = call_of(provider, 64)
    first = call.step()
    assert call.cache.lengths == (65, 65)
    held = [x.clone() for x in cache_tensors(call)]
    for _ in range(3):
        assert torch.equal(call.step(), first)
    assert call.cache.lengths == (65, 65)
    assert all(map(torch.equal, held, cache_tensors(call)))


def caches(call) -> list[KVCache]:
    return [
        one
        for layer in call.cache.layers
        for one in ([layer] if isinstance(layer, KVCache) else list(layer))
    ]


def cache_tensors(call) -> list[torch.Tensor]:
    parts = [x for one in caches(call) for x in (one.k, one.v, one.k_cmp, one.v_cmp, one.shared)]
    return [x for x in parts if x is not None]


@every_provider
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("shift", [1, -150])
def test_steps_at_a_wrong_position_fail(provider, dtype, shift):
    call = call_of(provider, dtype=dtype)
    first = call.cache.layers[0]
    right = first.positions
    first.positions = lambda count: right(count) + shift
    assert not call.check(call.step()).passed


@every_provider
@pytest.mark.parametrize("part", ["k", "v"])
def test_steps_over_a_wrong_cache_fail(provider, part):
    """In the second layer alone: rows of other tokens.

    Keys eight times as large, too: attention of an untrained layer is nearly even, whatever its
    keys are, and sparse layers are allowed what another choice of blocks may do.
    """
    call = call_of(provider)
    kept = getattr(caches(call)[1], part)
    kept[:, :, :150] = kept[:, :, :150].roll(64, 2) * (8 if part == "k" else 1)
    assert not call.check(call.step()).passed


@every_provider
def test_spoilt_logits_fail(provider):
    call = call_of(provider)
    logits = call.step()
    assert call.check(logits).passed
    assert not call.check(1.05 * logits).passed
    assert not call.check(logits[:1]).passed
    assert not call.check(logits.double()).passed
    logits[1, 7] = float("nan")
    assert "logits is not finite at [1, 7]" in call.check(logits).problem


@pytest.mark.parametrize("provider", ["flat", "recursive"])
def test_steps_that_take_the_wrong_experts_fail(provider):
    call = call_of(provider)
    router = (call.model.experts.sequence[1]).mlp.router
    forward = router.forward

    def worst_experts(x):
        choice = forward(x)
        if x.shape[1] > 1:
            return choice
        indices = choice.logits.topk(2, largest=False).indices
        return with_experts(router, choice.logits, indices)

    router.forward = worst_experts
    assert "100% of the sequences took an expert" in call.check(call.step()).problem


def test_the_row_tells_cache_first_token_and_rate():
    case = case_of("dynnsiha", 256)
    row = complete_row(measure(prepare(case), case, {}, None, Limits.quick()))
    assert row["status"] == "ok", row["reason"]
    assert row["tokens_per_s"] == pytest.approx(2 / row["latency_ms"] * 1e3)
    assert row["first_token_ms"] > row["latency_ms"]
    tokens, windows, tiles = 256, 4, 16
    lists = 2 * tiles * 5 * 4  # of both K/V heads, without the private blocks
    assert row["cache_bytes"] == 2 * 2 * (2 * 2 * 8 * (tokens + windows) * 4 + lists)
    assert row["backend"] == "cached"
    assert row["mean_blocks"] == 5  # all there are
    assert row["attended_share"] == 1.0
    assert 0.2 < row["activation_rate"] < 0.8
    assert row["flops"] < row["dense_flops"] * 1.5
    assert row["parameters"] > 5121 * 24


def test_sparse_steps_leave_keys_out():
    call = call_of("nsa", 1000)
    facts = call.facts()
    assert facts["mean_blocks"] == 6
    assert 0.5 < facts["sparsity"] < 0.75
    assert call_of("sdpa").facts()["sparsity"] == 0.0


@pytest.mark.parametrize(
    ("provider", "changes", "message"),
    [
        ("sdpa:math", {}, "sdpa:math: a model takes torch's own choice, use sdpa"),
        ("transformer", {}, "transformer has no part in suite generation: use --suite layer"),
        ("flex", {}, "flex has no part in suite generation: use --suite attention or layer"),
        ("sdpa", {"shapes": (replace(SHAPE, head_dim=7),)}, "head_dim=7"),
    ],
)
def test_what_has_no_model_says_so(provider, changes, message):
    with pytest.raises(Unsupported, match=message):
        prepare(case_of(provider, **changes))


def test_an_own_kernel_has_no_model(tmp_path):
    path = tmp_path / "mine.py"
    path.write_text("def attention(q, k, v): return q")
    request = PlanOptions((64,), "cpu", suite="generation", providers=("sdpa",))
    cases = plan(replace(request, provider_files=(path,)))
    with pytest.raises(Unsupported, match="mine has no language model: use sdpa, nsa"):
        prepare(cases[-1], [path])
