"""Output, lse and gradients, of every branch and of their sum, against float64."""

import itertools
from dataclasses import replace

import pytest
import torch

from dynnsiha import NSAConfig
from dynnsiha.attention.summaries import mean_summaries

from .cases import DEVICE, EXACT, HYBRID, ON_GPU, PAPER, SHAPES, Inputs, grid
from .oracle import (
    BACKEND,
    MOST_ERROR,
    assert_accurate,
    assert_gates,
    error,
    in_float64,
    lists_of,
    run,
    same_lists,
)

SHORT = 300 if ON_GPU else 150
SUBSETS = [
    ("compressed",),
    ("selected",),
    ("sliding",),
    ("compressed", "selected"),
    ("compressed", "sliding"),
    ("selected", "sliding"),
]


@pytest.mark.parametrize("case", grid(), ids=str)
def test_every_branch_and_their_sum(case):
    whole = assert_accurate(case.inputs(), case.config)
    assert whole.aux.backend == BACKEND
    assert whole.aux.lse.shape == whole.out.shape[:3]


@pytest.mark.skipif(ON_GPU, reason="the grid has them all")
@pytest.mark.parametrize("case", SHAPES, ids=str)
def test_every_group_and_width(case):
    assert_accurate(case.inputs(), case.config, per_branch=False)


@pytest.mark.parametrize("kind", [EXACT, HYBRID, PAPER], ids=str)
def test_what_sees_one_key_cannot_move_its_weight(kind):
    """The gradient of q and k is then a difference of equal numbers, in every branch."""
    windows_end = kind.config.compress_block
    case = replace(kind.at(windows_end), batch=4)
    for branch in range(3):
        whole = run(case.inputs(seed=branch).gated(branch), case.config)
        lonely = whole.grads[0][:, :1] if branch else whole.grads[0][:, -1:]
        assert lonely.abs().max() < (1e-3 if ON_GPU else 1e-4)
        assert not branch or whole.grads[0].abs().max() > 1e-2
        assert branch or whole.grads[1].abs().max() < 1e-3


@pytest.mark.parametrize("kind", [EXACT, HYBRID], ids=str)
def test_sequences_of_one_length_are_a_batch(kind):
    """Packed or stacked, with and without an empty one between."""
    case = kind.at(70, "batch")
    stacked = case.inputs()
    wanted = run(stacked, case.config)
    lengths = [70, 0] * case.batch
    flat = [x.flatten(0, 1)[None] for x in (*stacked.operands, stacked.grad)]
    ends = torch.tensor([0, *itertools.accumulate(lengths)], dtype=torch.int32, device=DEVICE)
    packed = run(Inputs(flat[:4], flat[4], {"cu_seqlens": ends}), case.config)
    for name, x in packed.tensors.items():
        theirs = wanted.tensors[name]
        assert error(x.view(theirs.shape), theirs) < MOST_ERROR, name
    for mine, theirs in zip(lists_of(packed.aux), lists_of(wanted.aux), strict=True):
        assert torch.equal(mine.view(theirs.shape), theirs)


@pytest.mark.parametrize("branches", SUBSETS if ON_GPU else SUBSETS[::2], ids="+".join)
def test_some_branches_only(branches):
    """A missing branch adds nothing, and its gate gets no gradient, whatever the gate says."""
    case = HYBRID.at(SHORT)
    config = replace(case.config, branches=branches)
    whole = assert_accurate(case.inputs(), config, per_branch=False)
    if "selected" not in branches:
        assert (whole.aux.lse == float("-inf")).all()
        assert not whole.aux.block_counts.any()
        assert all((x == -1).all() for x in lists_of(whole.aux))
    missing = [i for i, name in enumerate(NSAConfig().branches) if name not in branches]
    assert not whole.grads[3][..., missing].any()


