"""All blocks at first: what a query sees in each step, and that a resumed run goes on with it."""

from __future__ import annotations

import pytest
import torch

from dynnsiha import RMSuon
from dynnsiha.forms.nsa import SparseCore
from dynnsiha.learning import DenseWarmup, TextWindows, fit

pytestmark = pytest.mark.usefixtures("one_thread")

SEQ_LEN = 96


@pytest.fixture
def windows(library_source, segmenter) -> TextWindows:
    return TextWindows.of(library_source, segmenter, char_vocab=128, seq_len=SEQ_LEN, batch=2)


def blocks_of(model) -> set[int]:
    return {core.config.top_n for core in model.modules() if isinstance(core, SparseCore)}


def trained(model, windows, *, until, out=None, resume=False, warm=2):
    """The configuration's number of blocks in each step."""
    seen = []
    warmup = DenseWarmup(model, SEQ_LEN, warm)

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
    size = next(c.config.block_size for c in model.modules() if isinstance(c, SparseCore))
    every = SEQ_LEN // size
    assert few < every, "the model would select all blocks anyway"
    assert trained(model, windows, until=4) == [every, every, few, few]
    assert blocks_of(model) == {few}


def test_with_all_blocks_the_selected_branch_is_dense_attention(small_model):
    model = small_model("nsa")
    core = next(c for c in model.modules() if isinstance(c, SparseCore))
    warmup = DenseWarmup(model, SEQ_LEN, 1)
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


def test_a_resumed_run_goes_on_where_it_was(small_model, windows, tmp_path):
    whole = small_model("nsa")
    trained(whole, windows, until=6, warm=4, out=tmp_path / "whole")
    trained(small_model("nsa"), windows, until=3, warm=4, out=tmp_path / "cut")
    resumed = small_model("nsa")
    seen = trained(resumed, windows, until=6, warm=4, out=tmp_path / "cut", resume=True)
    assert seen[0] > seen[1] == seen[2]
    for a, b in zip(whole.parameters(), resumed.parameters(), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize(("seq_len", "steps", "name"), [(0, 1, "seq_len=0"), (8, -1, "steps=-1")])
def test_numbers_out_of_range_are_named(small_model, seq_len, steps, name):
    with pytest.raises(ValueError, match=f"{name}: must be at least"):
        DenseWarmup(small_model("nsa"), seq_len, steps)


def test_a_dense_model_stays_as_it_is(small_model):
    model = small_model("dimension")
    DenseWarmup(model, SEQ_LEN, 2).before_step(1)
    assert blocks_of(model) == set()
