"""differentiable_topk: forward values stay, and the gradient is that of a straight-through weight.

The surrogate holds the lists and the scores s0 of a point, and weighs the tokens of a chosen block
by 1 + s - s0: its slope at that point, by finite differences, is what backward must return.
"""

import math

import pytest
import torch

from dynnsiha import NSAConfig
from dynnsiha.attention import native_sparse_attention
from dynnsiha.attention.blockwise import operands as blockwise_operands

from .brute import attend, brute_importance

SMALL = {
    "block_size": 4,
    "compress_block": 4,
    "compress_stride": 2,
    "window": 3,
    "top_n": 4,
    "local_blocks": 1,
}
CONFIGS = {
    "exact": {},
    "means of blocks": {"compress_stride": 4},
    "hybrid": {"query_tile": 4, "private_blocks": 1},
    "shared": {"query_tile": 2},
    "aggregate": {"query_tile": 4, "private_blocks": 1, "tile_scoring": "aggregate"},
    "dynamic": {"top_p": 0.6, "query_tile": 2, "private_blocks": 1},
    "per head": {"per_head_lists": True},
    "without compressed": {"branches": ("selected", "sliding")},
}
LENGTH, HEADS, KV_HEADS = 27, 2, 1


def config_of(name, differentiable=True):
    return NSAConfig(**(SMALL | CONFIGS[name]), differentiable_topk=differentiable)


def operands(seed=0):
    gen = torch.Generator().manual_seed(seed)
    shapes = [(HEADS, 3), (KV_HEADS, 3), (KV_HEADS, 3)]
    q, k, v = (torch.randn(1, LENGTH, *s, generator=gen, dtype=torch.float64) for s in shapes)
    return q, k, v, torch.rand(1, LENGTH, HEADS, 3, generator=gen, dtype=torch.float64)


