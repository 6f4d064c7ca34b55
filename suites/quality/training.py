"""One training: a model, a task and what became of them."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from dynbench.harness.case import Case
from dynbench.harness.curves import CURVES_FOLDER, write_curves
from dynbench.harness.subject import Correctness, Unsupported
from dynbench.suites.models import build_model, model_config
from dynbench.suites.quality.evaluation import Evaluation, Score
from dynbench.suites.quality.recipe import (
    Recipe,
    config_changes,
    make_objective,
    make_optimizer,
    start_gates,
)
from dynbench.suites.quality.routing import RoutingFacts
from dynbench.suites.quality.tasks.base import Batch, Task, TrainingBatches
from dynbench.suites.quality.tasks.making import make_task
from dynbench.suites.quality.variants import variant_values
from dynbench.suites.quality.warmups import dense_steps, length_stages
from dynbench.suites.spec import Spec
from dynnsiha.learning import DenseWarmup, fit, warmup_cosine

_LOG_TO_CURVE = {"main": "train_loss", "total": "total_loss"}
_LEAST_TOKENS = 16  # of the shortest sequences of a warm-up
_NO_WORDS = 1  # rows of the word embedding where every character has the id of no word


class Autocast(nn.Module):
    """A model whose forward pass computes matrix products in a 16-bit dtype."""

    def __init__(self, model: nn.Module, dtype: torch.dtype) -> None:
        super().__init__()
        self.model, self.dtype = model, dtype

    def forward(self, char_ids: Tensor, word_ids: Tensor) -> Tensor:
        """As the model's."""
        with torch.autocast(char_ids.device.type, self.dtype):
            return self.model(char_ids, word_ids)


@dataclass
class Outcome:
    """What a training left: records of its curve (no run or case in them) and the last score."""

    records: list[dict[str, Any]] = field(default_factory=list)
    score: Score = field(default_factory=lambda: Score(math.nan, math.nan, 0))


