"""Block lists against brute force in float64."""

from dataclasses import replace

import pytest
import torch

from dynnsiha import NSAConfig
from dynnsiha.attention import native_sparse_attention

from .cases import (
    DEVICE,
    EXACT,
    HYBRID,
    LIGHT_EXACT,
    LIGHT_HYBRID,
    ON_GPU,
    PAPER,
    Case,
    grid,
)
from .lists_oracle import assert_lists
from .oracle import BACKEND, lists_of

LONG = 1500 if ON_GPU else 460
"""Twelve blocks or more than a list holds, or eight."""

MODES = {
    "exact": EXACT,
    "hybrid": HYBRID,
    "paper": PAPER,
    "one head": replace(LIGHT_EXACT, group=1, config=NSAConfig(top_n=5)),
    "two and three forced": replace(
        LIGHT_EXACT, config=NSAConfig(init_blocks=2, local_blocks=3, top_n=6)
    ),
    "nothing forced but the own": replace(
        LIGHT_EXACT, config=NSAConfig(init_blocks=0, local_blocks=1, top_n=3)
    ),
    "forced alone": replace(LIGHT_EXACT, config=NSAConfig(top_n=3)),
    "tile of a block": replace(
        LIGHT_HYBRID, config=NSAConfig(query_tile=64, private_blocks=1, top_n=5)
    ),
    "private alone": replace(
        LIGHT_HYBRID, config=NSAConfig(query_tile=16, private_blocks=2, top_n=5)
    ),
    "shared alone": replace(LIGHT_HYBRID, config=NSAConfig(query_tile=16, top_n=5)),
    "paper hybrid": replace(
        LIGHT_HYBRID, config=NSAConfig.paper(query_tile=16, private_blocks=2, top_n=6)
    ),
}
DYNAMIC = {
    "exact": replace(LIGHT_EXACT, config=NSAConfig(top_n=7, top_p=0.6)),
    "paper": replace(PAPER, config=NSAConfig.paper(top_n=7, top_p=0.5, min_blocks=5)),
    "hybrid": replace(
        LIGHT_HYBRID, config=NSAConfig(query_tile=16, private_blocks=1, top_n=7, top_p=0.6)
    ),
    "hybrid with a floor": replace(
        LIGHT_HYBRID,
        config=NSAConfig(query_tile=16, private_blocks=1, top_n=7, top_p=0.3, min_blocks=6),
    ),
}


def choose(inputs, config):
    with torch.no_grad():
        return native_sparse_attention(
            *inputs.operands, config, backend=BACKEND, return_aux=True, **inputs.options
        )[1]


def assert_right(case: Case, structured: bool):
    inputs = case.inputs(seed=1, structured=structured)
    assert_lists(choose(inputs, case.config), case, inputs)


@pytest.mark.parametrize("case", grid(), ids=str)
def test_at_any_shape(case):
    assert_right(case, structured=False)


@pytest.mark.parametrize(
    "structured", [False, True] if ON_GPU else [True], ids=lambda x: "structured" if x else "even"
)
@pytest.mark.parametrize("name", MODES)
def test_in_every_mode(name, structured):
    assert_right(MODES[name].at(LONG), structured)


@pytest.mark.parametrize("name", DYNAMIC)
def test_dynamic_lists_are_the_shortest_that_reach_top_p(name):
    case = DYNAMIC[name].at(LONG)
    inputs = case.inputs(seed=1, structured=True)
    aux = choose(inputs, case.config)
    assert_lists(aux, case, inputs)
    late = aux.block_counts[:, case.seq_len // 2 :]
    assert late.float().mean() < case.config.top_n, "top_p never cut a list: it shows nothing"


def test_a_tile_shares_the_list_of_its_leader_and_of_nobody_else():
    """Other queries of a tile change their own private blocks, and nothing else."""
    case = HYBRID.at(LONG)
    tile = case.config.query_tile
    inputs = case.inputs(structured=True)
    before = choose(inputs, case.config)
    q = inputs.operands[0].clone()
    changed = torch.arange(case.seq_len, device=DEVICE) % tile == tile // 2
    q[:, changed] = -q[:, changed]
    after = choose(replace(inputs, operands=[q, *inputs.operands[1:]]), case.config)
    (shared, private), (other_shared, other_private) = lists_of(before), lists_of(after)
    assert torch.equal(shared, other_shared)
    assert torch.equal(private[:, ~changed], other_private[:, ~changed])
    assert not torch.equal(private[:, changed], other_private[:, changed])
    leaders = torch.arange(case.seq_len, device=DEVICE) % tile == 0
    q[:, leaders] = -q[:, leaders]
    last = choose(replace(inputs, operands=[q, *inputs.operands[1:]]), case.config)
    assert not torch.equal(shared, lists_of(last)[0])


def test_lists_follow_given_summaries():
    case = PAPER.at(LONG)
    windows = (LONG - 32) // 16 + 1
    gen = torch.Generator().manual_seed(2)
    shape = (1, windows, case.kv_heads, case.head_dim)
    k_cmp = torch.randn(shape, generator=gen).to(DEVICE, case.dtype)
    inputs = case.inputs().given(k_cmp=k_cmp, v_cmp=torch.zeros_like(k_cmp))
    assert_lists(choose(inputs, case.config), case, inputs)


def test_lists_follow_the_scale():
    case = DYNAMIC["exact"].at(LONG)
    inputs = case.inputs(structured=True).given(scale=0.05)
    assert_lists(choose(inputs, case.config), case, inputs)
