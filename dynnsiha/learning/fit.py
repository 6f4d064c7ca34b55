"""The training loop: batches, losses, steps, a log and checkpoints to go on from."""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from dynnsiha.learning.checkpoint import CHECKPOINT_FILE, load_checkpoint, save_checkpoint
from dynnsiha.learning.layer_statistics import RoutingStatistics
from dynnsiha.learning.log import TrainingLog
from dynnsiha.learning.objective import Losses, Objective
from dynnsiha.learning.progress import progress_bar
from dynnsiha.learning.schedule import Schedule
from dynnsiha.learning.windows import TextWindows


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
    windows: TextWindows,
    optimizer: torch.optim.Optimizer,
    *,
    steps: int,
    objective: Objective | None = None,
    schedule: Schedule | None = None,
    clip_norm: float | None = 1.0,
    out: str | os.PathLike[str] | None = None,
    checkpoint_every: int = 100,
    log_every: int = 1,
    resume: bool = False,
    on_step: Callable[[int, Losses], None] | None = None,
    progress: bool | None = None,
) -> FitResult:
    """Train ``model`` until it has taken ``steps`` steps.

    A run that was cut off and resumed gives the same bits as one that was not, on the same machine
    with deterministic operations: weights, optimizer, torch's random numbers and data continue
    where the checkpoint was written, and steps after it are taken again.

    Args:
        model: (char_ids, word_ids) → logits [B, T, char_vocab], as `DynNSIHALanguageModel`; it
            stays on its device, and in training mode.
        windows: the data; batch n trains step n + 1.
        optimizer: of the model's parameters.
        steps: steps in all, those before a resumed checkpoint included.
        objective: the loss; next-character cross-entropy alone if None.
        schedule: factor on the learning rates, see `warmup_cosine`; constant if None.
        clip_norm: largest norm of all gradients together; None for no limit.
        out: folder for the log (see `read_log`) and the checkpoint; nothing is written if None.
        checkpoint_every: steps between checkpoints; the last step always has one.
        log_every: steps between rows of the log.
        resume: go on from the checkpoint in ``out`` if there is one.
        on_step: called with the step and its losses after each step.
        progress: show a progress bar; None shows it on a terminal.

    Returns:
        `FitResult`.

    Raises:
        ValueError: a number below 1, resume without ``out``, or a checkpoint of other data.
        FileExistsError: ``out`` holds a checkpoint, and ``resume`` is False.
        FloatingPointError: the loss or a gradient is not finite. That step is not taken.

    Source: docs/learning.md.
    """
    for name, number in (
        ("steps", steps),
        ("checkpoint_every", checkpoint_every),
        ("log_every", log_every),
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
    with progress_bar(steps, done, shown=progress) as show:
        for step in range(done + 1, steps + 1):
            logged = log is not None and step % log_every == 0
            char_ids, word_ids = (ids.to(device) for ids in windows.draw(step - 1))
            if schedule is not None:
                for group in optimizer.param_groups:
                    group["lr"] = group["initial_lr"] * schedule(step)
            optimizer.zero_grad(set_to_none=True)
            with statistics.watching(model) if logged else nullcontext():
                losses = objective(model, char_ids, word_ids)
            losses.total.backward()
            norm = _gradient_norm(model, clip_norm, step, losses)
            optimizer.step()
            main = float(losses.main.detach())
            if log is not None and logged:
                facts = {
                    "layer": "",
                    "learning_rate": float(optimizer.param_groups[0]["lr"]),
                    "gradient_norm": norm,
                }
                log.add(step, [facts | losses.numbers(), *statistics.rows()])
            due = step % checkpoint_every == 0 or step == steps
            if folder is not None and log is not None and due:
                log.write()
                save_checkpoint(folder, model, optimizer, step=step, data=data)
            if on_step is not None:
                on_step(step, losses)
            show(step, main)
    return FitResult(done + 1, max(done, steps), main)


@torch.no_grad()
def evaluate(model: nn.Module, windows: TextWindows, *, batches: int = 8) -> float:
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
        char_ids, word_ids = (ids.to(device) for ids in windows.draw(position))
        total += float(Objective()(model, char_ids, word_ids).main)
    model.train(training)
    return total / batches


def _gradient_norm(model: nn.Module, clip_norm: float | None, step: int, losses: Losses) -> float:
    """Norm of all gradients, which are clipped to ``clip_norm``."""
    limit = math.inf if clip_norm is None else clip_norm
    norm = float(torch.nn.utils.clip_grad_norm_(model.parameters(), limit))
    if not math.isfinite(norm) or not math.isfinite(float(losses.total.detach())):
        raise FloatingPointError(
            f"step {step}: loss {float(losses.total.detach()):.4g}, gradient norm {norm:.4g};"
            " lower the learning rate or the weights of the objective"
        )
    return norm
