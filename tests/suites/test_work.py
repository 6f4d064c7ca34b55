"""Closed forms beside counts over explicit masks."""

import random

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.flop_counter import FlopCounterMode

from dynbench.harness.case import Case
from dynbench.suites.catalog import PASSES, PROVIDERS
from dynbench.suites.layer import build_layer
from dynbench.suites.plan import PlanOptions, plan
from dynbench.suites.providers.loading import load_provider
from dynbench.suites.shapes import Shape
from dynbench.suites.spec import Spec
from dynbench.suites.work import case_work, dense_pairs, layer_cost
from dynnsiha.attention.config import NSAConfig
from dynnsiha.attention.lists import tile_lists
from dynnsiha.attention.reference import reference

FACTOR = {"forward": 4, "backward": 10, "forward_backward": 14}


def chosen_blocks(t, settings, rng):
    """A list that the rules allow: forced blocks and any of the rest."""
    own = t // settings["block_size"]
    forced = {
        b
        for b in range(own + 1)
        if b < settings["init_blocks"] or b > own - settings["local_blocks"]
    }
    rest = [b for b in range(own + 1) if b not in forced]
    return forced | set(rng.sample(rest, min(len(rest), settings["top_n"] - len(forced))))


def pairs_by_hand(seq_len, settings, rng):
    """Pairs that one head computes: every branch's mask, entry by entry."""
    total, branches = 0, settings.get("branches", "compressed selected sliding")
    for t in range(seq_len):
        if settings["lists"] == "dense":
            total += sum(key <= t for key in range(seq_len))
            continue
        blocks = chosen_blocks(t, settings, rng)
        for key in range(seq_len):
            total += key <= t and key // settings["block_size"] in blocks
            total += "sliding" in branches and t - settings["window"] < key <= t
        for start in range(0, seq_len, settings["compress_stride"]):
            total += "compressed" in branches and start + settings["compress_block"] - 1 <= t
    return total


