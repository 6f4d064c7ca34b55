"""Everything that a run needs to go on as if it had never stopped."""

from __future__ import annotations

import os
import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

CHECKPOINT_FILE = "checkpoint.pt"

_ENTRIES = {"step", "data", "model", "optimizer_name", "optimizer", "random", "random_cuda"}
# What torch.load raises for files that are cut short at one place or another, or of another kind.
_UNREADABLE = (
    OSError,
    RuntimeError,
    EOFError,
    LookupError,
    AttributeError,
    pickle.UnpicklingError,
)


def save_checkpoint(
    folder: Path,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    *,
    step: int,
    data: Mapping[str, int],
) -> Path:
    """Write model, optimizer, torch's random states, the position and what the data is.

    The file replaces the one before only when it is complete.

    Args:
        folder: made if needed.
        step: steps taken, which is also the number of batches drawn.
        data: `Batches.identity` of the data.

    Returns:
        Path of the file.
    """
    state = {
        "step": step,
        "data": dict(data),
        "model": model.state_dict(),
        "optimizer_name": type(optimizer).__name__,
        "optimizer": optimizer.state_dict(),
        "random": torch.get_rng_state(),
        "random_cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
    }
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / CHECKPOINT_FILE
    partial = path.with_suffix(".partial")
    with partial.open("wb") as file:
        torch.save(state, file)
        file.flush()
        os.fsync(file.fileno())
    os.replace(partial, path)
    return path


def load_checkpoint(
    folder: Path, model: nn.Module, optimizer: torch.optim.Optimizer, *, data: Mapping[str, int]
) -> int:
    """Put everything back where `save_checkpoint` found it; returns the steps taken.

    The learning rates must be those that the run began with: others would not go on with it.

    Raises:
        FileNotFoundError: no checkpoint in the folder.
        ValueError: it cannot be read, or was made with other data, another optimizer or another
            learning rate; the message names what differs. Nothing has changed then.
        RuntimeError: the model has other parameters.
    """
    state = _read(folder / CHECKPOINT_FILE)
    for name, value in state["data"].items():
        if data.get(name) != value:
            raise ValueError(
                f"windows: {name}={data.get(name)}, but the checkpoint in {folder} was made with"
                f" {value}; give the same data, or another folder"
            )
    _require_same_optimizer(folder, state, optimizer)
    model.load_state_dict(state["model"])
    optimizer.load_state_dict(state["optimizer"])
    torch.set_rng_state(state["random"])
    if state["random_cuda"] and torch.cuda.device_count() == len(state["random_cuda"]):
        torch.cuda.set_rng_state_all(state["random_cuda"])
    return int(state["step"])


def _read(path: Path) -> dict[str, Any]:
    with path.open("rb") as file:
        try:
            state: dict[str, Any] = torch.load(file, map_location="cpu", weights_only=True)
            # A file of another kind, or of a version that did not write all of it.
            missing = _ENTRIES - state.keys()
        except _UNREADABLE as error:
            raise ValueError(
                f"{path}: cannot be read, it may be cut short; remove it to start again, or put a"
                " whole copy there"
            ) from error
    if missing:
        raise ValueError(
            f"{path}: has no {sorted(missing)}, so it is no checkpoint of this version; remove it"
            " to start again"
        )
    return state


def _require_same_optimizer(
    folder: Path, state: Mapping[str, Any], optimizer: torch.optim.Optimizer
) -> None:
    """Its kind and its learning rates, which `Optimizer.load_state_dict` replaces in silence."""
    name, held = type(optimizer).__name__, state["optimizer_name"]
    if name != held:
        raise ValueError(
            f"optimizer: is {name}, but the checkpoint in {folder} was made with {held}; give the"
            " same optimizer, or another folder"
        )
    groups = zip(optimizer.param_groups, state["optimizer"]["param_groups"], strict=False)
    for group, before in groups:  # another number of groups is refused as the state is loaded
        # Where a schedule moves the rate, the one that it started from.
        asked = float(group.get("initial_lr", group["lr"]))
        begun = float(before.get("initial_lr", asked))
        if asked != begun:
            raise ValueError(
                f"optimizer: lr={asked:g}, but the checkpoint in {folder} was made with {begun:g};"
                " give the same learning rate, or another folder"
            )
