"""SparseBayesianLinear against the formula, and what its calibration promises."""

from __future__ import annotations

import math

import pytest
import torch
from torch.utils.checkpoint import checkpoint

from dynnsiha.synthesis import SparseBayesianLinear, activation_rate


def _layer(d_in: int = 12, d_out: int = 7, **options) -> SparseBayesianLinear:
    torch.manual_seed(0)
    return SparseBayesianLinear(d_in, d_out, **options)


def test_output_equals_the_formula_neuron_by_neuron():
    layer = _layer().double()
    torch.nn.init.normal_(layer.bias)
    x = torch.randn(5, 12, dtype=torch.float64)
    with torch.no_grad():
        y, weight = layer(x, return_routing=True)
    c, gate, bias = float(layer.score_scale), layer.gate.tolist(), layer.bias.tolist()
    for row in range(5):
        for j in range(7):
            mu, raw = layer.mu[j].tolist(), layer.sigma_raw[j].tolist()
            keys = [m * math.log1p(math.exp(s)) for m, s in zip(mu, raw, strict=True)]
            inputs = x[row].tolist()
            score = c * sum(a * b for a, b in zip(inputs, keys, strict=True)) / math.sqrt(12)
            expected = max(score - gate[j], 0.0)
            value = sum(a * b for a, b in zip(inputs, mu, strict=True)) + bias[j]
            assert float(weight[row, j]) == pytest.approx(expected, abs=1e-12)
            assert float(y[row, j]) == pytest.approx(expected * value, abs=1e-12)


@pytest.mark.parametrize("width", [128, 256, 512, 1024, 2048])
def test_calibrated_scale_is_the_inverse_of_the_scores_spread(width):
    layer = _layer(width, 256)
    x = torch.randn(1024, width)
    c = float(layer.score_scale)
    # The mean square of softplus(N(0, 0.5)) is 0.584: c = sqrt(3 width / 0.584).
    assert c == pytest.approx(math.sqrt(3 * width / 0.584), rel=0.02)
    assert 26 <= round(c) <= 102
    with torch.no_grad():
        assert float(layer.score(x).std()) == pytest.approx(1.0, abs=0.03)
        keys = layer.mu * torch.nn.functional.softplus(layer.sigma_raw)
        uncalibrated = x @ keys.T / math.sqrt(width)
        assert float(1 / uncalibrated.std()) == pytest.approx(c, rel=0.03)


@pytest.mark.parametrize("routing", ["dot", "cosine"])
@pytest.mark.parametrize("width", [128, 2048])
def test_activation_rate_at_init_is_the_documented_one(width, routing):
    layer = _layer(width, 512, routing=routing)
    _, weight = layer(torch.randn(1024, width), return_routing=True)
    assert float(activation_rate(weight)) == pytest.approx(0.54, abs=0.01)


@pytest.mark.parametrize(("width", "spread"), [(128, 0.04), (2048, 0.01)])
def test_the_notes_init_opens_almost_everything(width, spread):
    layer = _layer(width, 512, init="notes")
    x = torch.randn(512, width)
    _, weight = layer(x, return_routing=True)
    assert float(layer.score_scale) == 1.0
    assert float(layer.score(x).detach().std()) == pytest.approx(spread, rel=0.1)
    assert float(activation_rate(weight)) > 0.99
    assert float(weight.detach().mean()) == pytest.approx(0.1, abs=0.01)


@pytest.mark.parametrize("input_rms", [0.1, 5.0])
def test_calibration_divides_by_the_size_of_the_inputs(input_rms):
    layer = _layer(256, 512, input_rms=input_rms)
    score = layer.score(input_rms * torch.randn(1024, 256)).detach()
    assert float(score.std()) == pytest.approx(1.0, abs=0.03)


def test_cosine_ignores_the_length_of_x_and_dot_does_not():
    x = torch.randn(4, 12)
    for routing, expected in (("cosine", True), ("dot", False)):
        layer = _layer(routing=routing)
        _, weight = layer(x, return_routing=True)
        _, scaled = layer(3 * x, return_routing=True)
        assert torch.allclose(weight, scaled, atol=1e-6) is expected


def test_cosine_equals_torch_cosine_similarity():
    layer = _layer(routing="cosine")
    x = torch.randn(4, 12)
    expected = torch.cosine_similarity(x[:, None], layer.keys()[None], dim=-1) * math.sqrt(12)
    torch.testing.assert_close(layer.score(x), expected)


@pytest.mark.parametrize(
    ("dtype", "autocast"),
    [
        *(
            (dtype, False)
            for dtype in (torch.float64, torch.float32, torch.bfloat16, torch.float16)
        ),
        *((dtype, True) for dtype in (torch.bfloat16, torch.float16)),
    ],
)
def test_a_zero_vector_has_the_direction_zero_in_every_dtype(dtype, autocast):
    layer = _layer(routing="cosine")
    layer = layer if autocast else layer.to(dtype)
    x = torch.zeros(2, 12, dtype=dtype, requires_grad=True)
    with torch.autocast("cpu", dtype, enabled=autocast):
        y, weight = layer(x, return_routing=True)
    expected = (-layer.gate).relu().to(weight.dtype).expand_as(weight)
    torch.testing.assert_close(weight, expected)
    y.sum().backward()
    assert all(bool(t.isfinite().all()) for t in (y, x.grad, *(p.grad for p in layer.parameters())))


