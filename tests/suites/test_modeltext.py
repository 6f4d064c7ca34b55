"""Text for models: the ids that the library reads it as, in one vocabulary for all lengths."""

import torch

from dynbench.suites import modeltext
from dynbench.suites.inputs import source_text
from dynbench.suites.modeltext import text_ids
from dynbench.suites.plan import PlanOptions, plan
from dynbench.suites.spec import Spec
from dynbench.suites.vocabulary import WORD_VOCAB
from dynnsiha.embedding import character_ids


def ids(tokens, **changes):
    options = {"batch": 3, "seed": 5} | changes
    (case,) = plan(PlanOptions((64,), "cpu", suite="training", providers=("sdpa",), **options))
    return text_ids(Spec.of(case), tokens)


def test_sequences_follow_one_another_in_the_text():
    found = ids(100)
    assert found.chars.shape == found.words.shape == (3, 100)
    assert torch.equal(found.chars.flatten(), character_ids(source_text(300, 5), 256))
    assert torch.equal(found.part(slice(90, None)).words, found.words[:, 90:])


def test_the_vocabulary_does_not_depend_on_the_text():
    """So a model has as many parameters at every length, and a word the same id."""
    short, long = ids(50, batch=1), ids(5000, batch=1)
    assert torch.equal(short.words, long.words[:, :50])
    assert modeltext._segmenter().num_ids == WORD_VOCAB
    assert long.words.max() < WORD_VOCAB
    assert (long.words > 0).float().mean() > 0.9
    assert ids(50, batch=1, seed=6).chars.tolist() != short.chars.tolist()
