"""The loss that teaches the choice of blocks, against loops over queries, lists and blocks."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from dynnsiha import NSAConfig
from dynnsiha.attention.compression import GroupedMLPCompress
from dynnsiha.attention.reference import reference_rows
from dynnsiha.forms.layer import HeadLayout
from dynnsiha.forms.nsa import SparseCore
from dynnsiha.learning import (
    Objective,
    SelectionCall,
    alignment,
    record_selection,
    selection_alignment_loss,
)

CONFIGS = {
    "means of blocks": NSAConfig(8, 8, 8, top_n=4, window=4),
    "windows that overlap": NSAConfig(8, 8, 4, top_n=4, window=4),
    "short windows": NSAConfig(8, 4, 2, top_n=4, window=4),
    "nothing forced but the own block": NSAConfig(
        8, 8, 8, top_n=3, init_blocks=0, local_blocks=1, window=4
    ),
    "a list for each head": NSAConfig(8, 8, 8, top_n=4, window=4, per_head_lists=True),
    "lists that queries share": NSAConfig(
        8, 8, 8, top_n=5, window=4, query_tile=4, private_blocks=1
    ),
}


def _operands(seq_len: int, heads: int, kv_heads: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    q, k = (
        torch.randn(2, seq_len, count, 4, generator=generator, dtype=torch.float64)
        for count in (heads, kv_heads)
    )
    return (2 * q).requires_grad_(), k.requires_grad_()


def _core(config: NSAConfig, heads: int, kv_heads: int) -> SparseCore:
    return SparseCore(16, HeadLayout.of(16, heads, kv_heads, 4), config)


def _importance(q: Tensor, k: Tensor, config: NSAConfig) -> Tensor:
    """What the specification chooses blocks by, with a gradient: [B, T, L, blocks]."""
    with_gradient = NSAConfig(**vars(config) | {"differentiable_topk": True})
    gates = torch.ones(*q.shape[:3], 3, dtype=q.dtype)
    rows = torch.arange(q.shape[1])
    return reference_rows(q, k, k, gates, with_gradient, rows, return_importance=True)[1]


def _one_at_a_time(q: Tensor, k: Tensor, config: NSAConfig) -> Tensor:
    """The loss by loops: every query, list, head and block on its own."""
    batch, seq_len, heads, head_dim = q.shape
    size = config.block_size
    pointed = _importance(q, k, config)
    lists = pointed.shape[2]
    group = heads // lists
    total = torch.zeros((), dtype=torch.float64)
    for b in range(batch):
        for t in range(seq_len):
            candidates = range(config.init_blocks, t // size - config.local_blocks + 1)
            if not candidates:
                continue
            for at in range(lists):
                looked = torch.zeros(seq_len, dtype=torch.float64)
                for head in range(at * group, (at + 1) * group):
                    keys = k[b, : t + 1, head // (heads // k.shape[2])].detach()
                    p = (keys @ q[b, t, head].detach() / math.sqrt(head_dim)).softmax(0)
                    looked[: t + 1] += p / group
                per_block = [looked[n * size : (n + 1) * size].sum() for n in candidates]
                own = [pointed[b, t, at, n] for n in candidates]
                for one, other in zip(per_block, own, strict=True):
                    ratio = (one / sum(per_block)) / (other / sum(own))
                    total = total + one * ratio.log() / (batch * seq_len * lists)
    return total


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
@pytest.mark.parametrize("seq_len", [40, 45])
def test_it_is_the_divergence_and_only_importance_is_taught(config, seq_len):
    q, k = _operands(seq_len, heads=4, kv_heads=2)
    found = selection_alignment_loss([SelectionCall(_core(config, 4, 2), q, k)])
    expected = _one_at_a_time(q, k, config)
    assert float(expected.detach()) > 0.003
    torch.testing.assert_close(found, expected)
    grads, wanted = (torch.autograd.grad(loss, (q, k)) for loss in (found, expected))
    torch.testing.assert_close(grads, wanted)
    assert all(grad.abs().max() > 1e-4 for grad in grads)


@settings(max_examples=30, deadline=None)
@given(
    seq_len=st.integers(1, 50),
    heads=st.sampled_from([(1, 1), (2, 2), (4, 1)]),
    numbers=st.integers(1, 5000),
    seed=st.integers(0, 99),
)
def test_chunks_change_nothing(seq_len, heads, numbers, seed):
    q, k = _operands(seq_len, *heads, seed)
    call = SelectionCall(_core(CONFIGS["windows that overlap"], *heads), q, k)
    whole = selection_alignment_loss([call])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(alignment, "CHUNK_NUMBERS", numbers)
        torch.testing.assert_close(selection_alignment_loss([call]), whole)
    assert float(whole.detach()) >= -1e-12
    if seq_len <= 24:  # one block is forced at the start, two at the end
        assert float(whole.detach()) == 0


def test_pointing_where_attention_looks_costs_nothing():
    """Keys that are alike in a block: its mean says all, and looked is pointed."""
    q, k = _operands(40, 2, 2)
    alike = k.detach()[:, ::8].repeat_interleave(8, 1).requires_grad_()
    config = NSAConfig(8, 8, 8, top_n=4, window=4)
    call = SelectionCall(_core(config, 2, 2), q, alike)
    at_own = selection_alignment_loss([call])
    assert float(at_own.detach()) == pytest.approx(0, abs=1e-12)
    grads = torch.autograd.grad(at_own, (q, alike))
    assert all(grad.abs().max() < 1e-12 for grad in grads)


def test_low_precision_is_computed_wide_and_nothing_underflows():
    q, k = (100 * part.detach() for part in _operands(45, 2, 2))
    core = _core(CONFIGS["means of blocks"], 2, 2)
    losses = []
    for dtype in (torch.float64, torch.bfloat16):
        q_, k_ = (part.to(torch.bfloat16).to(dtype).requires_grad_() for part in (q, k))
        loss = selection_alignment_loss([SelectionCall(core, q_, k_)])
        grads = torch.autograd.grad(loss, (q_, k_))
        assert all(grad.isfinite().all() for grad in grads)
        losses.append(loss)
    assert losses[1].dtype == torch.float32
    assert losses[1].isfinite()


def test_gradients_are_finite_where_importance_of_all_candidates_vanishes():
    """Candidates of importance exp(-46) and exp(-92), the square of the first, in float32."""
    core = _core(NSAConfig(8, 8, 8, top_n=4, window=4), 1, 1)
    logits = torch.zeros(40)
    logits[8:16] = -46
    logits[16], logits[17:24] = 50, -(92 * 8 + 50) / 7  # where dense attention looks
    k = F.pad(logits[None, :, None, None], (0, 3)).requires_grad_()
    q = F.pad(torch.full((1, 40, 1, 1), 2.0), (0, 3)).requires_grad_()
    loss = selection_alignment_loss([SelectionCall(core, q, k)])
    assert float(loss.detach()) > 1
    assert all(grad.isfinite().all() for grad in torch.autograd.grad(loss, (q, k)))


def test_compression_networks_learn_too():
    core = SparseCore(
        16, HeadLayout.of(16, 2, 2, 4), CONFIGS["means of blocks"], compression=GroupedMLPCompress
    ).double()
    q, k = _operands(45, 2, 2)
    loss = selection_alignment_loss([SelectionCall(core, q, k)])
    loss.backward()
    assert all(p.grad is not None and p.grad.any() for p in core.compress_k.parameters())
    assert all(p.grad is None for p in core.compress_v.parameters())


@pytest.mark.parametrize("name", ["nsa", "dynnsiha exact", "dynnsiha hybrid"])
def test_a_model_gives_its_calls_and_is_as_it_was_afterwards(name, small_model, ids):
    model = small_model(name)
    alone = model(*ids)
    with record_selection(model) as calls:
        recorded = model(*ids)
    assert torch.equal(alone, recorded)
    cores = [module for module in model.modules() if isinstance(module, SparseCore)]
    assert [call.core for call in calls] == cores
    assert all(call.q.shape[:2] == ids[0].shape for call in calls)
    model(*ids)
    assert len(calls) == 2


def test_it_is_learned():
    q, k = _operands(80, 2, 2)
    core = _core(CONFIGS["means of blocks"], 2, 2)
    optimizer = torch.optim.Adam([q, k], lr=0.02)
    values = []
    for _ in range(150):
        loss = selection_alignment_loss([SelectionCall(core, q, k)])
        values.append(float(loss.detach()))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert values[-1] < values[0] / 3


def test_the_objective_adds_it_with_its_weight(small_model, ids):
    model = small_model("dynnsiha hybrid")
    losses = Objective(alignment_weight=0.5)(model, *ids)
    with record_selection(model) as calls:
        main = model.loss(*ids)
    expected = selection_alignment_loss(calls)
    assert losses.alignment is not None
    assert torch.equal(losses.alignment, expected)
    assert float(losses.total.detach()) == pytest.approx(float((main + 0.5 * expected).detach()))


@pytest.mark.parametrize("name", ["dense", "dynsiha"])
def test_a_model_without_sparse_attention_is_refused(name, small_model, ids):
    with pytest.raises(ValueError, match="alignment_weight=1: the model selects no blocks; use"):
        Objective(alignment_weight=1)(small_model(name), *ids)
    with pytest.raises(ValueError, match=r"calls is empty: .*record_selection"):
        selection_alignment_loss([])


def test_a_layer_that_selects_nothing_has_nothing_to_learn():
    window_alone = NSAConfig(8, 8, 8, top_n=4, window=4, branches=("sliding",))
    core = _core(window_alone, 2, 2)
    with record_selection(core) as calls:
        core(*(torch.randn(1, 40, 2, 4) for _ in range(3)), torch.randn(1, 40, 16))
    assert calls == []