def lists_of(aux, t, head, c):
    """Shared and private blocks of a query, without the forced slots."""
    if isinstance(aux.block_indices, torch.Tensor):
        shared, private = aux.block_indices[0, t, head].tolist(), []
    else:
        shared = aux.block_indices[0][0, t // c.query_tile, head].tolist()
        private = aux.block_indices[1][0, t, head].tolist()
    return (
        shared[: c.init_blocks + c.local_blocks],
        shared[c.init_blocks + c.local_blocks :],
        private,
    )


def scores_of(q, k, t, head, c):
    """By what the shared and the private blocks of query t were chosen, for every block."""
    if c.per_head_lists:  # a list's query head alone, with the K/V head it reads
        q = q[:, head : head + 1]
        head = 0
    leader = t // c.query_tile * c.query_tile
    first = leader - c.query_tile + 1 if c.tile_scoring == "aggregate" else leader
    rows = [brute_importance(q, k, s, head, c) for s in range(max(0, first), leader + 1)]
    shared = [sum(column) for column in zip(*rows, strict=True)]
    return shared, brute_importance(q, k, t, head, c)


def surrogate(q, k, v, aux, base, c):
    """Output of the selected branch [T, H, D] with weights 1 + s - s0 on the chosen blocks."""
    out = torch.zeros_like(q)
    for t in range(LENGTH):
        for h in range(HEADS):
            head = h if c.per_head_lists else h // (HEADS // KV_HEADS)
            forced, shared, private = lists_of(aux, t, head, c)
            now = scores_of(q, k, t, head, c)
            weight = dict.fromkeys(forced, 1.0)
            for kind, blocks in enumerate((shared, private)):
                for block in blocks:
                    weight[block] = 1.0 + now[kind][block] - base[t, head][kind][block]
            weight.pop(-1, None)
            tokens = [s for s in range(t + 1) if s // c.block_size in weight]
            logits = torch.stack([q[t, h] @ k[s, 0] for s in tokens]) / math.sqrt(3)
            p = logits.exp() * logits.new_tensor([weight[s // c.block_size] for s in tokens])
            out[t, h] = p @ v[tokens, 0] / p.sum()
    return out


@pytest.mark.parametrize("backend", ["reference", "blockwise"])
@pytest.mark.parametrize("name", CONFIGS)
def test_gradient_is_the_slope_of_the_straight_through_surrogate(name, backend):
    config = config_of(name)
    q, k, v, gates = operands()
    gates = gates * torch.tensor([0.0, 1.0, 0.0], dtype=gates.dtype)  # the branch that lists blocks
    lists = config.list_heads(HEADS, KV_HEADS)
    inputs = [x.requires_grad_() for x in (q, k, v)]
    out, aux = native_sparse_attention(*inputs, gates, config, backend=backend, return_aux=True)
    base = {
        (t, head): scores_of(q[0].detach(), k[0].detach(), t, head, config)
        for t in range(LENGTH)
        for head in range(lists)
    }
    gen = torch.Generator().manual_seed(5)
    cotangent = torch.randn(out.shape, generator=gen, dtype=out.dtype)
    grads = torch.autograd.grad(out, inputs, cotangent)
    plain_out = native_sparse_attention(*inputs, gates, config_of(name, False), backend=backend)
    plain = torch.autograd.grad(plain_out, inputs, cotangent)
    assert torch.equal(out, plain_out)
    step = 1e-5
    for i in (0, 1):
        direction = torch.randn(inputs[i].shape, generator=gen, dtype=out.dtype)
        ends = []
        for sign in (1, -1):
            moved = [x.detach()[0] for x in inputs]
            moved[i] = moved[i] + sign * step * direction[0]
            o_slc = surrogate(*moved, aux, base, config)[None]
            ends.append(gates[..., 1:2] * o_slc * cotangent)
        slope = (ends[0].sum() - ends[1].sum()).item() / (2 * step)
        assert (grads[i] * direction).sum().item() == pytest.approx(slope, rel=1e-5, abs=1e-7)
        # Without the option the gradient is another one, so the test can fail.
        assert (plain[i] * direction).sum().item() != pytest.approx(slope, rel=1e-3)
    torch.testing.assert_close(grads[2], plain[2])  # values have no part in the choice


@pytest.mark.parametrize("name", CONFIGS)
def test_backends_agree_on_all_branches(name):
    inputs = [x.requires_grad_() for x in operands()]
    config = config_of(name)
    results = []
    for backend in ("reference", "blockwise"):
        out = native_sparse_attention(*inputs, config, backend=backend)
        results.append((out, *torch.autograd.grad(out.square().sum(), inputs)))
    for mine, theirs in zip(*results, strict=True):
        torch.testing.assert_close(mine, theirs)


@pytest.mark.parametrize("name", ["exact", "aggregate"])
def test_small_steps_and_chunks_change_nothing(name, monkeypatch):
    """A sum of scores that reaches back into the chunk before keeps its gradient."""
    inputs = [x.requires_grad_() for x in operands()]
    config = config_of(name)
    results = []
    for elements, size in ((1 << 20, 1 << 26), (1 << 4, 1 << 8)):
        monkeypatch.setitem(blockwise_operands._STEP_ELEMENTS, "cpu", elements)
        monkeypatch.setitem(blockwise_operands._PARTIAL_BYTES, "cpu", size)
        out = native_sparse_attention(*inputs, config, backend="blockwise")
        results.append(torch.autograd.grad(out.square().sum(), inputs))
    for mine, theirs in zip(*results, strict=True):
        torch.testing.assert_close(mine, theirs)


@pytest.mark.parametrize("backend", ["reference", "blockwise"])
def test_networks_summaries_learn_from_the_choice_alone(backend):
    """k_cmp reaches the output through the choice even where no branch reads summaries."""
    q, k, v, gates = operands()
    k_cmp = torch.randn(1, 12, KV_HEADS, 3, dtype=q.dtype).requires_grad_()
    for differentiable in (False, True):
        config = NSAConfig(**SMALL, branches=("selected",), differentiable_topk=differentiable)
        out = native_sparse_attention(
            *(q, k, v.requires_grad_(), gates, config),
            backend=backend,
            k_cmp=k_cmp,
            v_cmp=k_cmp.detach(),
        )
        (grad,) = torch.autograd.grad(
            out.square().sum(), [k_cmp], allow_unused=True, materialize_grads=True
        )
        assert bool(grad.abs().sum() > 0) == differentiable


@pytest.mark.parametrize("backend", ["reference", "blockwise"])
def test_given_lists_have_no_weight(backend):
    inputs = [x.requires_grad_() for x in operands()]
    _, aux = native_sparse_attention(*inputs, config_of("hybrid"), return_aux=True)
    results = []
    for differentiable in (False, True):
        out = native_sparse_attention(
            *inputs,
            config_of("hybrid", differentiable),
            backend=backend,
            block_indices=aux.block_indices,
        )
        results.append(torch.autograd.grad(out.square().sum(), inputs))
    for mine, theirs in zip(*results, strict=True):
        assert torch.equal(mine, theirs)


def test_attend_of_the_surrogate_is_plain_attention_at_its_point():
    """At s = s0 every weight is 1: the surrogate is softmax attention over the listed tokens."""
    q, k, v, _ = operands()
    config = config_of("exact")
    _, aux = native_sparse_attention(*operands(), config, backend="reference", return_aux=True)
    base = {(t, 0): scores_of(q[0], k[0], t, 0, config) for t in range(LENGTH)}
    out = surrogate(q[0], k[0], v[0], aux, base, config)
    for t in (0, 9, 26):
        chosen = set(aux.block_indices[0, t, 0].tolist())
        tokens = [s for s in range(t + 1) if s // 4 in chosen]
        expected, _ = attend(q[0, t, 1], [k[0, s, 0] for s in tokens], [v[0, s, 0] for s in tokens])
        torch.testing.assert_close(out[t, 1], expected)
