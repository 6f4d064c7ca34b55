"""The total loss: weights, terms, and who is trained by what."""

from __future__ import annotations

import math

import pytest
import torch

from dynnsiha import (
    FisherAwareRoutingShaping,
    SparseBayesianLinear,
    SparseProtoLinear,
    SurpriseAwareRoutingShaping,
    kl_divergence_loss,
    surprise_minimization_loss,
)
from dynnsiha.forms.nsa import SparseCore
from dynnsiha.learning import (
    Objective,
    output_entropy,
    record_routing,
    total_loss,
    twice_differentiable,
)


def test_surprise_is_weighted_by_one_minus_sigmoid_of_the_main_loss():
    main = torch.tensor(1.5, requires_grad=True)
    surprise = torch.tensor(4.0, requires_grad=True)
    kl, sars, fars = torch.tensor([2.0, 3.0, 5.0])
    total = total_loss(
        main,
        surprise=surprise,
        kl=kl,
        sars=sars,
        fars=fars,
        alignment=torch.tensor(7.0),
        surprise_weight=0.5,
        kl_weight=0.1,
        sars_weight=0.2,
        fars_weight=0.3,
        alignment_weight=0.01,
    )
    share = 1 - 1 / (1 + math.exp(-1.5))
    assert float(total.detach()) == pytest.approx(1.5 + 0.5 * share * 4 + 0.2 + 0.6 + 1.5 + 0.07)
    total.backward()
    assert main.grad == 1  # a lower weight of the surprise is no reason to raise the main loss
    assert float(surprise.grad) == pytest.approx(0.5 * share)
    assert total_loss(main) is main


@pytest.mark.parametrize("name", ["dynsiha", "dynnsiha exact", "dynnsiha hybrid", "nsa"])
def test_alone_it_is_the_models_own_loss(name, small_model, ids):
    model = small_model(name)
    losses = Objective()(model, *ids)
    assert torch.equal(losses.total, model.loss(*ids))
    assert losses.numbers() == {
        "total": float(losses.main.detach()),
        "main": float(losses.main.detach()),
        "surprise": None,
        "kl": None,
        "sars": None,
        "fars": None,
        "alignment": None,
    }


@pytest.mark.parametrize("name", ["dynsiha", "dynnsiha hybrid"])
def test_all_terms_equal_their_own_functions(name, small_model, ids):
    model = small_model(name)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    model.loss(*ids).backward()
    optimizer.step()
    optimizer.zero_grad()
    sars, fars = SurpriseAwareRoutingShaping(), FisherAwareRoutingShaping(optimizer)
    objective = Objective(
        surprise_weight=2.0, kl_weight=0.3, sars=sars, sars_weight=0.2, fars=fars, fars_weight=0.1
    )
    losses = objective(model, *ids)
    with twice_differentiable(model), record_routing(model) as calls:
        logits = model(*ids)
        main = model.loss(*ids)
    calls = calls[len(calls) // 2 :]
    expected = {
        "main": main,
        "surprise": surprise_minimization_loss(main, calls),
        "kl": kl_divergence_loss(model, output_entropy(logits[:, :-1])),
        "sars": sars(main, calls),
        "fars": fars(calls),
    }
    for term, value in expected.items():
        assert float(getattr(losses, term).detach()) == pytest.approx(
            float(value.detach()), rel=1e-4
        ), term
    share = 2.0 * float(torch.sigmoid(-main.detach()))
    total = main + share * expected["surprise"] + 0.3 * expected["kl"]
    total = total + 0.2 * expected["sars"] + 0.1 * expected["fars"]
    assert float(losses.total.detach()) == pytest.approx(float(total.detach()), rel=1e-4)

    losses.total.backward()
    together = {n: p.grad.clone() for n, p in model.named_parameters()}
    optimizer.zero_grad()
    total.backward()
    for parameter_name, parameter in model.named_parameters():
        torch.testing.assert_close(
            together[parameter_name], parameter.grad, rtol=1e-3, atol=1e-5, msg=parameter_name
        )


@pytest.mark.parametrize(
    "name", ["dynnsiha hybrid", "dynsiha", "dimension", "moie", "deep embed", "flat", "recursive"]
)
def test_activation_checkpointing_changes_no_term(name, small_model, ids):
    results = []
    for recompute in (False, True):
        model = small_model(name, activation_checkpointing=recompute)
        optimizer = torch.optim.AdamW(model.parameters())
        kinds = {type(part) for part in model.modules()}
        objective = Objective(
            surprise_weight=float(not kinds.isdisjoint((SparseBayesianLinear, SparseProtoLinear))),
            kl_weight=float(SparseBayesianLinear in kinds),
            sars=SurpriseAwareRoutingShaping(),
            fars=FisherAwareRoutingShaping(optimizer),
            alignment_weight=float(SparseCore in kinds),
        )
        losses = objective(model, *ids)
        losses.total.backward()
        assert model.activation_checkpointing is recompute
        results.append((losses.numbers(), [p.grad for p in model.parameters()]))
    (numbers, grads), (again, repeated) = results
    assert numbers == again
    assert all(torch.equal(*pair) for pair in zip(grads, repeated, strict=True))


def test_negative_weights_are_refused():
    with pytest.raises(ValueError, match="kl_weight=-1: must be at least 0"):
        Objective(kl_weight=-1)