def some_lists(case, slots, seed=3):
    """Valid lists [B, tiles, K, slots] and, for tiles, two private slots: gaps, and no order."""
    gen = torch.Generator().manual_seed(seed)
    blocks = -(-case.seq_len // case.config.block_size)

    def draw(step, mine, n):
        rows = -(-case.seq_len // step)
        own = torch.arange(rows)[:, None, None] * step // case.config.block_size
        order = torch.rand(case.batch, rows, case.kv_heads, len(mine), generator=gen).argsort(-1)
        index = torch.tensor(mine)[order]
        taken = (index <= own) & (torch.rand(index.shape, generator=gen) < 0.6)
        lists = torch.full((*index.shape[:3], n), -1)
        lists[..., : len(mine)] = torch.where(taken, index, -1)[..., :n]
        return lists.to(DEVICE)

    if case.config.query_tile == 1:
        return draw(1, list(range(blocks)), slots)
    shared = draw(case.config.query_tile, list(range(0, blocks, 2)), slots)
    return shared, draw(1, list(range(1, blocks, 2)), 2)


@pytest.mark.parametrize("slots", [1, 3])
@pytest.mark.parametrize("kind", [EXACT, HYBRID], ids=str)
def test_given_lists_are_used_as_they_are(kind, slots):
    """Any order, any number of slots, int64 as well; a query may have no block at all."""
    case = kind.at(SHORT, "batch" if ON_GPU else "single")
    lists = some_lists(case, slots)
    mine = assert_used(case.inputs().given(block_indices=lists), case.config)
    empty = mine.aux.block_counts == 0
    assert empty.any()
    silent = empty.repeat_interleave(case.group, 2)
    assert torch.equal(mine.aux.lse == float("-inf"), silent)


@pytest.mark.parametrize("kind", [EXACT, HYBRID], ids=str)
def test_given_lists_of_packed_sequences(kind):
    """Each counts its blocks and tiles from its own start, and lists may be views of int64."""
    case = replace(kind.at(SHORT), packed=(0, 70, 1, SHORT - 71))
    parts = []
    for begin, end in case.bounds:
        lists = some_lists(kind.at(end - begin), 2, seed=begin)
        parts.append((lists,) if isinstance(lists, torch.Tensor) else lists)
    joined = [torch.cat(part, 1) for part in zip(*parts, strict=True)]
    views = [torch.cat([x, x], -1)[..., : x.shape[-1]] for x in joined]
    given = views[0] if len(views) == 1 else tuple(views)
    assert_used(case.inputs().given(block_indices=given), case.config)


def assert_used(inputs, config):
    """Results are those of the given lists, which come back as int32."""
    mine = run(inputs, config)
    assert_gates(mine, inputs, config, "given lists")
    lists = inputs.options["block_indices"]
    lists = (lists,) if isinstance(lists, torch.Tensor) else lists
    for own, given in zip(lists_of(mine.aux), lists, strict=True):
        assert own.dtype == torch.int32
        assert torch.equal(own, given.int())
    return mine


def test_a_block_that_every_query_chooses():
    """Lists that are all alike: the hottest row there can be, in dk and dv."""
    case = EXACT.at(2 * SHORT)
    lists = torch.zeros(1, case.seq_len, case.kv_heads, 1, dtype=torch.int32, device=DEVICE)
    inputs = case.inputs().given(block_indices=lists)
    assert_gates(run(inputs, case.config), inputs, case.config, "hot block")


@pytest.mark.parametrize("kind", [EXACT, HYBRID], ids=str)
def test_returned_lists_can_be_given_back(kind):
    case = kind.at(SHORT, "packed")
    inputs = case.inputs()
    first = run(inputs, case.config)
    given = inputs.given(block_indices=first.aux.block_indices)
    again = run(given, case.config)
    assert same_lists(again.aux, first.aux)
    assert torch.equal(again.aux.block_counts, first.aux.block_counts)
    assert_gates(again, given, case.config, "given back")


@pytest.mark.parametrize("kind", [PAPER, HYBRID], ids=str)
@pytest.mark.parametrize("batching", ["batch", "packed"] if ON_GPU else ["packed"])
def test_given_summaries_and_their_gradients(kind, batching):
    case = kind.at(SHORT, batching)
    c = case.config
    windows = sum(
        max(0, (end - begin - c.compress_block) // c.compress_stride + 1)
        for begin, end in case.bounds
    )
    gen = torch.Generator().manual_seed(8)
    shape = (2, case.batch, windows, case.kv_heads, case.head_dim)
    k_cmp, v_cmp = torch.randn(shape, generator=gen).to(DEVICE, case.dtype)
    whole = assert_accurate(case.inputs().given(k_cmp=k_cmp, v_cmp=v_cmp), c, per_branch=ON_GPU)
    assert len(whole.grads) == 6


def test_scale_is_an_argument():
    case = HYBRID.at(SHORT)
    assert_accurate(case.inputs().given(scale=0.03), case.config, per_branch=False)


def test_gates_in_float32_get_gradients_in_float32():
    case = HYBRID.at(SHORT)
    inputs = case.inputs()
    wide = replace(inputs, operands=[*inputs.operands[:3], inputs.operands[3].float()])
    whole = run(wide, case.config)
    assert whole.out.dtype == case.dtype
    assert whole.grads[3].dtype == torch.float32
    same = run(inputs, case.config)
    assert torch.equal(whole.out, same.out)
    assert torch.equal(whole.grads[3].to(case.dtype), same.grads[3])


def test_gates_of_zero_shut_everything_but_their_own_gradient():
    case = EXACT.at(SHORT)
    inputs = case.inputs()
    shut = replace(inputs, operands=[*inputs.operands[:3], torch.zeros_like(inputs.operands[3])])
    whole = run(shut, case.config)
    assert not whole.out.any()
    assert not any(x.any() for x in whole.grads[:3])
    given = shut.given(block_indices=whole.aux.block_indices)
    assert_gates(whole, given, case.config, "shut")
    assert whole.grads[3].any()


@pytest.mark.filterwarnings("ignore:overflow encountered")
@pytest.mark.parametrize("kind", [EXACT, HYBRID], ids=str)
def test_large_logits_stay_finite_and_right(kind):
    """Logits in the thousands: every softmax is one-hot. Summaries are given, rounded already."""
    case = kind.at(SHORT)
    inputs = case.inputs()
    q, k, v, gates = inputs.operands
    inputs = replace(inputs, operands=[q * 60, k * 60, v, gates])
    windows = case.config.compress_block, case.config.compress_stride
    k_cmp, v_cmp = (mean_summaries(x, *windows) for x in inputs.operands[1:3])
    inputs = inputs.given(k_cmp=k_cmp, v_cmp=v_cmp)
    whole = run(inputs, case.config)
    assert all(torch.isfinite(x).all() for x in whole.tensors.values())
    given = in_float64(inputs).given(block_indices=whole.aux.block_indices)
    assert error(whole.out, run(given, case.config, "reference").out) < MOST_ERROR


@pytest.mark.parametrize("kind", [EXACT, HYBRID], ids=str)
def test_listing_every_block_is_dense_attention(kind):
    case = kind.at(SHORT, "batch" if ON_GPU else "single")
    blocks = -(-case.seq_len // case.config.block_size)
    private = case.config.private_blocks
    config = replace(case.config, top_n=max(blocks + 1, 3 + private) + private)
    inputs = case.inputs().gated(1)
    mine = run(inputs, config)
    q, k, v = (x.detach().double().transpose(1, 2).requires_grad_() for x in inputs.operands[:3])
    dense = torch.nn.functional.scaled_dot_product_attention(
        q, k, v, is_causal=True, enable_gqa=True
    )
    grads = torch.autograd.grad(dense, (q, k, v), inputs.grad.double().transpose(1, 2))
    assert error(mine.out, dense.transpose(1, 2)) < MOST_ERROR
    for own, theirs in zip(mine.grads, grads, strict=False):
        assert error(own, theirs.transpose(1, 2)) < MOST_ERROR
    own = torch.arange(case.seq_len, device=DEVICE) // config.block_size
    assert torch.equal(
        mine.aux.block_counts, (own + 1).int()[None, :, None].expand_as(mine.aux.block_counts)
    )
