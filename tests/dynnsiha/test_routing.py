"""Prototype routers against the formulas, one prototype at a time, and what each one promises."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from dynnsiha import CosinePrototypeRouting, CrossAttentionPrototypeRouting
from dynnsiha.synthesis import DotPrototypeRouting, PrototypeRouter, make_router

KINDS = ("dot", "cpr", "capr")
every_router = pytest.mark.parametrize("kind", KINDS)
every_mask = pytest.mark.parametrize("mask", ["relu", "softmax"])


def _router(kind: str, d_in: int = 12, n: int = 7, **options) -> PrototypeRouter:
    torch.manual_seed(0)
    return make_router(kind, d_in, n, **options)


def _input(*shape: int, seed: int = 1) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def _closed(router: PrototypeRouter) -> PrototypeRouter:
    """The router with every threshold out of reach: 1 for a cosine, 1e6 for the others."""
    nn.init.constant_(router.gate, 1e6)
    return router


def _softmax(row: list[float]) -> list[float]:
    powers = [math.exp(value) for value in row]
    return [power / sum(powers) for power in powers]


def _dot(first: list[float], second: list[float]) -> float:
    return sum(a * b for a, b in zip(first, second, strict=True))


def _written_out(router: PrototypeRouter, x: list[float]) -> list[float]:
    """Logits of one token, number by number."""
    gate = router.gate.tolist()
    if isinstance(router, CrossAttentionPrototypeRouting):
        rms = math.sqrt(_dot(x, x) / len(x) + 1e-6)
        keys, values = router.keys.tolist(), router.values.tolist()
        attention = _softmax([_dot(x, key) / rms / math.sqrt(len(x)) for key in keys])
        c = float(router.score_scale)
        return [c * _dot(attention, [row[j] for row in values]) - gate[j] for j in range(len(gate))]
    logits = []
    for j, proto in enumerate(router.proto.tolist()):
        if isinstance(router, CosinePrototypeRouting):
            cosine = _dot(x, proto) / math.sqrt(_dot(x, x) * _dot(proto, proto))
            logits.append(float(router.score_scale) * (cosine - 1 / (1 + math.exp(-gate[j]))))
        else:
            logits.append(_dot(x, proto) / math.sqrt(len(x)) - gate[j])
    return logits


@every_mask
@every_router
def test_logits_and_weights_equal_the_formula(kind, mask):
    router = _router(kind, mask=mask).double()
    nn.init.normal_(router.gate)
    x = _input(2, 9, 12).double()
    with torch.no_grad():
        weights, logits = router(x, return_logits=True)
        assert torch.equal(weights, router(x))
    fell_back = 0
    for b in range(2):
        for t in range(9):
            expected = _written_out(router, x[b, t].tolist())
            assert logits[b, t].tolist() == pytest.approx(expected, abs=1e-9)
            masked = _softmax(expected) if mask == "softmax" else [max(z, 0.0) for z in expected]
            if kind == "cpr" and max(masked) == 0:
                best = max(range(7), key=expected.__getitem__)
                masked[best] = 1 / (1 + math.exp(-expected[best] / float(router.score_scale)))
                fell_back += 1
            assert weights[b, t].tolist() == pytest.approx(masked, abs=1e-9)
    assert fell_back > 0 or kind != "cpr" or mask == "softmax"


@every_router
def test_score_has_unit_variance_and_the_open_share_is_the_documented_one(kind):
    for d_in, n in ((32, 512), (64, 64), (512, 64)):
        x = _input(4096, d_in)
        for share in (0.1, 0.25, 0.4):
            router = _router(kind, d_in, n, open_share=share)
            logits = router.logits(x).detach()
            assert float(logits.std()) == pytest.approx(1.0, abs=0.06)
            assert float((logits > 0).float().mean()) == pytest.approx(share, abs=0.03)


@pytest.mark.parametrize("kind", ["cpr", "capr"])
def test_the_notes_init_keeps_the_share_and_loses_the_scale(kind):
    router = _router(kind, 256, 1024, init="notes")
    logits = router.logits(_input(4096, 256)).detach()
    assert float(router.score_scale) == 1.0
    assert float(logits.std()) == pytest.approx(1 / 16 if kind == "cpr" else 0.2, rel=0.15)
    assert float((logits > 0).float().mean()) == pytest.approx(0.25, abs=0.05)


def test_cross_attention_weights_at_init_are_the_documented_ones():
    x = _input(4096, 128)
    largest = {}
    for init in ("notes", "calibrated"):
        for mask in ("relu", "softmax"):
            router = _router("capr", 128, 64, init=init, mask=mask)
            largest[init, mask] = router(x).detach().amax(dim=-1)
    uniform = 1 / 64
    assert float(largest["notes", "softmax"].mean()) == pytest.approx(0.02, abs=0.005)
    assert float(largest["notes", "softmax"].max()) < 0.1
    assert float(largest["calibrated", "softmax"].mean()) == pytest.approx(0.1, abs=0.02)
    assert float(largest["calibrated", "softmax"].mean()) > 6 * uniform
    assert float(largest["calibrated", "relu"].mean()) == pytest.approx(1.6, abs=0.1)


@pytest.mark.parametrize("factor", [2.0**-7, 2.0, 2.0**9])
def test_cosine_routing_ignores_a_power_of_two_to_the_bit(factor):
    for gate in (None, 1e6):
        router = _router("cpr")
        if gate is not None:
            _closed(router)
        x = _input(40, 12)
        assert torch.equal(router(x), router(factor * x))


@every_router
def test_only_dot_routing_sees_the_length_of_x(kind):
    router = _router(kind).double()
    x = _input(40, 12).double()
    same = torch.allclose(router(x), router(37.1 * x), rtol=0, atol=1e-4)
    assert same is (kind != "dot")
    assert not torch.allclose(router(x), router(-x))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_cosine_routing_is_never_empty(dtype):
    for d_in in (32, 64, 2048):  # sigmoid of an undivided logit underflows at large widths
        router = _closed(_router("cpr", d_in, 5)).to(dtype)
        x = _input(50, d_in).to(dtype)
        x[0] = 0
        weights, logits = router(x, return_logits=True)
        assert (logits <= 0).all()
        assert ((weights > 0).sum(dim=-1) == 1).all()
        assert torch.equal(weights.argmax(dim=-1), logits.argmax(dim=-1))
        assert weights.amax(dim=-1).min() >= 0.11
        assert weights.max() <= 0.5
    half_open = _router("cpr", 64, 5, open_share=0.05).to(dtype)
    x = _input(200, 64).to(dtype)
    weights, logits = half_open(x, return_logits=True)
    is_open = (logits > 0).any(dim=-1)
    assert 0 < int(is_open.sum()) < 200
    assert torch.equal(weights[is_open], logits[is_open].relu())
    assert (weights.amax(dim=-1) > 0).all()


def test_equal_prototypes_fall_back_to_one():
    router = _closed(_router("cpr"))
    with torch.no_grad():
        router.proto.copy_(router.proto[:1].expand(7, 12))
    assert torch.equal((router(_input(30, 12)) > 0).sum(dim=-1), torch.ones(30))


@pytest.mark.parametrize("kind", ["dot", "capr"])
def test_the_other_routers_close_completely(kind):
    router = _closed(_router(kind))
    x = _input(30, 12).requires_grad_()
    weights = router(x)
    assert torch.equal(weights, torch.zeros(30, 7))
    weights.sum().backward()
    assert torch.equal(x.grad, torch.zeros(30, 12))


def test_a_zero_vector_has_finite_weights_and_gradients():
    for kind in KINDS:
        router = _router(kind)
        x = torch.zeros(3, 12, requires_grad=True)
        weights = router(x)
        weights.square().sum().backward()
        assert weights.isfinite().all()
        assert x.grad.isfinite().all()
        assert all(bool(p.grad.isfinite().all()) for p in router.parameters())


def test_the_gradient_passes_closed_prototypes_straight_through():
    router = _router("cpr").double()
    x = _input(60, 12).double()
    weights, logits = router(x, return_logits=True)
    is_open = (logits > 0).any(dim=-1)
    assert is_open.any()
    assert not (logits[is_open] > 0).all()
    upstream = torch.randn_like(weights) * is_open[:, None]
    through = torch.autograd.grad((weights * upstream).sum(), router.proto, retain_graph=True)
    identity = torch.autograd.grad((logits * upstream).sum(), router.proto)
    torch.testing.assert_close(through, identity)


@every_mask
@pytest.mark.parametrize("kind", ["dot", "capr", "cpr"])
def test_gradients_equal_finite_differences(kind, mask):
    """Of the weights; of the logits where the weights pass gradients straight through."""
    router = _router(kind, 4, 3, mask=mask)
    if kind == "capr":
        router = CrossAttentionPrototypeRouting(4, 3, slots=3, mask=mask)
    router.double()
    x = _input(6, 4).double().requires_grad_()
    names, parameters = zip(*router.named_parameters(), strict=True)

    def call(x, *values):
        state = dict(zip(names, values, strict=True))
        weights, logits = torch.func.functional_call(router, state, (x,), {"return_logits": True})
        return logits if kind == "cpr" and mask == "relu" else weights

    assert torch.autograd.gradcheck(call, (x, *parameters))


@every_router
def test_every_parameter_learns_from_the_weights_and_from_the_logits(kind):
    for part in (0, 1):
        router = _router(kind)
        router(_input(60, 12), return_logits=True)[part].square().sum().backward()
        for name, parameter in router.named_parameters():
            assert parameter.grad.abs().sum() > 0, name


@every_router
def test_second_order_gradients_exist(kind):
    router = _router(kind).double()
    x = _input(20, 12).double().requires_grad_()
    (first,) = torch.autograd.grad(router(x).square().sum(), x, create_graph=True)
    first.square().sum().backward()
    assert all(bool(p.grad.abs().sum() > 0) for p in router.parameters())


@every_router
def test_distinct_inputs_take_distinct_routes(kind):
    weights = _router(kind, n=64)(_input(50, 12)).detach()
    distance = torch.cdist(weights, weights) + torch.eye(50)
    assert float(distance.min()) > 1e-3


@every_router
def test_tokens_do_not_see_each_other(kind):
    router = _router(kind).double()
    x = _input(2, 10, 12).double()
    alone = torch.stack([router(x[b, t]) for b in range(2) for t in range(10)]).view(2, 10, 7)
    torch.testing.assert_close(router(x), alone)


@every_mask
@every_router
def test_every_dtype_gives_weights_that_are_not_negative(kind, mask):
    router = _router(kind, mask=mask)
    x = _input(20, 12)
    exact = router.double()(x.double())
    single = router.float()(x)
    torch.testing.assert_close(single.double(), exact, rtol=1e-4, atol=1e-5)
    low = router.bfloat16()(x.bfloat16())
    assert low.dtype == torch.bfloat16
    assert low.min() >= 0
    torch.testing.assert_close(low.double(), exact, rtol=0.1, atol=0.1)


@every_mask
@every_router
def test_bfloat16_autocast_follows_float32(kind, mask):
    router = _router(kind, 128, 32, mask=mask)
    x = _input(64, 128)
    with torch.autocast("cpu", torch.bfloat16):
        low = router(x)
    exact = router(x)
    assert float(((low.float() - exact).norm() / exact.norm()).detach()) < 0.03
    low.float().square().sum().backward()
    assert all(bool(p.grad.isfinite().all()) for p in router.parameters())


@every_mask
@every_router
def test_compiled_in_one_graph(kind, mask):
    router = _router(kind, mask=mask)
    compiled = torch.compile(router, backend="aot_eager", fullgraph=True)
    gradients = []
    for module in (router, compiled):
        x = _input(20, 12).requires_grad_()
        weights, logits = module(x, return_logits=True)
        loss = weights.square().sum() + logits.sum()
        gradients.append((weights, *torch.autograd.grad(loss, (x, *router.parameters()))))
    for eager, traced in zip(*gradients, strict=True):
        torch.testing.assert_close(eager, traced)


@every_router
def test_state_dict_round_trip(kind):
    source = _router(kind)
    target = make_router(kind, 12, 7)
    x = _input(5, 12)
    assert not torch.equal(source(x), target(x))
    target.load_state_dict(source.state_dict())
    assert torch.equal(source(x), target(x))


@every_router
def test_initialisation_repeats_from_the_global_seed(kind):
    router = _router(kind)
    after = torch.rand(1)
    again = _router(kind)
    assert torch.equal(after, torch.rand(1))
    for first, second in zip(
        router.state_dict().values(), again.state_dict().values(), strict=True
    ):
        assert torch.equal(first, second)


@every_router
def test_made_on_another_device(kind):
    """What a generator draws must be on its device, which most devices insist on."""

    class Draws(TorchFunctionMode):
        def __torch_function__(self, func, types, args=(), kwargs=None):
            made, generator = func(*args, **(kwargs or {})), (kwargs or {}).get("generator")
            if generator is not None:
                drawn.append((made.device, generator.device))
            return made

    drawn = []
    with torch.device("meta"), Draws():
        router = make_router(kind, 12, 7)
    assert {x.device.type for x in router.state_dict().values()} == {"meta"}
    assert len(drawn) == (kind == "capr")
    assert all(device == own for device, own in drawn)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: make_router("nearest", 4, 4), r"router='nearest': must be 'dot', 'cpr' or 'capr'"),
        (lambda: make_router("dot", 4, 4, init="zeros"), r"init='zeros': must be 'calibrated'"),
        (lambda: DotPrototypeRouting(0, 4), r"d_in=0: must be at least 1"),
        (lambda: DotPrototypeRouting(4, 0), r"num_prototypes=0: must be at least 1"),
        (lambda: DotPrototypeRouting(4, 4, mask="top"), r"mask='top': must be 'relu' or 'soft"),
        (lambda: DotPrototypeRouting(4, 4, open_share=1), r"open_share=1: must lie between"),
        (lambda: CosinePrototypeRouting(4, 4, init="zeros"), r"init='zeros': must be"),
        (lambda: CosinePrototypeRouting(4, 4, open_share=0.5), r"open_share=0.5: a cosine thr"),
        (lambda: CosinePrototypeRouting(4, 4, open_share=0.01), r"open_share=0.01.*nearer to 0.25"),
        (lambda: CrossAttentionPrototypeRouting(4, 4, slots=1), r"slots=1: must be at least 2"),
        (lambda: CrossAttentionPrototypeRouting(4, 4, init="zeros"), r"init='zeros': must be"),
    ],
)
def test_bad_arguments_name_the_fix(make, message):
    with pytest.raises(ValueError, match=message):
        make()
