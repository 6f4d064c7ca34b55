"""The training loop: batches, losses, steps, a log and checkpoints to go on from."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from dynnsiha.learning.batches import Batches, drawn_batches
from dynnsiha.learning.checkpoint import CHECKPOINT_FILE, load_checkpoint, save_checkpoint
from dynnsiha.learning.layer_statistics import RoutingStatistics
from dynnsiha.learning.log import TrainingLog
from dynnsiha.learning.objective import Losses, Objective
from dynnsiha.learning.progress import progress_bar
from dynnsiha.learning.schedule import Schedule

Evaluation = Callable[[nn.Module], Mapping[str, float]]
"""Model → columns of the log: ``eval_loss``, ``eval_accuracy``. It draws no random numbers of
torch's global stream, and leaves the model as it found it but for its training mode."""


@dataclass(frozen=True)
class FitResult:
    """What a call of `fit` did.

    Attributes:
        first_step, last_step: steps that this call took; first > last if there was nothing to do.
        main: cross-entropy of the last batch, nats a character; NaN if there was nothing to do.
    """

    first_step: int
    last_step: int
    main: float


def fit(
    model: nn.Module,
    windows: Batches,
    optimizer: torch.optim.Optimizer,
    *,
    steps: int,
    objective: Objective | None = None,
    schedule: Schedule | None = None,
    clip_norm: float | None = 1.0,
    out: str | os.PathLike[str] | None = None,
    checkpoint_every: int = 100,
    log_every: int = 1,
    check_every: int = 1,
    evaluation: Evaluation | None = None,
    evaluate_every: int = 100,
    resume: bool = False,
    on_log: Callable[[int, list[dict[str, Any]]], None] | None = None,
    before_step: Callable[[int], None] | None = None,
    on_step: Callable[[int, Losses], None] | None = None,
    progress: bool | None = None,
) -> FitResult:
    """Train ``model`` until it has taken ``steps`` steps.

    A run that was cut off and resumed gives the same bits as one that was not, on the same machine
    with deterministic operations: weights, optimizer, torch's random numbers and data continue
    where the checkpoint was written, and steps after it are taken again. So a checkpoint of another
    optimizer or learning rate is refused.

    Args:
        model: (char_ids, word_ids) → logits [B, T, char_vocab], as `DynNSIHALanguageModel`; it
            stays on its device, and in training mode.
        windows: the data, such as `TextWindows`; batch n trains step n + 1.
        optimizer: of the model's parameters.
        steps: steps in all, those before a resumed checkpoint included.
        objective: the loss; next-character cross-entropy alone if None.
        schedule: factor on the learning rates, see `warmup_cosine`; constant if None.
        clip_norm: largest norm of all gradients together; None for no limit.
        out: folder for the log (see `read_log`) and the checkpoint; nothing is written if None.
        checkpoint_every: steps between checkpoints; the last step always has one.
        log_every: steps between rows of the log.
        check_every: steps between looks at the loss, each of which waits for a GPU. Above 1, a loss
            that is not finite is found up to that many steps later, but before the next checkpoint.
        evaluation: gives columns of the log, every ``evaluate_every`` steps and after the last one.
        resume: go on from the checkpoint in ``out`` if there is one.
        on_log: called with the step and its rows of the log, with or without ``out``.
        before_step: called with the step before each step, for what changes in the course of a
            training, such as `DenseWarmup`.
        on_step: called with the step and its losses after each step.
        progress: show a progress bar; None shows it on a terminal.

    Returns:
        `FitResult`.

    Raises:
        ValueError: a number below 1, resume without ``out``, or a checkpoint that cannot be read or
            is of other data, of another optimizer or of another learning rate.
        FileExistsError: ``out`` holds a checkpoint, and ``resume`` is False.
        FloatingPointError: the loss or a gradient is not finite. That step is not taken.

    Source: docs/learning.md.
    """
    for name, number in (
        ("steps", steps),
        ("checkpoint_every", checkpoint_every),
        ("log_every", log_every),
        ("check_every", check_every),
        ("evaluate_every", evaluate_every),
    ):
        if number < 1:
            raise ValueError(f"{name}={number}: must be at least 1")
    if resume and out is None:
        raise ValueError("resume=True without out: name the folder that holds the checkpoint")
    objective = Objective() if objective is None else objective
    folder = None if out is None else Path(out)
    log = None if folder is None else TrainingLog(folder)
    data = windows.identity()
    done = 0
    if folder is not None and log is not None:
        if (folder / CHECKPOINT_FILE).exists():
            if not resume:
                raise FileExistsError(
                    f"out={os.fspath(folder)!r}: holds a checkpoint; pass resume=True,"
                    " or name another folder"
                )
            done = load_checkpoint(folder, model, optimizer, data=data)
        log.forget_after(done)
    for group in optimizer.param_groups:
        group.setdefault("initial_lr", group["lr"])

    device = next(model.parameters()).device
    statistics = RoutingStatistics()
    main = math.nan
    model.train()
    drawn = drawn_batches(windows, done, steps - 1, device)
    with progress_bar(steps, done, shown=progress) as show:
        for step, batch in enumerate(drawn, start=done + 1):
            evaluated = evaluation is not None and (step % evaluate_every == 0 or step == steps)
            wanted = step % log_every == 0 or evaluated
            logged = wanted and (log is not None or on_log is not None)
            due = folder is not None and (step % checkpoint_every == 0 or step == steps)
            looked_at = logged or due or step % check_every == 0 or step == steps
            if schedule is not None:
                for group in optimizer.param_groups:
                    group["lr"] = group["initial_lr"] * schedule(step)
            if before_step is not None:
                before_step(step)
            optimizer.zero_grad(set_to_none=True)
            with statistics.watching(model) if logged else nullcontext():
                losses = objective(model, *batch)
            losses.total.backward()
            norm = _clipped_norm(model, clip_norm)
            if looked_at:
                _require_finite(step, losses, norm)
                main = float(losses.main.detach())
            optimizer.step()
            if logged:
                facts = {
                    "layer": "",
                    "learning_rate": float(optimizer.param_groups[0]["lr"]),
                    "gradient_norm": float(norm),
                }
                rows = [facts | losses.numbers(), *statistics.rows()]
                if evaluated and evaluation is not None:
                    rows[0] |= evaluation(model)
                    model.train()
                if log is not None:
                    log.add(step, rows)
                if on_log is not None:
                    on_log(step, rows)
            if folder is not None and log is not None and due:
                log.write()
                save_checkpoint(folder, model, optimizer, step=step, data=data)
            if on_step is not None:
                on_step(step, losses)
            show(step, main)
    return FitResult(done + 1, max(done, steps), main)


@torch.no_grad()
def evaluate(model: nn.Module, windows: Batches, *, batches: int = 8) -> float:
    """Mean cross-entropy of the first batches of ``windows``, nats a character.

    Raises:
        ValueError: batches is below 1.
    """
    if batches < 1:
        raise ValueError(f"batches={batches}: must be at least 1")
    device = next(model.parameters()).device
    training = model.training
    model.eval()
    total = 0.0
    for position in range(batches):
        batch = (part.to(device) for part in windows.draw(position))
        total += float(Objective()(model, *batch).main)
    model.train(training)
    return total / batches


def _clipped_norm(model: nn.Module, clip_norm: float | None) -> torch.Tensor:
    """Norm of all gradients, which are clipped to ``clip_norm``; nothing waits for the device."""
    limit = math.inf if clip_norm is None else clip_norm
    return torch.nn.utils.clip_grad_norm_(model.parameters(), limit)


def _require_finite(step: int, losses: Losses, norm: torch.Tensor) -> None:
    total = float(losses.total.detach())
    if not math.isfinite(total) or not math.isfinite(float(norm)):
        raise FloatingPointError(
            f"step {step}: loss {total:.4g}, gradient norm {float(norm):.4g};"
            " lower the learning rate or the weights of the objective"
        )