@st.composite
def sparse_settings(draw):
    stride = draw(st.integers(1, 5))
    compress = stride * draw(st.integers(1, 3))
    block = stride * draw(st.integers(compress // stride, 4))
    tiles = [r for r in range(1, block + 1) if block % r == 0]
    init, local, private = draw(st.integers(0, 2)), draw(st.integers(1, 2)), draw(st.integers(0, 2))
    config = NSAConfig(
        block_size=block,
        compress_block=compress,
        compress_stride=stride,
        top_n=init + local + private + draw(st.integers(0, 8)),
        init_blocks=init,
        local_blocks=local,
        window=draw(st.integers(1, 90)),
        query_tile=draw(st.sampled_from(tiles)),
        private_blocks=private,
    )
    names = ("block_size", "compress_block", "compress_stride", "top_n", "init_blocks")
    names += ("local_blocks", "window", "query_tile", "private_blocks")
    return {"lists": config.lists} | {name: getattr(config, name) for name in names}


@pytest.mark.parametrize("pass_", PASSES)
@pytest.mark.parametrize("provider", [*PROVIDERS, "my_kernel"])
@given(
    data=st.data(), seq_len=st.integers(1, 75), kv_heads=st.integers(1, 3), group=st.integers(1, 3)
)
def test_attention_flops_and_bytes_equal_a_count_over_masks(
    provider, pass_, data, seq_len, kv_heads, group
):
    dense = (
        PROVIDERS[provider].computes == "dense"
        if provider in PROVIDERS
        else data.draw(st.booleans())
    )
    settings = {"lists": "dense"} if dense else data.draw(sparse_settings())
    gates = 0 if dense else 3
    if not dense and data.draw(st.booleans()):
        left = data.draw(st.sampled_from(["selected", "compressed,selected", "selected,sliding"]))
        settings["branches"], gates = left, len(left.split(","))
    batch, head_dim = data.draw(st.integers(1, 2)), data.draw(st.integers(1, 9))
    dtype, size = data.draw(st.sampled_from([("float32", 4), ("bfloat16", 2)]))
    heads = {"q_heads": kv_heads * group, "kv_heads": kv_heads, "head_dim": head_dim}
    workload = {"batch": batch, "seq_len": seq_len, "inputs": "normal", "seed": 0} | heads
    work = case_work(Case("attention", provider, pass_, "cpu", dtype, "wall", workload, settings))

    rng = random.Random(seq_len)
    per_pair = FACTOR[pass_] * batch * kv_heads * group * head_dim
    assert work.flops == per_pair * pairs_by_hand(seq_len, settings, rng)
    assert work.dense_flops == per_pair * sum(range(1, seq_len + 1))

    q = torch.empty(batch, seq_len, kv_heads * group, head_dim, device="meta")
    k = torch.empty(batch, seq_len, kv_heads, head_dim, device="meta")
    read = [q, k, k, torch.empty(*q.shape[:3], gates, device="meta")]
    moved = {
        "forward": [*read, q],  # ... and o
        "backward": [*read, q, *read],  # do, and a gradient of each
        "forward_backward": [*read, q, q, *read],
    }[pass_]
    assert work.bytes == size * sum(tensor.numel() for tensor in moved)


@given(settings=sparse_settings(), seq_len=st.integers(1, 60))
def test_the_reference_lists_as_many_pairs_as_the_closed_form(settings, seq_len):
    """The masks of the core itself, not of this test, for the selected branch."""
    config = NSAConfig(**{name: value for name, value in settings.items() if name != "lists"})
    operands = [torch.randn(1, seq_len, 1, 4) for _ in "qkv"]
    _, aux = reference(*operands, torch.rand(1, seq_len, 1, 3), config)
    lists = aux.block_indices
    if config.query_tile > 1:
        shared = tile_lists(lists[0].transpose(1, 2), config.query_tile, seq_len)
        lists = torch.cat([shared.transpose(1, 2), lists[1]], -1)
    selected = 0
    for t, blocks in enumerate(lists[0, :, 0].tolist()):
        for block in blocks:
            first = block * config.block_size
            selected += block >= 0 and len(range(first, min(first + config.block_size, t + 1)))
    alone = settings | {"window": 1, "compress_block": seq_len + 1, "compress_stride": 1}
    workload = {"batch": 1, "seq_len": seq_len, "q_heads": 1, "kv_heads": 1, "head_dim": 1}
    work = case_work(Case("attention", "nsa", "forward", "cpu", "float32", "wall", workload, alone))
    assert work.flops == 4 * (selected + seq_len)


def layer_case(provider, pass_="forward", seq_len=40):
    options = PlanOptions(
        (seq_len,),
        "cpu",
        suite="layer",
        providers=(provider,),
        passes=(pass_,),
        shapes=(Shape("", 4, 2, 8, model_dim=24),),
        query_tiles=(16,),
        batch=2,
        inputs="normal",
    )
    return plan(options)[0]


LAYERS = ["sdpa", "nsa", "dynsiha", "dynnsiha", "dimension"]
BLOCKS = ["flat", "recursive", "transformer"]


@pytest.mark.parametrize("provider", LAYERS + BLOCKS)
def test_layer_parameters_are_those_of_the_layer(provider):
    case = layer_case(provider)
    spec = Spec.of(case)
    layer = build_layer(spec, load_provider(spec))
    assert layer_cost(case).parameters == sum(p.numel() for p in layer.parameters())


@pytest.mark.parametrize("pass_", PASSES)
@pytest.mark.parametrize("provider", LAYERS)
def test_layer_flops_are_the_projections_matrix_products_and_the_attention(provider, pass_):
    case = layer_case(provider, pass_)
    spec = Spec.of(case)
    layer = build_layer(spec, load_provider(spec))
    x = torch.randn(2, 40, 24, requires_grad=True)
    o = torch.randn(2, 40, 32, requires_grad=True)
    counted = {}
    with FlopCounterMode(display=False) as counter:
        outputs = [layer.qkv(x), layer.output(o)]
        outputs += [layer.core.gates(x)] if hasattr(layer.core, "gates") else []
    counted["forward"] = counter.get_total_flops()
    with FlopCounterMode(display=False) as counter:
        torch.autograd.backward([out.sum() for out in outputs])
    counted["backward"] = counter.get_total_flops()
    counted["forward_backward"] = sum(counted.values())

    inside = {name: value for name, value in case.workload.items() if name != "model_dim"}
    attention = Case("attention", provider, pass_, "cpu", "float32", "wall", inside, case.settings)
    work, core = case_work(case), case_work(attention)
    assert work.flops - core.flops == counted[pass_]
    assert work.dense_flops - core.dense_flops == counted[pass_]


@pytest.mark.parametrize("pass_", PASSES)
def test_plain_blocks_cost_as_much_as_the_forms_with_experts(pass_):
    flat, recursive, plain = (case_work(layer_case(name, pass_)) for name in BLOCKS)
    assert flat.flops == recursive.flops == plain.flops
    assert flat.dense_flops == flat.flops
    assert flat.bytes > plain.bytes


def test_flops_of_plain_blocks_are_their_matrix_products_and_the_attention():
    case = layer_case("transformer")
    layer = build_layer(Spec.of(case), load_provider(Spec.of(case)))
    with FlopCounterMode(display=False) as counter:
        for block in layer.blocks:
            for linear in (block.heads.qkv, block.heads.output, block.inner, block.outer):
                linear(torch.randn(2, 40, linear.in_features))
    attention = 2 * 4 * 2 * 4 * 8 * dense_pairs(40)  # blocks, FLOPs a pair, B, H, D
    assert case_work(case).flops == counter.get_total_flops() + attention


def test_flops_of_the_forms_with_experts_are_those_of_the_experts_taken():
    case = layer_case("flat")
    layer = build_layer(Spec.of(case), load_provider(Spec.of(case)))
    products = 0
    for block in layer.blocks:
        for bank in (block.heads.qkv, block.heads.output, block.mlp.inner, block.mlp.output):
            products += block.mlp.router.active * bank.weight[0].numel()
        for router in (block.heads.router, block.mlp.router):
            products += router.prototypes.proto.numel()
    assert layer_cost(case).products == products
    assert layer_cost(case).attentions == len(layer.blocks)


def test_layer_bytes_are_x_y_and_parameters_once():
    case = layer_case("dynnsiha")
    parameters, tokens = layer_cost(case).parameters, 2 * 40 * 24
    assert case_work(case).bytes == 4 * (2 * tokens + parameters)
    backward = case_work(layer_case("dynnsiha", "backward"))
    assert backward.bytes == 4 * (3 * tokens + 2 * parameters)  # x, dy, dx; parameters, gradients


def test_causal_pairs_at_the_papers_length_are_exact_integers():
    assert dense_pairs(131072) == 131072 * 131073 // 2
