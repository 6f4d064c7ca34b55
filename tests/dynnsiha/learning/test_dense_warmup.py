"""All blocks at first: what a query sees in each step, and that a resumed run goes on with it."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from dynnsiha import NSAConfig, RMSuon, native_sparse_attention
from dynnsiha.forms import HeadLayout
from dynnsiha.forms.nsa import SparseCore
from dynnsiha.learning import DenseWarmup, TextWindows, fit

pytestmark = pytest.mark.usefixtures("one_thread")

SEQ_LEN = 96
BRANCH_SETS = [("compressed", "selected", "sliding"), ("selected", "sliding"), ("sliding",)]


@pytest.fixture
def windows(library_source, segmenter) -> TextWindows:
    return TextWindows.of(library_source, segmenter, char_vocab=128, seq_len=SEQ_LEN, batch=2)


def cores_of(model) -> list[SparseCore]:
    return [module for module in model.modules() if isinstance(module, SparseCore)]


def blocks_of(model) -> set[int]:
    """Blocks that the last token of a sequence selects, over the layers."""
    calls, chars = [], torch.zeros(1, SEQ_LEN, dtype=torch.int64)
    handles = [
        core.register_forward_pre_hook(lambda module, args: calls.append((module, args)))
        for core in cores_of(model)
    ]
    with torch.no_grad():
        model(chars, chars)
        for handle in handles:
            handle.remove()
        return {number for core, args in calls for number in _last_blocks(core, args)}


def _last_blocks(core, args) -> list[int]:
    """Blocks that the last token selects in one layer: all of them where there are no lists."""
    routing = core(*args, return_routing=True)[1]
    if routing.attention is None:
        return [-(-SEQ_LEN // core.config.block_size)]
    return routing.attention.block_counts[0, -1].tolist()


def trained(model, windows, *, until, out=None, resume=False, warm=2):
    """The number of blocks in each step."""
    seen = []
    warmup = DenseWarmup(model, warm)

    def before(step: int) -> None:
        warmup.before_step(step)
        seen.extend(blocks_of(model))

    optimizer = RMSuon(model.parameters(), lr=1e-2)
    fit(
        *(model, windows, optimizer),
        steps=until,
        before_step=before,
        out=out,
        resume=resume,
        progress=False,
    )
    return seen


@pytest.mark.parametrize("name", ["nsa", "dynnsiha hybrid", "flat sparse", "recursive sparse"])
def test_the_first_steps_have_all_blocks(name, small_model, windows):
    model = small_model(name)
    (few,) = blocks_of(model)
    every = SEQ_LEN // cores_of(model)[0].config.block_size
    assert few < every, "the model would select all blocks anyway"
    assert trained(model, windows, until=4) == [every, every, few, few]
    assert blocks_of(model) == {few}


@pytest.mark.parametrize("kv_heads", [1, 2])
@pytest.mark.parametrize("branches", [*BRANCH_SETS, ("selected",)])
@pytest.mark.parametrize("options", [{}, {"query_tile": 4}, {"differentiable_topk": True}])
def test_it_is_what_lists_of_all_blocks_give(kv_heads, branches, options):
    """Lists of every block against the dense attention in their place, and its gradients.

    The same bits whether routing is asked for or not: a step that is logged is no other step.
    """
    config = NSAConfig(8, 8, 8, top_n=4, window=8, branches=branches, **options)
    core = SparseCore(16, HeadLayout.of(16, 2, kv_heads, 8), config).double()
    torch.manual_seed(0)
    shapes = ((2, 8), (kv_heads, 8), (kv_heads, 8), (16,))
    parts = [torch.randn(2, 61, *s, dtype=torch.float64, requires_grad=True) for s in shapes]
    DenseWarmup(core, 1).before_step(1)
    dense, nothing = core(*parts)
    watched, routing = core(*parts, return_routing=True)
    assert nothing.attention is nothing.gates is None
    assert torch.equal(dense, watched)
    gates = core.gates(parts[-1])
    assert torch.equal(gates, routing.gates)
    every = replace(core.config, top_n=8)
    listed, aux = native_sparse_attention(*parts[:3], gates, every, return_aux=True)
    if "selected" in branches:
        assert aux.block_counts[:, -1].eq(8).all()
    torch.testing.assert_close(dense, listed)
    weight = torch.randn_like(dense)
    grads = [torch.autograd.grad((o * weight).sum(), parts) for o in (dense, listed)]
    for one, other in zip(*grads, strict=True):
        torch.testing.assert_close(one, other)


def test_with_all_blocks_the_selected_branch_is_dense_attention(small_model):
    model = small_model("nsa")
    core = cores_of(model)[0]
    warmup = DenseWarmup(model, 1)
    q, k, v = (torch.randn(1, SEQ_LEN, heads, 16) for heads in (2, 2, 2))
    x = torch.randn(1, SEQ_LEN, core.gates.linear.in_features)
    dense = torch.nn.functional.scaled_dot_product_attention(
        *(part.transpose(1, 2) for part in (q, k, v)), is_causal=True
    ).transpose(1, 2)
    with torch.no_grad():
        core.gates.linear.weight.zero_()
        core.gates.linear.bias.copy_(torch.tensor([-100.0, 100.0, -100.0] * core.gates.q_heads))
        assert not torch.allclose(core(q, k, v, x)[0], dense, atol=1e-3)
        warmup.before_step(1)
        torch.testing.assert_close(core(q, k, v, x)[0], dense, atol=1e-4, rtol=1e-4)
        with warmup.ended():
            assert not torch.allclose(core(q, k, v, x)[0], dense, atol=1e-3)
        torch.testing.assert_close(core(q, k, v, x)[0], dense, atol=1e-4, rtol=1e-4)
        warmup.before_step(2)
        assert not torch.allclose(core(q, k, v, x)[0], dense, atol=1e-3)


def _has_lists(rows) -> bool:
    """Whether the attention layers of a logged step say how long their lists were."""
    (found,) = {"selected_blocks" in row for row in rows if "gate_selected" in row}
    return found


@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize("name", ["dynnsiha hybrid", "recursive sparse"])
def test_a_logged_step_is_no_other_step(name, recompute, small_model, windows):
    """Also where the backward pass computes layers again that nobody watches any more."""
    weights = []
    for log_every in (1, 3):
        model, logged = small_model(name, activation_checkpointing=recompute), []
        warmup = DenseWarmup(model, 2)
        fit(
            *(model, windows, RMSuon(model.parameters(), lr=1e-2)),
            steps=3,
            before_step=warmup.before_step,
            log_every=log_every,
            on_log=lambda step, rows, logged=logged: logged.append((step, rows)),
            progress=False,
        )
        weights.append([parameter.detach().clone() for parameter in model.parameters()])
        assert {step: _has_lists(rows) for step, rows in logged} == {
            step: step > 2 for step in range(log_every, 4, log_every)
        }
    assert all(map(torch.equal, *weights))


def test_a_resumed_run_goes_on_where_it_was(small_model, windows, tmp_path):
    whole = small_model("nsa")
    trained(whole, windows, until=6, warm=4, out=tmp_path / "whole")
    trained(small_model("nsa"), windows, until=3, warm=4, out=tmp_path / "cut")
    resumed = small_model("nsa")
    seen = trained(resumed, windows, until=6, warm=4, out=tmp_path / "cut", resume=True)
    assert seen[0] > seen[1] == seen[2]
    for a, b in zip(whole.parameters(), resumed.parameters(), strict=True):
        assert torch.equal(a, b)


def test_a_number_out_of_range_is_named(small_model):
    with pytest.raises(ValueError, match="steps=-1: must be at least 0"):
        DenseWarmup(small_model("nsa"), -1)


def test_a_dense_model_stays_as_it_is(small_model):
    model = small_model("dimension")
    DenseWarmup(model, 2).before_step(1)
    assert blocks_of(model) == set()
