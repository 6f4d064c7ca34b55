"""An answer is right if every character of it is the likeliest one."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from dynbench.suites.quality.evaluation import Evaluation, answers_right
from dynbench.suites.quality.tasks.base import Batch


class Fixed(nn.Module):
    """A model with given logits, which notes the words that it gets."""

    def __init__(self, logits: torch.Tensor) -> None:
        super().__init__()
        self.logits, self.words = logits, []

    def forward(self, char_ids, word_ids):
        self.words.append(word_ids)
        return self.logits


@given(
    st.lists(
        st.lists(st.tuples(st.integers(0, 3), st.booleans()), min_size=5, max_size=5),
        min_size=1,
        max_size=4,
    )
)
def test_scores_are_those_of_a_count_by_hand(rows):
    """Each character: number of its answer (0: none) and whether it is predicted rightly."""
    answers = torch.tensor([[0] + [number for number, _ in row] for row in rows])
    chars = torch.arange(6).expand(len(rows), 6)
    logits = torch.zeros(len(rows), 6, 8)
    groups: dict[tuple[int, int], list[bool]] = {}
    losses = []
    for b, row in enumerate(rows):
        for t, (number, right) in enumerate(row):
            logits[b, t, (t + 1) if right else 7] = 2.0
            if number:
                groups.setdefault((b, number), []).append(right)
                likely = math.exp(2.0) if right else 1.0
                losses.append(-math.log(likely / (math.exp(2.0) + 7)))
    right, there = answers_right(logits, chars, answers)
    assert int(there) == len(groups)
    assert int(right) == sum(map(all, groups.values()))
    score = Evaluation([Batch(chars, chars, answers)] * 2).score(Fixed(logits))
    assert score.count == 2 * len(groups)
    if not groups:
        assert math.isnan(score.loss)
        return
    assert score.accuracy == pytest.approx(sum(map(all, groups.values())) / len(groups))
    assert score.loss == pytest.approx(sum(losses) / len(losses), rel=1e-5)


def test_without_words_every_character_has_the_id_of_none():
    ids = torch.arange(6)[None]
    batch = Batch(ids, ids + 3, (ids > 2).long())
    model = Fixed(torch.zeros(1, 6, 8)).train()
    for words in (True, False):
        Evaluation([batch], words=words).score(model)
    assert torch.equal(model.words[0], ids + 3)
    assert not model.words[1].any()
    assert not model.training
