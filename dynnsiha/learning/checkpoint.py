"""Everything that a run needs to go on as if it had never stopped."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

CHECKPOINT_FILE = "checkpoint.pt"


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

    Raises:
        FileNotFoundError: no checkpoint in the folder.
        ValueError: it was made with other data; the message names what differs.
        RuntimeError: the model has other parameters.
    """
    state: dict[str, Any] = torch.load(
        folder / CHECKPOINT_FILE, map_location="cpu", weights_only=True
    )
    for name, value in state["data"].items():
        if data.get(name) != value:
            raise ValueError(
                f"windows: {name}={data.get(name)}, but the checkpoint in {folder} was made with"
                f" {value}; give the same data, or another folder"
            )
    model.load_state_dict(state["model"])
    optimizer.load_state_dict(state["optimizer"])
    torch.set_rng_state(state["random"])
    if state["random_cuda"] and torch.cuda.device_count() == len(state["random_cuda"]):
        torch.cuda.set_rng_state_all(state["random_cuda"])
    return int(state["step"])
