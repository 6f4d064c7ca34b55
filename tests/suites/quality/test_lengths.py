"""Sequence length warm-up: stages that add up, and a training that goes through them."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dynbench.harness.subject import Unsupported
from dynbench.suites.cost import call_work
from dynbench.suites.quality.lengths import Stage, length_stages
from dynbench.suites.quality.recipe import Recipe
from dynbench.suites.quality.tasks.recall import Recall
from dynbench.suites.quality.training import Training
from dynbench.suites.spec import Spec


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