class Training:
    """The training of a case.

    Parameters are float32; with a 16-bit dtype of the case the forward pass is under autocast.

    Raises Unsupported for a model, a size or an auxiliary loss that does not exist.
    """

    def __init__(self, case: Case, spec: Spec, task: Task, recipe: Recipe) -> None:
        self.case, self.spec, self.task, self.recipe = case, spec, task, recipe
        self.variant = variant_values(str(case.settings.get("variant", "")))
        self.steps = int(case.workload["train_steps"])
        self.before = _warming(case, task, self.steps, self.variant)
        self.words = self.variant["word_embedding"] == "on"
        word_vocab = task.word_vocab if self.words else _NO_WORDS
        config = model_config(spec, word_vocab, **config_changes(spec, self.variant))
        self.nsa_config = config.nsa
        model = build_model(replace(spec, dtype=torch.float32), config)
        start_gates(model, self.variant)
        half = spec.dtype != torch.float32
        self.model: nn.Module = Autocast(model, spec.dtype) if half else model
        self.dense_warmup = DenseWarmup(self.model, dense_steps(self.steps, self.variant))
        self.optimizer = make_optimizer(self.model, self.variant)
        self.objective = make_objective(self.model, self.optimizer, self.variant)
        self.outcome = Outcome()
        self.tell: Callable[[str], None] = lambda where: None

    def follow(self, tell: Callable[[str], None]) -> None:
        """Tell this function how far the training is, at logged steps and seconds apart."""
        self.tell = tell

    @property
    def parameters(self) -> int:
        """Numbers that training changes."""
        return sum(p.numel() for p in self.model.parameters() if p.requires_grad)

    def run(self) -> Outcome:
        """Train from the first step to the last, and ask what was learned."""
        batches = TrainingBatches(self.task, self.spec.seed, words=self.words, before=self.before)
        evaluation = self._evaluation()
        began = told = time.perf_counter()
        outcome = self.outcome = Outcome()

        def evaluate(model: nn.Module) -> Mapping[str, float]:
            with self.dense_warmup.ended():
                outcome.score = evaluation.score(model)
            return outcome.score.columns

        def keep(step: int, rows: list[dict[str, Any]]) -> None:
            nonlocal told
            now = time.perf_counter()
            outcome.records.extend(_record(step, row, now - began) for row in rows)
            if now - told >= self.recipe.told_every_s:
                told = now
                known = math.isfinite(outcome.score.loss)
                score = f", held-out loss {outcome.score.loss:.3f}" if known else ""
                self.tell(f"step {step} of {self.steps}{score}")

        fit(
            self.model,
            batches,
            self.optimizer,
            steps=self.steps,
            objective=self.objective,
            schedule=warmup_cosine(
                self.steps, warmup=min(self.recipe.warmup_steps, self.steps // 10)
            ),
            log_every=_each(self.steps, self.recipe.logged_steps),
            check_every=_each(self.steps, self.recipe.logged_steps),
            evaluation=evaluate,
            evaluate_every=_each(self.steps, self.recipe.evaluations),
            on_log=keep,
            before_step=self.dense_warmup.before_step,
            progress=False,
        )
        return outcome

    def check(self, outcome: Outcome) -> Correctness:
        """Whether the training came to an end that can be told: a finite loss, and a curve."""
        problem = ""
        if not math.isfinite(outcome.score.loss):
            problem = f"held-out loss {outcome.score.loss} after {outcome.score.count} answers"
        elif not outcome.records:
            problem = "the training left no curve"
        return Correctness(0.0, 0.0, self.task.description, problem=problem)

    def facts(self) -> dict[str, Any]:
        """Columns of the row: score, size, and what opens on held-out data."""
        routing = RoutingFacts(self.nsa_config, self.spec.seq_len)
        routing.look_into(self.model, self._evaluation())
        return {
            **self.outcome.score.columns,
            "eval_count": self.outcome.score.count,
            "parameters": self.parameters,
            **routing.columns(),
        }

    def keep(self, folder: Path, run_id: str) -> None:
        """Write the curve into a run's folder."""
        ids = {"run_id": run_id, "case_id": self.case.case_id}
        records = [ids | record for record in self.outcome.records]
        write_curves(records, folder / CURVES_FOLDER / f"{self.case.case_id}.parquet")

    def _evaluation(self) -> Evaluation:
        batches: list[Batch] = []
        sequences = characters = 0
        there = self.task.held_out_count
        while (
            sequences < self.recipe.evaluated_sequences
            and characters < self.recipe.evaluated_characters
            and (there is None or sequences < there)
        ):
            drawn = self.task.draw("held_out", 0, len(batches))
            left = None if there is None else there - sequences  # none is asked twice
            parts = [p[:left] for p in (drawn.char_ids, drawn.word_ids, drawn.answers)]
            batches.append(Batch(*(part.to(self.spec.device) for part in parts)))
            sequences += len(parts[0])
            characters += int(batches[-1].counted.sum())
        return Evaluation(batches, words=self.words)


def _warming(
    case: Case, task: Task, steps: int, variant: Mapping[str, str]
) -> list[tuple[int, Task]]:
    """The task on shorter sequences, with the steps that they come before it.

    Raises Unsupported where they are too short for it.
    """
    *stages, _ = length_stages(steps, task.batch, task.seq_len, variant)
    if stages and stages[0].seq_len < _LEAST_TOKENS:
        raise Unsupported(
            f"length_warmup={variant['length_warmup']}: sequences of {stages[0].seq_len} tokens at "
            f"first; take a longer --seq, {_LEAST_TOKENS} tokens are the least"
        )
    name = str(case.workload["task"])
    return [(stage.steps, make_task(name, stage.batch, stage.seq_len)) for stage in stages]


def _record(step: int, row: Mapping[str, Any], at_s: float) -> dict[str, Any]:
    """A row of the training's log as a record of the curve."""
    named = {_LOG_TO_CURVE.get(name, name): value for name, value in row.items()}
    layer = str(named["layer"]).removeprefix("model.")  # of Autocast
    return {**named, "step": step, "layer": layer, "at_s": at_s if not layer else None}


def _each(steps: int, times: int) -> int:
    """Steps between things that happen so many times in a training."""
    return max(1, -(-steps // times))
