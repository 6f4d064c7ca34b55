"""SML: its value by hand, its gradient by finite differences, and that it trains the gates."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dynnsiha import SparseBayesianLinear, surprise_minimization_loss
from dynnsiha.learning import record_routing, twice_differentiable
from dynnsiha.synthesis import SparseProtoLinear

ROUTING_PARAMETERS = {
    "dynsiha": 8,
    "dynnsiha exact": 8,
    "dynnsiha hybrid": 8,
    "moie": 16,
    "dimension": 16,
}
variants = pytest.mark.parametrize("name", ROUTING_PARAMETERS)
STEP = 1e-7  # so small that no neuron opens or closes: there the loss has a jump


def _decides(parameter_name: str) -> bool:
    """Sigma and gate of an SBL, prototypes and gate of an SPL."""
    return parameter_name.rsplit(".", 1)[-1] in ("sigma_raw", "proto", "gate")


def _main(model: nn.Module, ids: tuple[Tensor, Tensor]) -> Tensor:
    """Next-character loss in the model's own precision."""
    logits = model(*ids)
    return F.cross_entropy(logits[:, :-1].flatten(0, 1), ids[0][:, 1:].flatten())


def _surprise(model: nn.Module, ids: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    """(SML, main loss) of a model on a batch."""
    with twice_differentiable(model), record_routing(model) as calls:
        main = _main(model, ids)
    return surprise_minimization_loss(main, calls), main


def _surprises_by_hand(model: nn.Module, ids: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    """S and the activation rate of every neuron, from first-order gradients and plain hooks."""
    outputs: list[Tensor] = []
    rates: list[Tensor] = []

    def keep(layer: nn.Module, args: tuple[Tensor, ...], output: Tensor | tuple) -> None:
        y = output[0] if isinstance(output, tuple) else output
        if isinstance(layer, SparseProtoLinear):
            read = args[0] if len(args) == 1 or args[1] is None else args[1]
            score, gate = read @ layer.router.proto.T, layer.router.gate
        else:
            read = args[0]
            score, gate = read @ layer.keys().T * layer.score_scale, layer.gate
        is_open = score / math.sqrt(read.shape[-1]) > gate
        rates.append(is_open.double().flatten(0, -2).mean(0))
        outputs.append(y)

    kinds = (SparseBayesianLinear, SparseProtoLinear)
    layers = [m for m in model.modules() if isinstance(m, kinds)]
    handles = [layer.register_forward_hook(keep) for layer in layers]
    main = _main(model, ids)
    grads = torch.autograd.grad(main, outputs)
    for handle in handles:
        handle.remove()
    norms = [(g * g).sum((0, 1)).sqrt() for g in grads]
    return torch.cat(norms), torch.cat(rates)


def _loss_by_hand(surprises: Tensor, rates: Tensor, largest: float) -> float:
    total = 0.0
    for s, rate in zip(surprises.tolist(), rates.tolist(), strict=True):
        if s > 1e-9 and rate > 0:
            share = s * rate / (math.e**2 * largest)
            total -= share * math.log(share)
    return total


@variants
def test_value_equals_the_formula(name, small_model, ids):
    model = small_model(name).double()
    surprises, rates = _surprises_by_hand(model, ids)
    expected = _loss_by_hand(surprises, rates, float((surprises * rates).max()))
    sml, main = _surprise(model, ids)
    assert float(sml.detach()) == pytest.approx(expected, rel=1e-9)
    assert float(main.detach()) == pytest.approx(float(_main(model, ids).detach()), rel=1e-12)


@variants
def test_gradient_equals_finite_differences_on_sigma_and_gate_and_is_zero_elsewhere(
    name, small_model, ids
):
    model = small_model(name).double()
    _surprise(model, ids)[0].backward()
    trained = [n for n, _ in model.named_parameters() if _decides(n)]
    assert len(trained) == ROUTING_PARAMETERS[name]
    for parameter_name, parameter in model.named_parameters():
        if parameter_name in trained:
            assert float(parameter.grad.abs().max()) > 1e-6, parameter_name
        else:
            assert parameter.grad is None, parameter_name

    surprises, rates = _surprises_by_hand(model, ids)
    largest = float((surprises * rates).max())
    torch.manual_seed(1)
    for parameter_name in trained:
        parameter = model.get_parameter(parameter_name)
        direction = torch.randn_like(parameter)
        direction /= direction.norm()
        values = []
        for sign in (1, -1):
            with torch.no_grad():
                parameter += sign * STEP * direction
            # The rates and the maximum are constants of the loss.
            values.append(_loss_by_hand(_surprises_by_hand(model, ids)[0], rates, largest))
            with torch.no_grad():
                parameter -= sign * STEP * direction
        slope = (values[0] - values[1]) / (2 * STEP)
        assert float((parameter.grad * direction).sum()) == pytest.approx(
            slope, rel=1e-3, abs=1e-6
        ), parameter_name


@pytest.mark.parametrize("name", ["dynsiha", "dynnsiha exact", "dynnsiha hybrid", "dimension"])
def test_a_few_steps_on_it_alone_lower_it(name, small_model, ids):
    model = small_model(name)
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    # By the rates and the maximum of the first step: they are constants of the loss.
    surprises, rates = _surprises_by_hand(model, ids)
    largest = float((surprises * rates).max())
    for _ in range(12):
        sml, _ = _surprise(model, ids)
        optimizer.zero_grad()
        sml.backward()
        optimizer.step()
    after, _ = _surprises_by_hand(model, ids)
    assert _loss_by_hand(after, rates, largest) < 0.98 * _loss_by_hand(surprises, rates, largest)
    for parameter_name, parameter in model.named_parameters():
        moved = not torch.equal(parameter, before[parameter_name])
        assert moved is _decides(parameter_name), parameter_name


def test_the_most_surprising_neuron_is_trained_too():
    torch.manual_seed(0)
    layer = SparseBayesianLinear(4, 3).double()
    x = torch.randn(10, 4, dtype=torch.float64)
    with record_routing(layer) as calls:
        main = (layer(x) ** 3).mean()
    surprise_minimization_loss(main, calls).backward()
    grads = torch.autograd.grad((layer(x) ** 3).mean(), calls[0].y, allow_unused=True)
    assert grads == (None,)  # another graph: the recorded one is what counted
    assert bool((layer.gate.grad.abs() > 0).all())


def test_a_layer_called_twice_counts_as_one():
    torch.manual_seed(0)
    layer = SparseBayesianLinear(5, 4).double()
    x = torch.randn(6, 5, dtype=torch.float64)
    with record_routing(layer) as together:
        main = layer(x).square().sum()
    with record_routing(layer) as halves:
        same = layer(x[:2]).square().sum() + layer(x[2:]).square().sum()
    torch.testing.assert_close(
        surprise_minimization_loss(main, together), surprise_minimization_loss(same, halves)
    )


def test_neurons_that_never_open_or_do_not_matter_are_left_out():
    torch.manual_seed(0)
    layer = SparseBayesianLinear(4, 3).double()
    x = torch.randn(8, 4, dtype=torch.float64)
    with torch.no_grad():
        layer.gate[0] = 1e6
    with record_routing(layer) as calls:
        y = layer(x)
        main = y[:, 0].sum() + y[:, 2].pow(3).sum()  # y_1 does not matter, y_0 is always 0
    sml = surprise_minimization_loss(main, calls)
    share = math.exp(-2)  # one neuron left, and it is the largest
    assert float(sml.detach()) == pytest.approx(2 * share)
    sml.backward()
    assert layer.gate.grad.isfinite().all()
    assert layer.gate.grad[:2].tolist() == [0, 0]
    assert layer.gate.grad[2] != 0


def test_without_any_surprise_it_is_zero():
    layer = SparseBayesianLinear(4, 3)
    with record_routing(layer) as calls:
        y = layer(torch.randn(2, 4))
    assert surprise_minimization_loss((0 * y).sum(), calls) == 0
    unrelated = torch.ones((), requires_grad=True) * 2
    assert surprise_minimization_loss(unrelated, calls) == 0


def test_a_sparse_proto_layer_trains_its_router():
    torch.manual_seed(0)
    layer = SparseProtoLinear(6, 8).double()
    x = torch.randn(20, 6, dtype=torch.float64)
    with record_routing(layer) as calls:
        main = F.softplus(layer(x)).mean()
    surprise_minimization_loss(main, calls).backward()
    assert layer.mu.grad is None
    assert layer.router.proto.grad.abs().sum() > 0
    assert layer.router.gate.grad.abs().sum() > 0


@variants
def test_fast_attention_is_refused_with_the_fix(name, small_model, ids):
    model = small_model(name)
    with record_routing(model) as calls:
        main = model.loss(*ids)
    with pytest.raises(RuntimeError, match=r"inside twice_differentiable\(model\)"):
        surprise_minimization_loss(main, calls)


def test_no_calls_are_refused():
    with pytest.raises(ValueError, match="calls has no routed neurons"):
        surprise_minimization_loss(torch.ones((), requires_grad=True), [])


def test_backends_come_back(small_model, ids):
    model = small_model("dynnsiha exact")
    cores = [block.attention.core for block in model.blocks]
    with twice_differentiable(model):
        assert [core.backend for core in cores] == ["reference", "reference"]
    assert [core.backend for core in cores] == ["auto", "auto"]
    with pytest.raises(KeyError), twice_differentiable(model):
        raise KeyError
    assert [core.backend for core in cores] == ["auto", "auto"]
