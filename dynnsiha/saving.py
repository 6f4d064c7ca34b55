"""A language model on disk: weights in safetensors, configuration and segmenter in JSON."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import nn

from dynnsiha.attention import NSAConfig
from dynnsiha.embedding.deep_embed import DeepEmbed
from dynnsiha.embedding.mapped_table import MappedTable
from dynnsiha.embedding.segmenter import WordSegmenter
from dynnsiha.optional import safetensors

WEIGHTS, CONFIG, SEGMENTER = "model.safetensors", "config.json", "segmenter.json"

Model = TypeVar("Model", bound=nn.Module)


def save_model(
    folder: str | os.PathLike[str], model: nn.Module, config: Any, segmenter: WordSegmenter | None
) -> None:
    """Write a model and its dataclass ``config`` to a folder, which is made if need be.

    Tables that are on disk already are written as well: the folder is complete. Weights that were
    there before are replaced at once, so that a model whose tables are mapped from them keeps them.

    Raises:
        ModuleNotFoundError: safetensors is not installed.
    """
    files = safetensors().torch
    path = Path(folder)
    path.mkdir(parents=True, exist_ok=True)
    weights = {name: x.detach().contiguous() for name, x in model.state_dict().items()}
    for name, module in model.named_modules():
        if isinstance(module, MappedTable):
            weights[f"{name}.weight"] = module.rows
    unfinished = path / f"{WEIGHTS}.unfinished"
    files.save_file(weights, unfinished)
    os.replace(unfinished, path / WEIGHTS)
    (path / CONFIG).write_text(json.dumps(asdict(config), indent=1) + "\n")
    if segmenter is not None:
        (path / SEGMENTER).write_text(json.dumps(segmenter.to_dict(), ensure_ascii=False) + "\n")


def load_model(
    folder: str | os.PathLike[str],
    config_type: Callable[..., Any],
    model_type: Callable[[Any], Model],
    device: torch.device | str,
    *,
    map_tables: bool = False,
) -> tuple[Model, WordSegmenter | None]:
    """The model that `save_model` wrote, in its dtype, and its segmenter if there is one.

    With ``map_tables`` the tables of `DeepEmbed` stay in the file.

    Raises:
        FileNotFoundError: no model in the folder.
        ValueError: a configuration of another version, or weights that do not fit it.
        ModuleNotFoundError: safetensors is not installed.
    """
    files = safetensors().torch
    path = Path(folder)
    if not (path / CONFIG).is_file() or not (path / WEIGHTS).is_file():
        raise FileNotFoundError(f"{path}: holds no {CONFIG} and {WEIGHTS}; save a model there")
    settings = json.loads((path / CONFIG).read_text())
    unknown = sorted(set(settings) - {field.name for field in fields(config_type)})  # type: ignore[arg-type]
    if unknown:
        raise ValueError(f"{path / CONFIG}: unknown settings {unknown}; written by a later version")
    if settings.get("nsa") is not None:
        nsa = settings["nsa"] | {"branches": tuple(settings["nsa"]["branches"])}
        settings["nsa"] = NSAConfig(**nsa)
    model = model_type(config_type(**settings))
    in_file = files.load_file(path / WEIGHTS)
    if map_tables:
        for name, module in model.named_modules():
            if isinstance(module, DeepEmbed):
                table = f"{name}.table.weight"
                module.map_table(path / WEIGHTS, name=table)
                del in_file[table]
    # Copies: the file that safetensors maps need not outlive the model.
    weights = {name: x.clone() for name, x in in_file.items()}
    try:
        model.load_state_dict(weights, assign=True)  # in the dtype that they were saved in
    except RuntimeError as error:
        first = str(error).splitlines()[-1].strip()
        raise ValueError(f"{path / WEIGHTS}: does not fit {CONFIG}: {first}") from error
    segmenter = None
    if (path / SEGMENTER).is_file():
        segmenter = WordSegmenter.from_dict(json.loads((path / SEGMENTER).read_text()))
    return model.to(device), segmenter
