"""The specification against loops over single queries, and against dense attention."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dynnsiha import NSAConfig
from dynnsiha.attention import native_sparse_attention
from dynnsiha.attention.lists import forced_blocks, private_list, shared_list
from dynnsiha.attention.reference import reference_rows
from dynnsiha.attention.summaries import (
    block_scores,
    mean_summaries,
    window_block_weights,
    window_count,
    window_scores,
)

from .brute import attend, brute_list

SMALL = {"block_size": 8, "compress_block": 8, "compress_stride": 8, "window": 11, "top_n": 5}


def operands(seq_len, q_heads, kv_heads, head_dim=4, batch=1, seed=0, dtype=torch.float64):
    gen = torch.Generator().manual_seed(seed)
    shapes = [(q_heads, head_dim), (kv_heads, head_dim), (kv_heads, head_dim)]
    q, k, v = (torch.randn(batch, seq_len, *s, generator=gen, dtype=dtype) for s in shapes)
    return q, k, v, torch.rand(batch, seq_len, q_heads, 3, generator=gen, dtype=dtype)


def brute(q, k, v, gates, c):
    """The whole layer for one sequence, one query at a time."""
    out, lists = torch.zeros_like(q), {}
    group = q.shape[1] // k.shape[1]
    for t in range(len(q)):
        for h in range(q.shape[1]):
            head = h // group
            starts = range(0, t - c.compress_block + 2, c.compress_stride)
            summary = [[x[s : s + c.compress_block, head].mean(0) for s in starts] for x in (k, v)]
            chosen = lists.setdefault((t, head), brute_list(q, k, t, head, c))
            listed = [s for s in range(t + 1) if s // c.block_size in chosen]
            near = range(max(0, t - c.window + 1), t + 1)
            branches = [
                attend(q[t, h], *summary)[0],
                attend(q[t, h], [k[s, head] for s in listed], [v[s, head] for s in listed])[0],
                attend(q[t, h], [k[s, head] for s in near], [v[s, head] for s in near])[0],
            ]
            out[t, h] = sum(g * o for g, o in zip(gates[t, h], branches, strict=True))
    return out, lists


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"compress_block": 4, "compress_stride": 2},
        {"query_tile": 4, "private_blocks": 1},
        {"query_tile": 8, "private_blocks": 0},
        {"query_tile": 4, "private_blocks": 1, "tile_scoring": "aggregate"},
        {"init_blocks": 0, "local_blocks": 1, "top_n": 3},
        {"init_blocks": 2, "local_blocks": 3, "top_n": 6, "window": 1},
    ],
    ids=str,
)
def test_equals_a_loop_over_single_queries(fields):
    config = NSAConfig(**(SMALL | fields))
    q, k, v, gates = operands(75, 4, 2)
    out, aux = native_sparse_attention(q, k, v, gates, config, backend="reference", return_aux=True)
    expected, lists = brute(q[0], k[0], v[0], gates[0], config)
    torch.testing.assert_close(out[0], expected)
    for (t, head), chosen in lists.items():
        assert aux.block_counts[0, t, head] == len(chosen)
        assert blocks_of(aux, config, t, head) == chosen


def blocks_of(aux, config, t, head):
    if isinstance(aux.block_indices, torch.Tensor):
        slots = aux.block_indices[0, t, head].tolist()
    else:
        shared, private = aux.block_indices
        slots = shared[0, t // config.query_tile, head].tolist() + private[0, t, head].tolist()
    filled = [b for b in slots if b >= 0]
    assert len(filled) == len(set(filled))
    return set(filled)


def test_private_blocks_change_nothing_when_every_query_is_its_own_tile():
    q, k, v, gates = operands(100, 2, 2)
    plain = native_sparse_attention(q, k, v, gates, NSAConfig(**SMALL), backend="reference")
    config = NSAConfig(**SMALL, private_blocks=2)
    split = native_sparse_attention(q, k, v, gates, config, backend="reference")
    assert torch.equal(plain, split)


def test_equals_dense_attention_when_every_block_is_listed():
    q, k, v, _ = operands(90, 4, 2, batch=2)
    config = NSAConfig(**(SMALL | {"top_n": 12}), branches=("selected",))
    ones = torch.ones(*q.shape[:3], 3, dtype=q.dtype)
    out, aux = native_sparse_attention(q, k, v, ones, config, backend="reference", return_aux=True)
    heads = [x.transpose(1, 2) for x in (q, k, v)]
    dense = torch.nn.functional.scaled_dot_product_attention(
        *heads, is_causal=True, enable_gqa=True
    )
    torch.testing.assert_close(out, dense.transpose(1, 2))
    logits = heads[0] @ heads[1].repeat_interleave(2, 1).transpose(-1, -2) / 2
    future = torch.ones(90, 90, dtype=torch.bool).triu(1)
    lse = logits.masked_fill(future, -math.inf).logsumexp(-1).transpose(1, 2)
    torch.testing.assert_close(aux.lse, lse)


def test_gradients_by_finite_differences():
    q, k, v, gates = operands(20, 2, 1, head_dim=3)
    config = NSAConfig(
        block_size=4, compress_block=4, compress_stride=2, window=3, top_n=4, query_tile=2
    )
    inputs = [x.requires_grad_() for x in (q, k, v, gates)]
    assert torch.autograd.gradcheck(
        lambda *x: native_sparse_attention(*x, config, backend="reference"), inputs
    )


@pytest.mark.parametrize("fields", [{}, {"query_tile": 8, "private_blocks": 1}])
def test_chosen_rows_equal_the_same_rows_of_the_whole(fields):
    q, k, v, gates = operands(100, 4, 2, batch=2)
    config = NSAConfig(**(SMALL | fields))
    whole, aux = native_sparse_attention(
        q, k, v, gates, config, backend="reference", return_aux=True
    )
    rows = torch.tensor([0, 7, 8, 55, 99])
    part = reference_rows(q, k, v, gates, config, rows)
    given = reference_rows(q, k, v, gates, config, rows, block_indices=aux.block_indices)
    torch.testing.assert_close(part, whole[:, rows])
    torch.testing.assert_close(given, whole[:, rows])


def test_windows_map_onto_blocks_as_in_the_paper():
    weights = window_block_weights(20, 5, 64, 32, 16)
    assert weights[3:8, 1].tolist() == [1, 2, 2, 2, 1]
    assert weights[:3, 1].sum() == weights[8:, 1].sum() == 0
    assert torch.equal(window_block_weights(5, 5, 64, 64, 64), 4 / 4 * torch.eye(5))


@given(
    windows=st.integers(1, 40),
    stride=st.integers(1, 3),
    block_strides=st.integers(1, 5),
    window_strides=st.integers(1, 5),
)
@settings(max_examples=60, deadline=None)
def test_sums_of_slices_are_that_product(windows, stride, block_strides, window_strides):
    sizes = (block_strides * stride, min(window_strides, block_strides) * stride, stride)
    scores = torch.rand(2, windows, dtype=torch.float64)
    per_block = block_scores(scores, *sizes)
    blocks = per_block.shape[-1]
    assert (blocks - 1) * sizes[0] < (windows - 1) * stride + sizes[1] <= blocks * sizes[0]
    weights = window_block_weights(windows, blocks, *sizes).double()
    torch.testing.assert_close(per_block, scores @ weights)
    back = torch.rand(2, blocks, dtype=torch.float64)
    torch.testing.assert_close(window_scores(back, windows, *sizes), back @ weights.T)


@given(
    seq_len=st.integers(1, 70),
    stride=st.integers(1, 6),
    strides=st.integers(1, 4),
)
@settings(max_examples=50, deadline=None)
def test_summaries_are_means_of_complete_windows(seq_len, stride, strides):
    x = torch.randn(2, seq_len, 3, 2, dtype=torch.float64)
    block = stride * strides
    means = mean_summaries(x, block, stride)
    assert means.shape[1] == window_count(seq_len, block, stride)
    for w in range(means.shape[1]):
        window = x[:, w * stride : w * stride + block]
        assert window.shape[1] == block
        torch.testing.assert_close(means[:, w], window.mean(1))
    assert (means.shape[1] - 1) * stride + block <= seq_len or means.shape[1] == 0


@given(
    position=st.integers(0, 200),
    init=st.integers(0, 3),
    local=st.integers(1, 3),
    extra=st.integers(0, 4),
    private=st.integers(0, 2),
    top_p=st.one_of(st.none(), st.floats(0.05, 1.0)),
    seed=st.integers(0, 100),
)
@settings(max_examples=150, deadline=None)
def test_lists_hold_forced_then_best_blocks(position, init, local, extra, private, top_p, seed):
    config = NSAConfig(
        block_size=8,
        compress_block=8,
        compress_stride=8,
        init_blocks=init,
        local_blocks=local,
        top_n=init + local + private + extra,
        private_blocks=private,
        query_tile=8,
        top_p=top_p,
    )
    own = position // 8
    gen = torch.Generator().manual_seed(seed)
    importance = torch.rand(1, 26, generator=gen, dtype=torch.float64)
    at = torch.tensor([position])
    shared = shared_list(importance.clone(), at, config)
    mine = private_list(importance.clone(), shared, at, config)[0].tolist()
    listed = shared[0].tolist()
    filled = [b for b in listed if b >= 0]
    forced = {b for b in range(own + 1) if b < init or b > own - local}
    assert {b for b in forced_blocks(at, config)[0].tolist() if b >= 0} == forced
    assert set(listed[: init + local]) - {-1} == forced
    assert len(filled) == len(set(filled))
    assert max(filled) <= own
    scores = importance[0].tolist()
    rest = sorted((b for b in range(own) if b not in forced), key=lambda b: -scores[b])
    chosen = [b for b in listed[init + local :] if b >= 0]
    assert chosen == rest[: len(chosen)]
    left = [b for b in rest if b not in chosen]
    assert [b for b in mine if b >= 0] == left[:private]
    if top_p is None:
        assert len(chosen) == min(extra, len(rest))
        return
    complete = {b for b in range(26) if (b + 1) * 8 <= position + 1}
    total = sum(scores[b] for b in complete)
    reached = sum(scores[b] for b in forced & complete) / total if total else 1.0
    for rank, block in enumerate(rest[:extra]):
        needed = reached < top_p or len(forced) + rank < config.min_blocks - private
        assert (block in chosen) == needed
        reached += scores[block] / total