def test_distinct_inputs_meet_distinct_matrices():
    layer = _layer()
    first, second = torch.randn(2, 12)
    matrices = []
    for x in (first, second):
        y, weight = layer(x, return_routing=True)
        matrix = weight[:, None] * layer.mu
        torch.testing.assert_close(matrix @ x + weight * layer.bias, y)
        matrices.append(matrix)
    assert not torch.allclose(*matrices)
    assert not torch.allclose(layer(first + second), layer(first) + layer(second))


@pytest.mark.parametrize("routing", ["dot", "cosine"])
def test_tokens_do_not_see_each_other(routing):
    layer = _layer(routing=routing).double()
    x = torch.randn(2, 9, 12, dtype=torch.float64)
    changed = x.clone()
    changed[:, 4:] = -3 * x[:, 4:]
    before, after = layer(x), layer(changed)
    assert torch.equal(before[:, :4], after[:, :4])
    assert not torch.equal(before[:, 4:], after[:, 4:])


def test_closed_gates_give_exact_zeros_and_finite_gradients():
    layer = _layer()
    torch.nn.init.constant_(layer.gate, 1e6)
    torch.nn.init.normal_(layer.bias)
    x = torch.randn(4, 12, requires_grad=True)
    y = layer(x)
    assert torch.equal(y, torch.zeros_like(y))
    y.sum().backward()
    assert torch.equal(x.grad, torch.zeros_like(x))


@pytest.mark.parametrize("routing", ["dot", "cosine"])
def test_every_parameter_receives_the_right_gradient(routing):
    layer = _layer(4, 3, routing=routing).double()
    x = torch.randn(6, 4, dtype=torch.float64, requires_grad=True)
    names, parameters = zip(*layer.named_parameters(), strict=True)
    assert set(names) == {"mu", "sigma_raw", "gate", "bias"}

    def call(x, *values):
        return torch.func.functional_call(layer, dict(zip(names, values, strict=True)), (x,))

    assert torch.autograd.gradcheck(call, (x, *parameters))
    layer(x).square().sum().backward()
    assert all(bool(p.grad.abs().sum() > 0) for p in parameters)


def test_float32_follows_float64():
    layer = _layer(64, 32)
    x = torch.randn(16, 64)
    single = layer(x)
    double = layer.double()(x.double())
    torch.testing.assert_close(single.double(), double, rtol=1e-4, atol=1e-5)


def test_state_dict_carries_the_scale():
    source, target = _layer(64, 32), SparseBayesianLinear(64, 32)
    assert source.score_scale != target.score_scale
    target.load_state_dict(source.state_dict())
    x = torch.randn(3, 64)
    assert torch.equal(source(x), target(x))


def test_bfloat16_autocast_follows_float32():
    layer = _layer(256, 64)
    x = torch.randn(32, 256)
    with torch.autocast("cpu", torch.bfloat16):
        low = layer(x)
    assert low.dtype == torch.bfloat16
    exact = layer(x)
    assert float(((low.float() - exact).norm() / exact.norm()).detach()) < 0.02
    low.float().sum().backward()
    assert all(bool(p.grad.isfinite().all()) for p in layer.parameters())


@pytest.mark.parametrize("routing", ["dot", "cosine"])
def test_checkpointing_and_compilation_repeat_the_gradients(routing):
    layer = _layer(routing=routing)
    x = torch.randn(5, 12)
    compiled = torch.compile(layer, backend="aot_eager", fullgraph=True)
    results = []
    for call in (layer, lambda x: checkpoint(layer, x, use_reentrant=False), compiled):
        inputs = x.clone().requires_grad_()
        y = call(inputs)
        results.append((y, *torch.autograd.grad(y.sum(), (inputs, *layer.parameters()))))
    for eager, recomputed, traced in zip(*results, strict=True):
        assert torch.equal(eager, recomputed)
        torch.testing.assert_close(eager, traced)


def test_without_bias_the_layer_has_none():
    layer = _layer(bias=False)
    assert layer.bias is None
    assert layer(torch.zeros(2, 12)).abs().sum() == 0


def test_activation_rate_counts_open_weights():
    weight = torch.tensor([[[0.0, 0.5, 2.0], [0.0, 0.0, 1.0]]])
    assert float(activation_rate(weight)) == 0.5
    assert activation_rate(weight, per_neuron=True).tolist() == [0.0, 0.5, 1.0]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"d_in": 0}, r"d_in=0: must be at least 1"),
        ({"d_out": -2}, r"d_out=-2: must be at least 1"),
        ({"init": "zeros"}, r"init='zeros': must be 'calibrated' or 'notes'"),
        ({"routing": "euclid"}, r"routing='euclid': must be 'dot' or 'cosine'"),
        ({"input_rms": 0.0}, r"input_rms=0.0: must be above 0"),
    ],
)
def test_bad_arguments_name_the_fix(arguments, message):
    with pytest.raises(ValueError, match=message):
        SparseBayesianLinear(**{"d_in": 4, "d_out": 4} | arguments)
