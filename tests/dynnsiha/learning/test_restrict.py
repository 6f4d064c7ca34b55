"""A restricted loss keeps its value and trains what it may."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from dynnsiha.learning.restrict import only_to


def _two() -> tuple[nn.Parameter, nn.Parameter]:
    torch.manual_seed(0)
    return nn.Parameter(torch.randn(3)), nn.Parameter(torch.randn(3))


def test_value_gradient_and_the_rest_of_the_graph():
    a, b = _two()
    loss = (a * b).square().sum()
    restricted = only_to(loss, [a])
    assert restricted == loss
    (2.5 * restricted + b.sum()).backward()
    torch.testing.assert_close(a.grad, 5 * a.detach() * b.detach().square())
    torch.testing.assert_close(b.grad, torch.ones(3))
    a.grad = None
    loss.backward()  # the original graph is still there
    assert a.grad is not None


def test_a_parameter_named_twice_counts_once():
    a, _ = _two()
    only_to(a.square().sum(), [a, a]).backward()
    torch.testing.assert_close(a.grad, 2 * a.detach())


@pytest.mark.parametrize("case", ["frozen", "elsewhere", "none", "constant"])
def test_without_anything_to_train_it_is_a_constant(case):
    a, b = _two()
    loss = a.sum()
    if case == "frozen":
        restricted = only_to(loss, [b.requires_grad_(False)])
    elif case == "elsewhere":
        restricted = only_to(loss, [b])
    elif case == "none":
        restricted = only_to(loss, [])
    else:
        restricted = only_to(loss.detach(), [a])
    assert restricted == loss
    assert not restricted.requires_grad
