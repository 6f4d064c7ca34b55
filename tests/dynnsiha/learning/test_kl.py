"""The KL term against torch.distributions."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.distributions import Categorical, Normal, kl_divergence

from dynnsiha import MoIE, SparseBayesianLinear, SparseProtoLinear, kl_divergence_loss
from dynnsiha.learning import output_entropy


def _expected(layers, tau: float) -> torch.Tensor:
    parts = []
    for layer in layers:
        posterior = Normal(layer.mu, F.softplus(layer.sigma_raw))
        prior = Normal(torch.zeros_like(layer.mu), torch.full_like(layer.mu, tau))
        parts.append(kl_divergence(posterior, prior).flatten())
    return torch.cat(parts).mean()


@pytest.mark.parametrize("tau", [0.01, 0.3, 1.0, 3.0])
def test_value_and_gradient_equal_torch_distributions(tau):
    torch.manual_seed(0)
    moie = MoIE(6).double()
    module = nn.Sequential(moie, nn.Linear(6, 6).double())
    parameters = [p for n, p in moie.named_parameters() if n.endswith(("mu", "sigma_raw"))]
    value, expected = kl_divergence_loss(module, tau), _expected([moie.inner, moie.output], tau)
    torch.testing.assert_close(value, expected)
    for ours, theirs in zip(
        torch.autograd.grad(value, parameters),
        torch.autograd.grad(expected, parameters),
        strict=True,
    ):
        torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize(("tau", "used"), [(0.0, 0.01), (1e-30, 0.01), (50.0, 3.0)])
def test_tau_is_clamped(tau, used):
    layer = SparseBayesianLinear(5, 4).double()
    torch.testing.assert_close(kl_divergence_loss(layer, tau), _expected([layer], used))


@pytest.mark.parametrize("raw", [-1e4, -100.0, -41.0, -39.0, 30.0, 1e4])
def test_it_is_finite_wherever_sigma_goes(raw):
    layer = SparseBayesianLinear(5, 4)
    nn.init.constant_(layer.sigma_raw, raw)
    value = kl_divergence_loss(layer, 0.0)
    value.backward()
    assert value.isfinite()
    assert layer.sigma_raw.grad.isfinite().all()
    assert layer.mu.grad.isfinite().all()
    # The derivative of -log softplus(raw) is -1 where softplus is an exponential.
    if raw < -30:
        torch.testing.assert_close(layer.sigma_raw.grad, torch.full((4, 5), -1 / 20))


def test_the_prior_is_a_constant_and_the_rest_is_not_touched():
    layer = SparseBayesianLinear(5, 4)
    tau = torch.tensor(0.7, requires_grad=True)
    kl_divergence_loss(layer, tau).backward()
    assert tau.grad is None
    assert layer.gate.grad is None
    assert layer.bias.grad is None
    assert layer.mu.grad is not None
    assert layer.sigma_raw.grad is not None


def test_training_on_it_finds_the_prior():
    torch.manual_seed(0)
    layer = SparseBayesianLinear(5, 4)
    optimizer = torch.optim.Adam(layer.parameters(), lr=0.05)
    for _ in range(400):
        optimizer.zero_grad()
        kl_divergence_loss(layer, 0.5).backward()
        optimizer.step()
    assert float(kl_divergence_loss(layer, 0.5).detach()) < 1e-3
    torch.testing.assert_close(
        F.softplus(layer.sigma_raw), torch.full((4, 5), 0.5), rtol=0.05, atol=0
    )


def test_bfloat16_parameters_are_summed_in_float32():
    layer = SparseBayesianLinear(64, 64)
    exact = float(kl_divergence_loss(layer, 1.0).detach())
    low = kl_divergence_loss(layer.bfloat16(), 1.0)
    assert low.dtype == torch.float32
    assert float(low.detach()) == pytest.approx(exact, rel=1e-3)


def test_a_module_without_such_weights_is_refused():
    with pytest.raises(ValueError, match="SparseProtoLinear has no sparse Bayesian layer"):
        kl_divergence_loss(SparseProtoLinear(4, 4), 1.0)


def test_output_entropy_equals_torch_distributions():
    torch.manual_seed(0)
    logits = (3 * torch.randn(2, 5, 11)).requires_grad_()
    entropy = output_entropy(logits)
    torch.testing.assert_close(entropy, Categorical(logits=logits).entropy().mean().detach())
    assert not entropy.requires_grad
    assert output_entropy(torch.tensor([[0.0, -1e30]])) == 0
    assert output_entropy(torch.zeros(3, 8)) == pytest.approx(2.0794415, rel=1e-6)
