"""SARS: gradient norms by brute force, goodness by hand, and whom the meta loss trains."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from dynnsiha import SparseBayesianLinear, SparseProtoLinear, SurpriseAwareRoutingShaping
from dynnsiha.learning import expert_gradient_norms, record_routing

TOKENS, WIDTH, NEURONS = 9, 6, 5
layers = pytest.mark.parametrize(
    "layer",
    [
        SparseBayesianLinear(WIDTH, NEURONS),
        SparseBayesianLinear(WIDTH, NEURONS, routing="cosine"),
        SparseProtoLinear(WIDTH, NEURONS, open_share=0.4),
        SparseProtoLinear(WIDTH, NEURONS, router="cpr", open_share=0.4),
        SparseProtoLinear(WIDTH, NEURONS, router="capr", mask="softmax"),
    ],
    ids=["sbl", "sbl cosine", "spl dot", "spl cpr", "spl capr"],
)


def _loss(y: Tensor) -> Tensor:
    """Couples all tokens and neurons."""
    mixed = torch.einsum(
        "tj,jk->tk", y, torch.linspace(-1, 1, NEURONS**2).view(NEURONS, NEURONS).to(y)
    )
    return F.softplus(mixed.cumsum(0)).square().mean()


def _token_by_token(layer, x: Tensor) -> tuple[Tensor, Tensor]:
    """||dL/dy_tj|| and ||dL/dmu_tj|| with one copy of mu for every token: what must come out."""
    mu = layer.mu.detach().expand(len(x), *layer.mu.shape).clone().requires_grad_()
    _, weight = layer(x, return_routing=True)  # the keys keep the layer's own mu
    u = F.silu(x) if isinstance(layer, SparseProtoLinear) else x
    value = torch.stack([mu[t] @ u[t] for t in range(len(x))])
    if isinstance(layer, SparseBayesianLinear):
        value = value + layer.bias
    y = weight.detach() * value
    y.retain_grad()
    _loss(y).backward()
    return y.grad.abs(), mu.grad.norm(dim=-1)


@layers
def test_per_token_norms_equal_brute_force(layer):
    torch.manual_seed(0)
    layer = layer.double()
    if isinstance(layer, SparseBayesianLinear):
        torch.nn.init.normal_(layer.bias)
    x = 2 * torch.randn(TOKENS, WIDTH, dtype=torch.float64)
    importance, cost = _token_by_token(layer, x)
    with record_routing(layer) as calls:
        loss = _loss(layer(x))
    (call,) = calls
    (grad_y,) = torch.autograd.grad(loss, call.y)
    ours = call.gradient_norms([grad_y])
    torch.testing.assert_close(ours[0], importance)
    torch.testing.assert_close(ours[1], cost)
    assert float(cost.max()) > 0
    if getattr(layer, "router", None) is None or layer.router.mask == "relu":
        assert float(cost.min()) == 0  # closed neurons cost nothing


def test_expert_norms_equal_brute_force():
    torch.manual_seed(0)
    tokens, experts, width, hidden = 7, 4, 6, 5
    options = {"dtype": torch.float64}
    x = torch.randn(tokens, width, **options)
    weight = torch.randn(tokens, experts, **options)
    inner = torch.randn(experts, hidden, width, **options)
    outer = torch.randn(experts, width, hidden, **options)
    u = F.silu(torch.einsum("ehd,td->teh", inner, x))
    per_token = outer.expand(tokens, -1, -1, -1).clone().requires_grad_()
    parts = torch.einsum("tedh,teh->ted", per_token, u)
    parts.retain_grad()
    y = (weight[..., None] * parts).sum(1)
    y.retain_grad()
    F.softplus(y.cumsum(0)).square().mean().backward()
    output_norm, matrix_norm = expert_gradient_norms(y.grad, weight, u)
    torch.testing.assert_close(output_norm, parts.grad.norm(dim=-1))
    torch.testing.assert_close(matrix_norm, per_token.grad.norm(dim=(-2, -1)))
    same, cost = expert_gradient_norms(y.grad, weight)
    assert torch.equal(same, output_norm)
    assert torch.equal(cost, output_norm)


def _goodness_by_hand(logits, importance, cost, relative: bool) -> list[list[float]]:
    logits, importance, cost = logits.tolist(), importance.tolist(), cost.tolist()
    columns = [max(row[j] for row in cost) for j in range(len(cost[0]))]
    rows = []
    for z, s, c in zip(logits, importance, cost, strict=True):
        largest, most = max(map(abs, z)), max(s) if relative else 1.0
        rows.append(
            [
                (s[j] / most if most else 0.0)
                * (z[j] / largest - (c[j] / columns[j] if columns[j] else 0.0))
                for j in range(len(z))
            ]
        )
    return rows


@pytest.mark.parametrize("sign", ["plus", "minus"])
@pytest.mark.parametrize("importance", ["relative", "absolute"])
def test_goodness_and_meta_loss_equal_the_formulas(sign, importance):
    torch.manual_seed(0)
    logits = torch.randn(6, 4, dtype=torch.float64)
    norms = torch.rand(2, 6, 4, dtype=torch.float64)
    norms[:, 2] = 0  # a token that the loss does not see
    norms[1, :, 3] = 0  # a neuron that never opens
    shaping = SurpriseAwareRoutingShaping(sign, importance)
    expected = _goodness_by_hand(logits, *norms, relative=importance == "relative")
    goodness = shaping.goodness(logits, *norms)
    torch.testing.assert_close(goodness, torch.tensor(expected, dtype=torch.float64))

    entropies = []
    for z, good in zip(logits.tolist(), expected, strict=True):
        shaped = [a + b if sign == "plus" else a - b for a, b in zip(z, good, strict=True)]
        total = sum(math.exp(v) for v in shaped)
        entropies.append(-sum(math.exp(v) / total * math.log(math.exp(v) / total) for v in shaped))
    value = float(shaping.meta_loss(logits, *norms))
    assert value == pytest.approx(sum(entropies) / 6)


def test_goodness_is_a_constant_and_logits_are_trained():
    torch.manual_seed(0)
    logits = torch.randn(6, 4, requires_grad=True)
    norms = torch.rand(2, 6, 4).requires_grad_()
    SurpriseAwareRoutingShaping().meta_loss(logits, *norms).backward()
    assert norms.grad is None
    assert logits.grad.abs().sum() > 0


def test_goodness_does_not_depend_on_the_scale_of_the_loss():
    torch.manual_seed(0)
    logits, importance, cost = torch.rand(3, 6, 4, dtype=torch.float64)
    relative, absolute = (
        SurpriseAwareRoutingShaping(importance=kind) for kind in ("relative", "absolute")
    )
    small = (1e-6 * importance, 1e-6 * cost)
    torch.testing.assert_close(
        relative.goodness(logits, *small), relative.goodness(logits, importance, cost)
    )
    assert float(absolute.goodness(logits, *small).abs().max()) < 2e-6


@pytest.mark.parametrize(("sign", "rises"), [("plus", True), ("minus", False)])
def test_plus_concentrates_on_good_modules_and_minus_does_not(sign, rises):
    """One module of four is good; entropy falls by moving probability to it, or away from it."""
    logits = torch.zeros(32, 4)
    logits[:, 0] = 0.1
    logits.requires_grad_()
    importance = torch.tensor([1.0, 0.1, 0.1, 0.1]).expand(32, 4)
    cost = torch.zeros(32, 4)
    optimizer = torch.optim.SGD([logits], lr=20.0)
    before = float(logits.softmax(-1)[:, 0].mean().detach())
    shaping = SurpriseAwareRoutingShaping(sign)
    for _ in range(60):
        optimizer.zero_grad()
        shaping.meta_loss(logits, importance, cost).backward()
        optimizer.step()
    after = float(logits.softmax(-1)[:, 0].mean().detach())
    assert (after > 0.9) is rises
    assert (after < before) is not rises


@layers
def test_only_routing_parameters_receive_it(layer):
    torch.manual_seed(0)
    layer = layer.double()
    layer.zero_grad()
    first = torch.nn.Linear(WIDTH, WIDTH).double()
    x = torch.randn(TOKENS, WIDTH, dtype=torch.float64)
    with record_routing(layer) as calls:
        loss = _loss(layer(first(x)))
    value = SurpriseAwareRoutingShaping()(loss, calls)
    value.backward()
    routing = {id(p) for p in calls[0].routing_parameters()}
    for name, parameter in layer.named_parameters():
        if id(parameter) in routing:
            assert parameter.grad.abs().sum() > 0, name
        else:
            assert parameter.grad is None, name
    assert first.weight.grad is None
    loss.backward()  # the main graph is still there
    assert first.weight.grad is not None


def test_the_loss_of_a_model_is_the_mean_over_its_calls(small_model, ids):
    model = small_model("dynnsiha exact").double()
    shaping = SurpriseAwareRoutingShaping("minus")
    with record_routing(model) as calls:
        main = model.loss(*ids)
    expected = []
    for call in calls:
        (grad_y,) = torch.autograd.grad(main, call.y, retain_graph=True)
        importance = grad_y.abs()
        cost = (grad_y * call.weight).abs() * call.x.norm(dim=-1, keepdim=True)
        logits = call.layer.score(call.x) - call.layer.gate
        expected.append(shaping.meta_loss(logits, importance.detach(), cost.detach()))
    value = shaping(main, calls)
    torch.testing.assert_close(value.detach(), torch.stack(expected).mean().detach())
    assert len(calls) == 4


def test_a_layer_without_influence_is_shaped_by_belief_alone():
    layer = SparseBayesianLinear(WIDTH, NEURONS)
    with record_routing(layer) as calls:
        layer(torch.randn(TOKENS, WIDTH))
    unrelated = torch.ones((), requires_grad=True) * 2
    value = SurpriseAwareRoutingShaping()(unrelated, calls)
    p = calls[0].logits().softmax(-1)
    torch.testing.assert_close(value.detach(), -(p * p.log()).sum(-1).mean().detach())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"sign": "times"}, "sign='times': must be 'plus' or 'minus'"),
        ({"importance": "none"}, "importance='none': must be 'relative' or 'absolute'"),
    ],
)
def test_bad_options_name_the_fix(arguments, message):
    with pytest.raises(ValueError, match=message):
        SurpriseAwareRoutingShaping(**arguments)


def test_no_calls_are_refused():
    with pytest.raises(ValueError, match="calls is empty"):
        SurpriseAwareRoutingShaping()(torch.ones((), requires_grad=True), [])
