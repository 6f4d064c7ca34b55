"""SparseProtoLinear with every router and mask, and the stream that its router may read."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from dynnsiha import PrototypeResident, SparseProtoLinear
from dynnsiha.synthesis import activation_rate

VARIANTS = [(router, mask) for router in ("dot", "cpr", "capr") for mask in ("relu", "softmax")]
every_variant = pytest.mark.parametrize(("router", "mask"), VARIANTS)


def _layer(router: str = "dot", mask: str = "relu", d_in: int = 12, d_out: int = 7, **options):
    torch.manual_seed(0)
    return SparseProtoLinear(d_in, d_out, router=router, mask=mask, **options)


def _input(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(1))


@every_variant
def test_output_equals_the_formula_neuron_by_neuron(router, mask):
    layer = _layer(router, mask).double()
    x = _input(6, 12).double()
    with torch.no_grad():
        y, weight = layer(x, return_routing=True)
    expected_weight = layer.router(x).tolist()
    for t in range(6):
        activated = [value / (1 + math.exp(-value)) for value in x[t].tolist()]
        for j, row in enumerate(layer.mu.tolist()):
            comp = sum(a * m for a, m in zip(activated, row, strict=True))
            assert float(weight[t, j]) == expected_weight[t][j]
            assert float(y[t, j]) == pytest.approx(comp * expected_weight[t][j], abs=1e-12)


@every_variant
def test_distinct_inputs_meet_distinct_matrices(router, mask):
    layer = _layer(router, mask)
    first, second = _input(2, 12)
    matrices = []
    for x in (first, second):
        y, weight = layer(x, return_routing=True)
        matrix = weight[:, None] * layer.mu
        torch.testing.assert_close(matrix @ nn.functional.silu(x), y)
        matrices.append(matrix)
    assert not torch.allclose(*matrices)


@every_variant
def test_tokens_do_not_see_each_other(router, mask):
    layer = _layer(router, mask).double()
    x = _input(2, 9, 12).double()
    changed = x.clone()
    changed[:, 4:] = -3 * x[:, 4:]
    before, after = layer(x), layer(changed)
    assert torch.equal(before[:, :4], after[:, :4])
    assert not torch.equal(before[:, 4:], after[:, 4:])


def test_closed_features_are_exact_zeros():
    layer = _layer()
    x = _input(40, 12)
    y, weight = layer(x, return_routing=True)
    assert 0.1 < float(activation_rate(weight)) < 0.5
    assert torch.equal(y == 0, weight == 0)


def test_softmax_masks_share_one_unit():
    _, weight = _layer("dot", "softmax")(_input(40, 12), return_routing=True)
    torch.testing.assert_close(weight.sum(dim=-1), torch.ones(40))
    assert weight.min() > 0


@every_variant
def test_the_router_reads_the_stream_it_is_given(router, mask):
    layer = _layer(router, mask)
    x, stream = _input(2, 9, 12)
    assert torch.equal(layer(x, x), layer(x))
    y, weight = layer(x, stream, return_routing=True)
    assert torch.equal(weight, layer.router(stream))
    assert torch.equal(y, nn.functional.silu(x) @ layer.mu.T * weight)


@every_variant
def test_gradients_reach_every_parameter(router, mask):
    layer = _layer(router, mask)
    x = _input(60, 12).requires_grad_()
    layer(x).square().sum().backward()
    for name, parameter in layer.named_parameters():
        assert parameter.grad.isfinite().all(), name
        assert parameter.grad.abs().sum() > 0, name
    assert x.grad.isfinite().all()


@pytest.mark.parametrize(("router", "mask"), [("dot", "relu"), ("dot", "softmax")])
def test_gradients_equal_finite_differences(router, mask):
    layer = _layer(router, mask, 4, 3).double()
    x = _input(6, 4).double().requires_grad_()
    names, parameters = zip(*layer.named_parameters(), strict=True)
    assert set(names) == {"mu", "router.proto", "router.gate"}

    def call(x, *values):
        return torch.func.functional_call(layer, dict(zip(names, values, strict=True)), (x,))

    assert torch.autograd.gradcheck(call, (x, *parameters))


@every_variant
def test_float32_and_bfloat16_follow_float64(router, mask):
    layer = _layer(router, mask, 64, 32)
    x = _input(20, 64)
    single = layer(x).detach()
    with torch.autocast("cpu", torch.bfloat16):
        low = layer(x)
    low.float().sum().backward()
    exact = layer.double()(x.double()).detach()
    torch.testing.assert_close(single.double(), exact, rtol=1e-4, atol=1e-5)
    assert float((low.double().detach() - exact).norm() / exact.norm()) < 0.03
    assert all(bool(p.grad.isfinite().all()) for p in layer.parameters())


@every_variant
def test_checkpointing_and_compilation_repeat_the_gradients(router, mask):
    layer = _layer(router, mask)
    stream = _input(3, 9, 12)[::2]
    compiled = torch.compile(layer, backend="aot_eager", fullgraph=True)
    calls = (
        layer,
        lambda x, p: checkpoint(layer, x, p, use_reentrant=False),
        compiled,
    )
    results = []
    for call in calls:
        x = _input(2, 9, 12).requires_grad_()
        y = call(x, stream)
        results.append((y, *torch.autograd.grad(y.square().sum(), (x, *layer.parameters()))))
    for eager, recomputed, traced in zip(*results, strict=True):
        assert torch.equal(eager, recomputed)
        torch.testing.assert_close(eager, traced)


@every_variant
def test_state_dict_round_trip(router, mask):
    source = _layer(router, mask)
    target = SparseProtoLinear(12, 7, router=router, mask=mask)
    x = _input(5, 12)
    assert not torch.equal(source(x), target(x))
    target.load_state_dict(source.state_dict())
    assert torch.equal(source(x), target(x))
    target.reset_parameters()
    assert not torch.equal(source(x), target(x))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"d_in": 0}, r"d_in=0: must be at least 1"),
        ({"d_out": 0}, r"d_out=0: must be at least 1"),
        ({"router": "knn"}, r"router='knn': must be 'dot', 'cpr' or 'capr'"),
        ({"mask": "top"}, r"mask='top': must be 'relu' or 'softmax'"),
        ({"router": "cpr", "open_share": 0.6}, r"open_share=0.6: a cosine threshold"),
    ],
)
def test_bad_arguments_name_the_fix(arguments, message):
    with pytest.raises(ValueError, match=message):
        SparseProtoLinear(**{"d_in": 4, "d_out": 4} | arguments)


def _through_layers(
    residents: list[PrototypeResident], layers: list[SparseProtoLinear], x: Tensor
) -> Tensor:
    stream = None
    for resident, layer in zip(residents, layers, strict=True):
        stream = resident(x, stream)
        x = x + layer(x, stream)
    return x


@pytest.mark.parametrize("router", ["dot", "cpr", "capr"])
def test_alpha_of_zero_is_the_model_without_the_connection(router):
    layers = [_layer(router, d_out=12) for _ in range(3)]
    x = _input(2, 9, 12)
    without = x
    for layer in layers:
        without = without + layer(without)
    ablated = _through_layers([PrototypeResident(0) for _ in layers], layers, x)
    assert torch.equal(ablated, without)
    connected = _through_layers([PrototypeResident() for _ in layers], layers, x)
    assert not torch.allclose(connected, without)


@pytest.mark.parametrize("router", ["dot", "cpr", "capr"])
def test_alpha_and_the_layers_before_learn_through_the_stream(router):
    layers = [_layer(router, d_out=12) for _ in range(3)]
    residents = [PrototypeResident() for _ in layers]
    _through_layers(residents, layers, _input(2, 9, 12)).square().sum().backward()
    assert all(float(resident.alpha_logit.grad.abs()) > 0 for resident in residents[1:])
    assert residents[0].alpha_logit.grad is None  # nothing comes before the first layer
