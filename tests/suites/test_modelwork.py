"""Closed forms of a model's step beside the model itself and counts by hand."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.flop_counter import FlopCounterMode

from dynbench.suites.cost import call_work, further_flops
from dynbench.suites.modelwork import model_cost, prefill_flops
from dynbench.suites.plan import PlanOptions, plan
from dynbench.suites.shapes import Shape
from dynbench.suites.spec import Spec
from dynbench.suites.stepmodel import parameter_count, step_model
from dynnsiha.forms.layer import CoreRouting

SHAPE = Shape("", 4, 2, 8, model_dim=24)
BLOCKS = ["sdpa", "nsa", "dynsiha", "dynnsiha"]
FORMS = ["flat", "recursive"]


def case_of(provider, suite="generation", seq_len=150, **changes):
    options = {"shapes": (SHAPE,), "batch": 2, "layers": 3, "query_tiles": (16,)} | changes
    request = PlanOptions((seq_len,), "cpu", suite=suite, providers=(provider,), **options)
    return plan(request)[0]


@pytest.mark.parametrize("provider", BLOCKS + FORMS)
@pytest.mark.parametrize("layers", [1, 3])
def test_parameters_are_those_of_the_model(provider, layers):
    case = case_of(provider, layers=layers)
    assert model_cost(case).parameters == parameter_count(step_model(Spec.of(case)))
    assert model_cost(case).attentions == layers


@pytest.mark.parametrize("provider", BLOCKS)
def test_products_are_those_that_torch_counts(provider):
    """Of everything but the attention between the projections."""
    case = case_of(provider)
    model = step_model(Spec.of(case))
    for block in model.blocks:
        core = block.attention.core
        core.forward = partial(_without_attention, getattr(core, "gates", None))
    ids = torch.randint(256, (2, 150))
    with FlopCounterMode(display=False) as counter:
        loss = model.loss(ids, ids)
    forward = counter.get_total_flops()
    assert forward == 2 * 2 * 150 * model_cost(case).products
    with FlopCounterMode(display=False) as counter:
        loss.backward()
    assert counter.get_total_flops() == 2 * forward


def _without_attention(gates, q, k, v, x, **_):
    """In place of a core: what each token has of its own, and the gates' product."""
    o = q + (k + v).repeat_interleave(2, dim=2)
    return (o if gates is None else o * gates(x).mean()), CoreRouting()


@pytest.mark.parametrize("provider", FORMS)
def test_products_of_the_forms_are_those_of_the_experts_taken(provider):
    case = case_of(provider)
    model = step_model(Spec.of(case))
    products = model.logits.weight.numel()
    for block in model.experts.sequence:
        for bank in (block.heads.qkv, block.heads.output, block.mlp.inner, block.mlp.output):
            products += block.mlp.router.active * bank.weight[0].numel()
        for router in (block.heads.router, block.mlp.router):
            products += router.prototypes.proto.numel()
    assert model_cost(case).products == products


def row_by_hand(t, settings_):
    """Keys and summaries that the query at t sees: by branch."""
    if settings_["lists"] == "dense":
        return {"dense": t + 1}
    own = t // settings_["block_size"]
    blocks = min(settings_["top_n"], own + 1)
    starts = range(0, t + 1, settings_["compress_stride"])
    return {
        "selected": (blocks - 1) * settings_["block_size"] + t % settings_["block_size"] + 1,
        "sliding": min(settings_["window"], t + 1),
        "compressed": sum(start + settings_["compress_block"] - 1 <= t for start in starts),
    }


@settings(max_examples=60)
@given(
    provider=st.sampled_from(["sdpa", "nsa", "dynnsiha", "recursive"]),
    seq_len=st.integers(1, 3000),
    batch=st.integers(1, 3),
    dtype=st.sampled_from(["float32", "bfloat16"]),
)
def test_a_step_costs_its_products_and_one_row(provider, seq_len, batch, dtype):
    case = case_of(provider, seq_len=seq_len, batch=batch, dtype=dtype)
    work, cost = call_work(case), model_cost(case)
    row = row_by_hand(seq_len, case.settings)
    products = 2 * batch * cost.products
    pair = 4 * batch * 4 * 8 * 3  # q k and p v in 4 heads of 8 and 3 layers
    assert work.flops == products + pair * sum(row.values())
    assert work.dense_flops == products + pair * (seq_len + 1)

    keys = row.get("dense", 0)
    if not keys:
        keys = max(row["selected"], row["sliding"]) + row["compressed"]
    cached = 2 * batch * 2 * 8 * 3 * keys  # the new token's own are written instead of read
    met = cost.parameters - (256 + 5121) * 24
    if provider == "recursive":
        expert = 24 * (4 + 4 + 4) * 8 + 2 * 24 * 48
        met -= 14 * expert
    elements = met + batch * (2 * 24 + 256) + cached
    assert work.bytes == elements * (4 if dtype == "float32" else 2) + batch * 16


@pytest.mark.parametrize("provider", ["sdpa", "dynnsiha", "flat"])
def test_a_training_step_costs_three_forwards_and_the_attention(provider):
    case = case_of(provider, "training", 700)
    work, cost = call_work(case), model_cost(case)
    pairs = sum(sum(row_by_hand(t, case.settings).values()) for t in range(700))
    attention = 14 * 2 * 4 * 8 * 3
    assert work.flops == 6 * 2 * 700 * cost.products + attention * pairs
    assert work.dense_flops == 6 * 2 * 700 * cost.products + attention * 700 * 701 // 2
    assert work.bytes == 7 * cost.parameters * 4 + 2 * 700 * 16


def test_a_prompt_costs_a_forward_and_is_read_seven_times():
    case = case_of("sdpa")
    pairs = 150 * 151 // 2
    forward = 2 * 2 * 150 * model_cost(case).products + 4 * 2 * 4 * 8 * 3 * pairs
    assert prefill_flops(case) == forward
    assert further_flops(case) == 7 * forward
    assert further_flops(case_of("sdpa", "training")) == 0
