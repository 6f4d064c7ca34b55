"""MoIE: two sparse Bayesian layers and SiLU, both calibrated for what they are given."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from dynnsiha import MoIE
from dynnsiha.synthesis import activation_rate


def _layer(d_model: int = 12, **options) -> MoIE:
    torch.manual_seed(0)
    return MoIE(d_model, **options)


def _input(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(1))


def _sbl(state: dict[str, Tensor], name: str, x: Tensor) -> Tensor:
    """A sparse Bayesian layer from its parameters alone."""
    mu, sigma_raw, gate, bias, c = (
        state[f"{name}.{part}"] for part in ("mu", "sigma_raw", "gate", "bias", "score_scale")
    )
    score = c * x @ (mu * torch.log1p(torch.exp(sigma_raw))).T / x.shape[-1] ** 0.5
    return (score - gate).clamp(min=0) * (x @ mu.T + bias)


@pytest.mark.parametrize("expansion", [1, 4])
def test_output_equals_the_formula(expansion):
    layer = _layer(expansion=expansion).double()
    x = _input(2, 9, 12).double()
    state = layer.state_dict()
    assert state["inner.mu"].shape == (12 * expansion, 12)
    assert state["output.mu"].shape == (12, 12 * expansion)
    hidden = _sbl(state, "inner", x)
    expected = _sbl(state, "output", hidden / (1 + torch.exp(-hidden)))
    torch.testing.assert_close(layer(x), expected)


@pytest.mark.parametrize("routing", ["dot", "cosine"])
@pytest.mark.parametrize("width", [64, 512])
def test_both_layers_open_the_documented_share(width, routing):
    layer = _layer(width, routing=routing)
    y, weights = layer(_input(1024, width), return_routing=True)
    assert [w.shape[-1] for w in weights] == [4 * width, width]
    assert float(activation_rate(weights[0])) == pytest.approx(0.54, abs=0.01)
    assert float(activation_rate(weights[1])) == pytest.approx(0.54, abs=0.05)
    assert 0.2 < float(y.detach().std()) < 1


@pytest.mark.parametrize("width", [32, 1024])
def test_the_second_layers_score_has_unit_variance_at_any_width(width):
    layer = _layer(width)
    hidden = torch.nn.functional.silu(layer.inner(_input(512, width)))
    score = layer.output.score(hidden).detach()
    assert float(score.square().mean().sqrt()) == pytest.approx(1.0, abs=0.04)


def test_distinct_inputs_meet_distinct_matrices():
    """Both matrices of each token, applied by hand."""
    layer, x = _layer().double(), _input(40, 12).double()
    y, weights = layer(x, return_routing=True)
    assert torch.equal(y, layer(x))
    matrices = []
    for t in range(40):
        first = weights[0][t, :, None] * layer.inner.mu
        second = weights[1][t, :, None] * layer.output.mu
        hidden = first @ x[t] + weights[0][t] * layer.inner.bias
        out = second @ (hidden * torch.sigmoid(hidden)) + weights[1][t] * layer.output.bias
        torch.testing.assert_close(out, y[t])
        matrices.append((first.detach(), second.detach()))
    for one, other in itertools.combinations(matrices, 2):
        assert not torch.allclose(one[0], other[0])
        assert not torch.allclose(one[1], other[1])


@pytest.mark.parametrize("routing", ["dot", "cosine"])
def test_gradients_reach_every_parameter(routing):
    layer = _layer(routing=routing)
    layer(_input(40, 12)).square().sum().backward()
    for name, parameter in layer.named_parameters():
        assert parameter.grad.isfinite().all(), name
        assert parameter.grad.abs().sum() > 0, name


def test_tokens_do_not_see_each_other():
    layer = _layer().double()
    x = _input(2, 9, 12).double()
    changed = x.clone()
    changed[:, 4:] = -x[:, 4:]
    assert torch.equal(layer(x)[:, :4], layer(changed)[:, :4])


def test_precisions_checkpointing_compilation_and_state():
    layer, other = _layer(64), MoIE(64)
    x = _input(20, 64)
    other.load_state_dict(layer.state_dict())
    assert torch.equal(other(x), layer(x))
    torch.testing.assert_close(other.double()(x.double()), layer(x).double(), rtol=1e-4, atol=1e-5)
    with torch.autocast("cpu", torch.bfloat16):
        low = layer(x)
    assert low.dtype == torch.bfloat16
    assert float(((low.float() - layer(x)).norm() / layer(x).norm()).detach()) < 0.03
    results = []
    compiled = torch.compile(layer, backend="aot_eager", fullgraph=True)
    for call in (layer, lambda x: checkpoint(layer, x, use_reentrant=False), compiled):
        y = call(x)
        results.append((y, *torch.autograd.grad(y.square().sum(), list(layer.parameters()))))
    for eager, recomputed, traced in zip(*results, strict=True):
        assert torch.equal(eager, recomputed)
        torch.testing.assert_close(eager, traced, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"expansion": 0}, r"expansion=0: must be at least 1"),
        ({"d_model": 0}, r"d_in=0: must be at least 1"),
        ({"routing": "euclid"}, r"routing='euclid': must be 'dot' or 'cosine'"),
    ],
)
def test_bad_arguments_name_the_fix(arguments, message):
    with pytest.raises(ValueError, match=message):
        MoIE(**{"d_model": 4} | arguments)
