"""Watching a model changes nothing, and shows what each layer did."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from dynnsiha import (
    MoIE,
    SparseBayesianLinear,
    SparseProtoLinear,
    SurpriseAwareRoutingShaping,
)
from dynnsiha.learning import record_routing, watch_routing
from dynnsiha.synthesis import activation_rate

variants = pytest.mark.parametrize("name", ["dynsiha", "dynnsiha exact", "dynnsiha hybrid", "nsa"])


@variants
def test_a_watched_model_returns_the_same_and_no_hook_stays(name, small_model, ids):
    model = small_model(name)
    before = model(*ids)
    seen = []
    with record_routing(model) as calls, watch_routing(model, None, lambda n, r: seen.append(n)):
        assert torch.equal(model(*ids), before)
    assert [call.name for call in calls] == (
        []
        if name == "nsa"
        else [f"blocks.{i}.attention.{part}" for i in (0, 1) for part in ("qkv", "output")]
    )
    assert seen == ["blocks.0.attention", "blocks.1.attention"]
    model(*ids)
    assert len(seen) == 2
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


def test_hooks_go_when_the_model_fails(small_model, ids):
    model = small_model("dynsiha")
    with pytest.raises(ValueError, match="word_ids"), record_routing(model):
        model(ids[0], ids[1][:1])
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


@variants
def test_who_asks_for_routing_still_gets_it(name, small_model, ids):
    model = small_model(name)
    _, expected = model(*ids, return_routing=True)
    routings = {}
    with record_routing(model) as calls, watch_routing(model, None, routings.__setitem__):
        _, given = model(*ids, return_routing=True)
    for i, (routing, other) in enumerate(zip(given, expected, strict=True)):
        assert routings[f"blocks.{i}.attention"] is routing
        if name != "nsa":
            assert torch.equal(routing.qkv, other.qkv)
            assert torch.equal(calls[2 * i].weight, routing.qkv)
        if name != "dynsiha":
            assert torch.equal(routing.gates, other.gates)


def test_blocks_nest(small_model, ids):
    model = small_model("dynsiha")
    with record_routing(model) as outer, record_routing(model) as inner:
        model(*ids)
    assert [c.name for c in outer] == [c.name for c in inner]
    assert all(torch.equal(a.weight, b.weight) for a, b in zip(outer, inner, strict=True))


def test_a_call_of_a_sparse_bayesian_layer():
    torch.manual_seed(0)
    layer = SparseBayesianLinear(6, 5)
    x = torch.randn(2, 7, 6, requires_grad=True)
    with record_routing(layer) as calls:
        y = layer(x)
    (call,) = calls
    assert call.y is y
    assert call.x is x
    assert torch.equal(torch.relu(call.logits()), call.weight)
    torch.testing.assert_close(call.weight * F.linear(call.x, layer.mu), y)
    assert {id(p) for p in call.routing_parameters()} == {id(layer.sigma_raw), id(layer.gate)}
    assert {id(p) for p in call.value_parameters()} == {id(layer.mu), id(layer.bias)}
    call.logits().sum().backward()
    assert x.grad is None


@pytest.mark.parametrize("router", ["dot", "cpr", "capr"])
@pytest.mark.parametrize("way", ["positional", "keyword", "none"])
def test_a_call_of_a_sparse_proto_layer(router, way):
    torch.manual_seed(0)
    layer = SparseProtoLinear(6, 5, router=router)
    x, resident = torch.randn(2, 2, 7, 6, requires_grad=True)
    with record_routing(layer) as calls:
        if way == "positional":
            y = layer(x, resident)
        elif way == "keyword":
            y = layer(x=x, routing_input=resident)
        else:
            y = layer(x)
    (call,) = calls
    read = x if way == "none" else resident
    assert torch.equal(call.logits(), layer.router.logits(read))
    assert torch.equal(call.weight, layer.router(read))
    torch.testing.assert_close(call.weight * F.linear(F.silu(call.x), layer.mu), y)
    routing = {id(p) for p in call.routing_parameters()}
    assert routing == {id(p) for p in layer.router.parameters()}
    assert call.value_parameters() == [layer.mu]


def test_each_call_of_a_shared_layer_is_one_call():
    layer = SparseBayesianLinear(6, 6)
    model = nn.Sequential(layer, nn.SiLU(), layer)
    with record_routing(model) as calls:
        model(torch.randn(3, 6))
    assert [call.name for call in calls] == ["0", "0"]
    assert torch.equal(calls[1].x, F.silu(calls[0].y))


def test_a_mixture_shows_both_of_its_layers():
    moie = MoIE(8)
    with record_routing(moie) as calls:
        _, weights = moie(torch.randn(4, 8), return_routing=True)
    assert [call.name for call in calls] == ["inner", "output"]
    assert all(torch.equal(c.weight, w) for c, w in zip(calls, weights, strict=True))
    assert 0.3 < float(activation_rate(calls[0].weight)) < 0.8


@pytest.mark.parametrize(
    ("name", "count"),
    {"dynnsiha hybrid": 4, "dimension": 8, "moie": 8, "flat": 4, "recursive sparse": 4}.items(),
)
def test_recording_goes_with_activation_checkpointing(name, count, small_model, ids):
    gradients = []
    for recompute in (False, True):
        model = small_model(name, activation_checkpointing=recompute)
        with record_routing(model) as calls:
            loss = model.loss(*ids)
        assert len(calls) == count
        shaped = loss + SurpriseAwareRoutingShaping()(loss, calls)
        shaped.backward()
        gradients.append([p.grad for p in model.parameters()])
    assert all(torch.equal(*pair) for pair in zip(*gradients, strict=True))


@pytest.mark.parametrize("name", ["dynsiha", "dynnsiha exact", "moie", "flat"])
@pytest.mark.parametrize("compiled_first", [False, True])
def test_a_compiled_model_is_watched_too(name, compiled_first, small_model, ids):
    """Hooks are nothing that compiled code looks at again."""
    model = small_model(name)
    with record_routing(model) as expected:
        model(*ids)
    torch.compiler.reset()
    compiled = torch.compile(model, backend="aot_eager")
    plain = compiled(*ids) if compiled_first else None
    for _ in range(2):
        with record_routing(compiled) as calls:
            y = compiled(*ids)
        assert [call.name for call in calls] == [f"_orig_mod.{call.name}" for call in expected]
        assert all(
            torch.equal(mine.weight, theirs.weight)
            for mine, theirs in zip(calls, expected, strict=True)
        )
        assert len(calls) > 0
    after = compiled(*ids)
    assert len(calls) == len(expected)  # and nobody is told of this call
    torch.testing.assert_close(after, y)
    if plain is not None:
        assert torch.equal(after, plain)
