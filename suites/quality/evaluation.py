"""Asking a model: cross-entropy and answers that are right in every character, on held-out data."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dynbench.suites.quality.tasks.base import Batch


@dataclass(frozen=True)
class Score:
    """What a model makes of some batches.

    Attributes:
        loss: cross-entropy over the characters that count, nats.
        accuracy: share of answers whose every character is the likeliest one.
        count: answers asked for.
    """

    loss: float
    accuracy: float
    count: int

    @property
    def columns(self) -> dict[str, float]:
        """As columns of a training's log."""
        return {"eval_loss": self.loss, "eval_accuracy": self.accuracy}


def answers_right(logits: Tensor, char_ids: Tensor, answers: Tensor) -> tuple[Tensor, Tensor]:
    """How many answers are right and how many there are, as scalars on the device.

    logits [B, T, V] predict the character after theirs; char_ids and answers [B, T] as in `Batch`.
    """
    numbers, rows = answers[:, 1:], len(answers)
    places = int(answers.shape[1])
    wrong = (logits[:, :-1].argmax(-1) != char_ids[:, 1:]) & (numbers > 0)
    counts = torch.zeros(2, rows, places, device=logits.device)
    for total, held in zip(counts, (wrong, numbers > 0), strict=True):
        total.scatter_add_(1, numbers, held.to(total.dtype))
    there = counts[1, :, 1:] > 0
    return (there & (counts[0, :, 1:] == 0)).sum(), there.sum()


class Evaluation:
    """The same held-out batches for every training of a task.

    Args:
        batches: asked, on the model's device.
        words: whether word ids are given, as in `TrainingBatches`.
    """

    def __init__(self, batches: list[Batch], *, words: bool = True) -> None:
        self.batches, self.words = batches, words

    def inputs(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """What the model reads of a batch."""
        words = batch.word_ids if self.words else torch.zeros_like(batch.word_ids)
        return batch.char_ids, words

    @torch.no_grad()
    def score(self, model: nn.Module) -> Score:
        """The model's score; it is left in evaluation mode."""
        model.eval()
        sums = torch.zeros(4, dtype=torch.float64)  # loss, characters, right, answers
        for batch in self.batches:
            logits = model(*self.inputs(batch))
            asked = batch.counted[:, 1:]
            each = F.cross_entropy(
                logits[:, :-1].flatten(0, 1).float(),
                batch.char_ids[:, 1:].flatten(),
                reduction="none",
            )
            right, there = answers_right(logits, batch.char_ids, batch.answers)
            loss = torch.where(asked.flatten(), each, 0).sum(dtype=torch.float64)
            parts = [part.double() for part in (loss, asked.sum(), right, there)]
            sums += torch.stack(parts).cpu()
        loss_sum, characters, right_sum, count = sums.tolist()
        if not count:
            return Score(math.nan, math.nan, 0)
        return Score(loss_sum / characters, right_sum / count, int(count))
