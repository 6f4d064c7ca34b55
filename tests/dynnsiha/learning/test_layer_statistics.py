"""What the log says of each layer, against the routing that the model returns."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from dynnsiha import SparseBayesianLinear
from dynnsiha.learning.layer_statistics import RoutingStatistics
from dynnsiha.synthesis import activation_rate


def _rows(model, *args) -> dict[str, dict]:
    statistics = RoutingStatistics()
    with statistics.watching(model):
        model(*args)
    return {row["layer"]: row for row in statistics.rows()}


@pytest.mark.parametrize("name", ["dynsiha", "dynnsiha exact", "dynnsiha hybrid", "nsa"])
def test_rows_equal_the_returned_routing(name, small_model, ids):
    model = small_model(name)
    rows = _rows(model, *ids)
    _, routings = model(*ids, return_routing=True)
    expected = set()
    for i, routing in enumerate(routings):
        layer = f"blocks.{i}.attention"
        for part in ("qkv", "output"):
            weight = getattr(routing, part)
            if weight is None:
                continue
            row = rows[f"{layer}.{part}"]
            expected.add(f"{layer}.{part}")
            assert row["neurons"] == weight.shape[-1]
            assert row["activation_rate"] == pytest.approx(float(activation_rate(weight)))
            assert row["dead_neurons"] == int((weight.flatten(0, -2).amax(0) == 0).sum())
        if routing.gates is None:
            continue
        expected.add(layer)
        gates = routing.gates.detach().mean((0, 1, 2)).tolist()
        assert rows[layer]["gate_compressed"] == pytest.approx(gates[0])
        assert rows[layer]["gate_selected"] == pytest.approx(gates[1])
        assert rows[layer]["gate_sliding"] == pytest.approx(gates[2])
        counts = routing.attention.block_counts
        assert rows[layer]["selected_blocks"] == pytest.approx(float(counts.float().mean()))
        assert 1 < rows[layer]["selected_blocks"] <= 4
    assert set(rows) == expected


@pytest.mark.parametrize("name", ["flat sparse", "recursive sparse"])
def test_forms_of_experts_have_experts_gates_and_blocks(name, small_model, ids):
    """Of the recursive form one row each, over all steps."""
    model = small_model(name)
    rows = _rows(model, *ids)
    _, (routing,) = model(*ids, return_routing=True)
    blocks = [f"experts.blocks.{i}" for i in (0, 1)] if name == "flat sparse" else ["experts.block"]
    assert set(rows) == {f"{block}.{part}" for block in blocks for part in ("heads", "mlp")}
    for i, block in enumerate(blocks):
        made = routing.blocks[i : i + 1] if name == "flat sparse" else routing.blocks
        for part, taken in (
            ("heads", [one.heads.experts for one in made]),
            ("mlp", [one.mlp for one in made]),
        ):
            weight = torch.cat([one.expert_weights for one in taken])
            row = rows[f"{block}.{part}"]
            assert row["neurons"] == 4
            assert row["activation_rate"] == pytest.approx(float(activation_rate(weight)))
            assert row["dead_neurons"] == int((weight.flatten(0, -2).amax(0) == 0).sum())
        gates = torch.stack([one.heads.gates for one in made]).detach().mean((0, 1, 2, 3)).tolist()
        counts = torch.stack([one.heads.attention.block_counts for one in made])
        row = rows[f"{block}.heads"]
        named = [row[f"gate_{branch}"] for branch in ("compressed", "selected", "sliding")]
        assert named == pytest.approx(gates)
        assert row["selected_blocks"] == pytest.approx(float(counts.float().mean()))


def test_a_neuron_is_dead_only_if_no_call_opened_it():
    torch.manual_seed(0)
    layer = SparseBayesianLinear(4, 6)
    with torch.no_grad():
        layer.gate[:2] = 1e6
    model = nn.Sequential(layer, nn.Linear(6, 4), layer)
    row = _rows(model, torch.randn(50, 4))["0"]
    assert row["dead_neurons"] == 2
    x = torch.randn(3, 4)
    first, second = layer(x, return_routing=True), None
    second = layer(model[1](first[0]), return_routing=True)
    together = torch.cat((first[1], second[1]))
    row = _rows(model, x)["0"]
    assert row["activation_rate"] == pytest.approx(float(activation_rate(together)))
    assert row["dead_neurons"] == int((together.amax(0) == 0).sum())


def test_what_was_counted_before_is_forgotten():
    layer = SparseBayesianLinear(4, 6)
    statistics = RoutingStatistics()
    for x in (torch.randn(9, 4), torch.zeros(9, 4)):
        with statistics.watching(layer):
            layer(x)
    (row,) = statistics.rows()
    assert row["activation_rate"] == 1.0  # a score of 0 lies above the gate of -0.1
