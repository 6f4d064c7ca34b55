"""Expert layers as routed layers: who is recorded, trained, counted and charged."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dynnsiha import FisherAwareRoutingShaping, RMSuon, SurpriseAwareRoutingShaping
from dynnsiha.forms import FlatDynSIHA, RecursiveDynSIHA
from dynnsiha.forms.dispatch import Dispatch
from dynnsiha.learning import ExpertCall, record_routing, surprise_minimization_loss
from dynnsiha.learning.layer_statistics import RoutingStatistics

EXPERTS, TAKEN, WIDTH = 6, 2, 8


def _form(kind: str) -> nn.Module:
    torch.manual_seed(0)
    options = {"experts": EXPERTS, "active_experts": TAKEN, "expert_width": 8}
    if kind == "flat":
        return FlatDynSIHA(WIDTH, 2, blocks=2, **options)
    return RecursiveDynSIHA(WIDTH, 2, steps=2, **options)


def _x() -> Tensor:
    torch.manual_seed(1)
    return torch.randn(2, 10, WIDTH)


forms = pytest.mark.parametrize("kind", ["flat", "recursive"])


@forms
def test_every_call_of_an_expert_layer_is_recorded(kind):
    form, x = _form(kind), _x()
    expected, routing = form(x, return_routing=True)
    with record_routing(form) as calls:
        assert torch.equal(form(x), expected)
    assert len(calls) == 4
    assert all(isinstance(call, ExpertCall) for call in calls)
    assert len({call.name for call in calls}) == (4 if kind == "flat" else 2)
    for i, block in enumerate(routing.blocks):
        for call, other in zip(
            calls[2 * i : 2 * i + 2], (block.heads.experts, block.mlp), strict=True
        ):
            assert torch.equal(call.routing.logits, other.logits)
            torch.testing.assert_close(call.logits(), other.logits)
            assert torch.equal(call.weight, other.expert_weights)
            assert all(bank.shape[0] == EXPERTS for bank in call.value_parameters())


@forms
def test_norms_are_the_gradients_of_every_experts_own_output(kind, monkeypatch):
    """By brute force: a zero is added to each expert's output for each token, and is a leaf."""
    form, x = _form(kind).double(), _x().double()
    leaves: list[tuple[Tensor, Tensor]] = []

    def gather(self: Dispatch, rows: Tensor, weights: Tensor) -> Tensor:
        zeros = torch.zeros_like(rows, requires_grad=True)
        leaves.append((self.order, zeros))
        return summed(self, rows + zeros, weights)

    summed = Dispatch.gather
    monkeypatch.setattr(Dispatch, "gather", gather)
    with record_routing(form) as calls:
        loss = F.softplus(form(x)).square().mean()
    own = iter(leaves)
    for call in calls:
        squares = torch.zeros(2 * 10 * TAKEN, dtype=torch.float64)
        for _ in call.outputs:  # q, k and v side by side, and y; y alone of MLP experts
            order, zeros = next(own)
            (grad,) = torch.autograd.grad(loss, zeros, retain_graph=True)
            squares[order] += grad.square().sum(-1)
        expected = torch.zeros(2, 10, EXPERTS, dtype=torch.float64)
        expected.scatter_(-1, call.routing.indices, squares.sqrt().view(2, 10, TAKEN))
        grads = torch.autograd.grad(loss, call.outputs, retain_graph=True)
        importance, cost = call.gradient_norms(grads)
        torch.testing.assert_close(importance, expected)
        assert torch.equal(importance, cost)
        assert float(importance.max()) > 0
    assert next(own, None) is None


@forms
@pytest.mark.parametrize("sign", ["plus", "minus"])
def test_shaping_trains_the_routers_alone(kind, sign):
    form, x = _form(kind), _x()
    optimizer = RMSuon(form.parameters(), lr=1e-3)
    form(x).square().mean().backward()
    optimizer.step()
    optimizer.zero_grad()
    with record_routing(form) as calls:
        loss = F.softplus(form(x)).square().mean()
    fars = FisherAwareRoutingShaping(optimizer)
    for value in (SurpriseAwareRoutingShaping(sign)(loss, calls), fars(calls)):
        form.zero_grad()
        value.backward(retain_graph=True)
        for name, parameter in form.named_parameters():
            trained = ".router." in name
            assert (parameter.grad is not None) is trained, name
            assert not trained or parameter.grad.abs().sum() > 0, name


def test_an_experts_cost_is_the_mean_over_its_slices():
    form, x = _form("flat"), _x()
    optimizer = torch.optim.Adam(form.parameters(), lr=1e-3)
    form(x).square().mean().backward()
    optimizer.step()
    with record_routing(form) as calls:
        form(x)
    for call in calls:
        cost = FisherAwareRoutingShaping(optimizer).cost(call.value_parameters())
        moments = [optimizer.state[p]["exp_avg_sq"] for p in call.value_parameters()]
        for e in range(EXPERTS):
            roots = torch.cat([moment[e].flatten().sqrt() for moment in moments])
            torch.testing.assert_close(cost[e], roots.mean())


@forms
def test_experts_are_counted(kind):
    form, x = _form(kind), _x()
    statistics = RoutingStatistics()
    with statistics.watching(form):
        form(x)
    with record_routing(form) as calls:
        form(x)
    rows = {row["layer"]: row for row in statistics.rows()}
    assert set(rows) == {call.name for call in calls}
    for name, row in rows.items():
        weight = torch.cat([call.weight.flatten(0, 1) for call in calls if call.name == name])
        assert row["neurons"] == EXPERTS
        assert row["activation_rate"] == pytest.approx(float((weight > 0).float().mean()))
        assert 0 < row["activation_rate"] <= TAKEN / EXPERTS + 1e-9
        assert row["dead_neurons"] == int((weight.amax(0) == 0).sum())


def test_experts_alone_have_no_surprise():
    form, x = _form("flat"), _x()
    with record_routing(form) as calls:
        loss = form(x).square().mean()
    with pytest.raises(ValueError, match="calls has no routed neurons"):
        surprise_minimization_loss(loss, calls)
