"""Warm-ups: stages that add up, and trainings that go through them."""

from __future__ import annotations

import itertools

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from dynbench.harness.subject import Unsupported
from dynbench.suites.cost import call_work
from dynbench.suites.quality.recipe import Recipe
from dynbench.suites.quality.tasks.recall import Recall
from dynbench.suites.quality.training import Training
from dynbench.suites.quality.warmups import Stage, dense_steps, length_stages
from dynbench.suites.spec import Spec
from dynnsiha.forms.nsa import SparseCore


def warmed(steps, batch, seq_len, factor):
    return length_stages(steps, batch, seq_len, {"length_warmup": str(factor)})


@given(
    steps=st.integers(1, 3000),
    batch=st.integers(1, 64),
    length=st.integers(1, 512),
    factor=st.sampled_from([1, 2, 4, 8, 16]),
)
def test_lengths_double_and_steps_and_tokens_add_up(steps, batch, length, factor):
    seq_len = length * factor
    stages = warmed(steps, batch, seq_len, factor)
    assert sum(stage.steps for stage in stages) == steps
    assert all(stage.steps > 0 for stage in stages)
    assert {stage.batch * stage.seq_len for stage in stages} == {batch * seq_len}
    assert stages[-1].seq_len == seq_len
    for shorter, longer in itertools.pairwise(stages):
        assert longer.seq_len == 2 * shorter.seq_len
    assert stages[-1].steps >= steps - steps // 2


def test_the_stages_of_an_example():
    assert warmed(1200, 16, 1024, 1) == (Stage(1200, 16, 1024),)
    assert warmed(1200, 16, 1024, 4) == (
        Stage(300, 64, 256),
        Stage(300, 32, 512),
        Stage(600, 16, 1024),
    )


def test_a_training_draws_the_lengths_in_turn(tiny_case):
    case = tiny_case("sdpa", variants=("length_warmup=2",), train_steps=4)
    task = Recall(2, 64)
    training = Training(case, Spec.of(case), task, Recipe(evaluated_sequences=2))
    drawn = []
    seen = training.model.register_forward_pre_hook(
        lambda module, args: drawn.append(tuple(args[0].shape)) if module.training else None
    )
    outcome = training.run()
    seen.remove()
    assert drawn == [(4, 32), (4, 32), (2, 64), (2, 64)]
    assert outcome.score.count == 2 * task.pairs, "asked at the full length"


def test_the_work_is_that_of_its_stages(tiny_case):
    warm = call_work(tiny_case("sdpa", variants=("length_warmup=2",), train_steps=4))
    full = call_work(tiny_case("sdpa", train_steps=4))
    short = call_work(tiny_case("sdpa", train_steps=4, seq_lens=(32,), batch=4))
    assert warm.flops == warm.dense_flops == pytest.approx((full.flops + short.flops) / 2)


def test_sequences_that_begin_too_short_are_unsupported(tiny_case):
    case = tiny_case("sdpa", variants=("length_warmup=16",), train_steps=32)
    with pytest.raises(Unsupported, match="length_warmup=16: sequences of 4 tokens at first"):
        Training(case, Spec.of(case), Recall(2, 64), Recipe())


@pytest.mark.parametrize("provider", ["nsa", "dynnsiha"])
def test_all_blocks_are_selected_for_the_first_share_of_the_steps(tiny_case, provider):
    case = tiny_case(provider, variants=("dense_warmup=0.5",), train_steps=4)
    training = Training(case, Spec.of(case), Recall(2, 64), Recipe(evaluated_sequences=2))
    core = next(m for m in training.model.modules() if isinstance(m, SparseCore))
    seen = {True: [], False: []}

    def see(module, args):
        """The blocks that the last token's query selects: all where dense attention stands for
        its list. ``forward`` calls no hook."""
        with torch.no_grad():
            _, routing = module.forward(*args, return_routing=True)
        every = args[0].shape[1] // module.config.block_size
        lists = routing.attention
        seen[module.training].append(int(lists.block_counts[0, -1].max()) if lists else every)

    handle = core.register_forward_pre_hook(see)
    training.run()
    handle.remove()
    assert seen[True] == [8, 8, 5, 5]
    assert set(seen[False]) == {5}, "asked as it will be used"


def test_dense_steps_are_a_share_of_all():
    assert [dense_steps(1000, {"dense_warmup": share}) for share in ("0", "0.25")] == [0, 250]
    assert dense_steps(1, {"dense_warmup": "0.75"}) == 0, "the last step has its lists"


def test_the_work_of_a_dense_warm_up_has_all_blocks(tiny_case):
    warm = call_work(tiny_case("nsa", variants=("dense_warmup=0.25",), train_steps=4))
    sparse = call_work(tiny_case("nsa", train_steps=4))
    dense = call_work(tiny_case("nsa", train_steps=4, top_n=8))
    assert warm.flops == pytest.approx((dense.flops + 3 * sparse.flops) / 4)
    assert sparse.flops < warm.flops < dense.flops


def test_both_warm_ups_together_count_each_step_once(tiny_case):
    both = ("length_warmup=2,dense_warmup=0.75",)
    warm = call_work(tiny_case("nsa", variants=both, train_steps=4))
    parts = [
        call_work(tiny_case("nsa", train_steps=2, seq_lens=(32,), batch=4, top_n=8)),
        call_work(tiny_case("nsa", train_steps=1, top_n=8)),
        call_work(tiny_case("nsa", train_steps=1)),
    ]
    assert warm.flops == pytest.approx(sum(part.flops for part in parts))
