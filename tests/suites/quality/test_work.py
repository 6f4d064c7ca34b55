"""The cost of a training: the model's own matrices, counted."""

from __future__ import annotations

import pytest
from torch import nn

from dynbench.suites.cost import call_work, once_s
from dynbench.suites.plan import PlanOptions, plan
from dynbench.suites.quality.recipe import Recipe
from dynbench.suites.quality.tasks.recall import Recall
from dynbench.suites.quality.training import Training
from dynbench.suites.quality.work import block_products
from dynbench.suites.spec import Spec
from dynbench.suites.work import dense_pairs, sliding_pairs
from dynnsiha.forms.experts import ExpertLinear
from dynnsiha.synthesis.sbl import SparseBayesianLinear


def products_of(model: nn.Module) -> int:
    """Weights that a token meets in matrix products; of 16 experts, two."""
    total = 0
    for module in model.modules():
        if isinstance(module, nn.Linear):
            total += module.weight.numel()
        elif isinstance(module, SparseBayesianLinear):
            total += 2 * module.mu.numel()
        elif isinstance(module, ExpertLinear):
            total += module.weight.numel() * 2 // 16
        elif hasattr(module, "proto"):
            total += module.proto.numel()
    return total


@pytest.mark.parametrize(
    ("provider", "variants"),
    [
        ("sdpa", ()),
        ("sliding", ()),
        ("nsa", ()),
        ("dynsiha", ()),
        ("dynnsiha", ()),
        ("dynnsiha", ("synthesis=linear",)),
        ("dynnsiha", ("synthesis=values",)),
        ("dynnsiha", ("feed_forward=moie",)),
        ("nsa", ("feed_forward=moie",)),
        ("flat", ()),
        ("dynsiha", ("form=flat",)),
    ],
)
def test_products_are_the_models(provider, variants, tiny_case):
    case = tiny_case(provider, variants=variants)
    training = Training(case, Spec.of(case), Recall(2, 64), Recipe())
    assert 2 * block_products(case) + 16 * 256 == products_of(training.model)


def test_flops_of_a_step_are_products_and_pairs(tiny_case):
    dense, sliding = (call_work(tiny_case(name)) for name in ("sdpa", "sliding"))
    pairs = 14 * 2 * 2 * 2 * 8 * 4  # per pair: layers, batch, heads, width, steps
    assert dense.flops == dense.dense_flops
    gates = 6 * 4 * 2 * 64 * 2 * 3 * 2 * 16
    less = pairs * (dense_pairs(64) - sliding_pairs(64, 8))
    assert dense.flops - sliding.flops == less - gates
    twice = call_work(tiny_case("sdpa", train_steps=8))
    assert twice.flops == 2 * dense.flops


def test_a_training_has_a_least_duration_and_other_cases_have_none(tiny_case):
    assert once_s(tiny_case("sdpa", train_steps=1000)) == 10
    assert once_s(plan(PlanOptions((64,), "cpu"))[0]) is None
