"""FARS: its cost is what lies in the optimizer's buffers."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from dynnsiha import FisherAwareRoutingShaping, RMSuon, SparseBayesianLinear, SparseProtoLinear
from dynnsiha.learning import record_routing

EXPERTS = 4
optimizers = pytest.mark.parametrize("kind", [torch.optim.Adam, torch.optim.AdamW, RMSuon])


def _trained_banks(kind) -> tuple[list[nn.Parameter], torch.optim.Optimizer]:
    torch.manual_seed(0)
    banks = [nn.Parameter(torch.randn(EXPERTS, *shape)) for shape in ((5, 3), (3, 5), (5,))]
    optimizer = kind(banks, lr=1e-3)
    for _ in range(3):
        optimizer.zero_grad()
        sum(
            F.softplus(bank * torch.arange(1.0, bank[0].numel() + 1).view_as(bank[0])).sum()
            for bank in banks
        ).backward()
        optimizer.step()
    return banks, optimizer


@optimizers
def test_cost_equals_the_optimizers_buffers(kind):
    banks, optimizer = _trained_banks(kind)
    cost = FisherAwareRoutingShaping(optimizer).cost(banks)
    saved = optimizer.state_dict()["state"]
    for e in range(EXPERTS):
        roots = []
        for i in range(len(banks)):
            roots += [math.sqrt(v) for v in saved[i]["exp_avg_sq"][e].flatten().tolist()]
        assert float(cost[e]) == pytest.approx(sum(roots) / len(roots), rel=1e-6)
    assert float(cost.min()) > 0
    assert not cost.requires_grad


def test_cost_follows_the_gradients_of_adam():
    """From the gradients themselves: v after n steps of a constant gradient g is (1 - β₂ⁿ) g²."""
    bank = nn.Parameter(torch.zeros(2, 3))
    optimizer = torch.optim.Adam([bank], lr=0.1, betas=(0.9, 0.5))
    gradient = torch.tensor([[1.0, 2.0, 3.0], [0.0, 0.0, 4.0]])
    fars = FisherAwareRoutingShaping(optimizer)
    for _ in range(2):
        bank.grad = gradient.clone()
        optimizer.step()
    root = math.sqrt(1 - 0.5**2)
    torch.testing.assert_close(fars.cost([bank]), torch.tensor([2.0 * root, 4 / 3 * root]))


def test_before_the_first_step_nothing_costs():
    bank = nn.Parameter(torch.zeros(3, 2))
    assert FisherAwareRoutingShaping(torch.optim.Adam([bank])).cost([bank]).tolist() == [0, 0, 0]


def test_loss_equals_the_formula_and_its_gradient_is_right():
    torch.manual_seed(0)
    fars = FisherAwareRoutingShaping(torch.optim.Adam([nn.Parameter(torch.zeros(1))]))
    logits = torch.randn(2, 5, EXPERTS, dtype=torch.float64, requires_grad=True)
    cost = torch.rand(EXPERTS, dtype=torch.float64)
    expected = 0.0
    for row in logits.softmax(-1).reshape(-1, EXPERTS).tolist():
        expected += sum(p * (c - math.log(p)) for p, c in zip(row, cost.tolist(), strict=True))
    value = fars.loss(logits.softmax(-1), cost)
    assert float(value.detach()) == pytest.approx(expected / 10)
    assert torch.autograd.gradcheck(lambda z: fars.loss(z.softmax(-1), cost), logits)


def test_a_probability_of_zero_is_harmless():
    fars = FisherAwareRoutingShaping(torch.optim.Adam([nn.Parameter(torch.zeros(1))]))
    logits = torch.tensor([[0.0, -1e4]], requires_grad=True)
    value = fars.loss(logits.softmax(-1), torch.tensor([2.0, 5.0]))
    value.backward()
    assert float(value.detach()) == 2.0
    assert logits.grad.isfinite().all()


def test_it_moves_routing_to_the_cheap_modules():
    fars = FisherAwareRoutingShaping(torch.optim.Adam([nn.Parameter(torch.zeros(1))]))
    logits = torch.zeros(8, EXPERTS, requires_grad=True)
    optimizer = torch.optim.SGD([logits], lr=5.0)
    cost = torch.tensor([0.5, 0.5, 0.1, 0.5])
    for _ in range(100):
        optimizer.zero_grad()
        fars.loss(logits.softmax(-1), cost).backward()
        optimizer.step()
    assert float(logits.softmax(-1)[:, 2].min().detach()) > 0.95


@pytest.mark.parametrize("make", [SparseBayesianLinear, SparseProtoLinear])
def test_neurons_of_a_layer_are_its_modules_and_only_routing_is_trained(make):
    torch.manual_seed(0)
    layer = make(6, 5)
    optimizer = RMSuon(layer.parameters(), lr=1e-2)
    x = torch.randn(20, 6)
    for _ in range(3):
        optimizer.zero_grad()
        with record_routing(layer) as calls:
            layer(x).square().mean().backward()
        optimizer.step()
    optimizer.zero_grad()
    fars = FisherAwareRoutingShaping(optimizer)
    with record_routing(layer) as calls:
        layer(x)
    value = fars(calls)
    values = [layer.mu] + ([layer.bias] if make is SparseBayesianLinear else [])
    roots = [optimizer.state[p]["exp_avg_sq"].sqrt().reshape(5, -1) for p in values]
    cost = torch.cat(roots, dim=1).mean(1)
    p = calls[0].logits().softmax(-1)
    expected = (-(p * p.log()).sum(-1) + p @ cost).mean()
    torch.testing.assert_close(value.detach(), expected.detach())
    value.backward()
    routing = {id(p) for p in calls[0].routing_parameters()}
    for parameter in layer.parameters():
        assert (parameter.grad is not None) is (id(parameter) in routing)


def test_what_cannot_be_read_names_the_fix():
    bank, other = nn.Parameter(torch.zeros(3, 2)), nn.Parameter(torch.zeros(4, 2))
    fars = FisherAwareRoutingShaping(torch.optim.Adam([bank, other]))
    with pytest.raises(ValueError, match="banks is empty"):
        fars.cost([])
    with pytest.raises(ValueError, match="first dimensions 3 and 4 differ"):
        fars.cost([bank, other])
    with pytest.raises(ValueError, match=r"shape \[3, 2\] is not among the optimizer's parameters"):
        fars.cost([nn.Parameter(torch.zeros(3, 2))])
    with pytest.raises(ValueError, match="calls is empty"):
        fars([])
    sgd = torch.optim.SGD([bank], lr=0.1, momentum=0.9)
    bank.grad = torch.ones_like(bank)
    sgd.step()
    with pytest.raises(ValueError, match="SGD keeps no second moment"):
        FisherAwareRoutingShaping(sgd).cost([bank])
