"""A language model on disk: weights in safetensors, configuration and segmenter in JSON."""

from __future__ import annotations

import inspect
import json
import os
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from types import UnionType
from typing import Any, Literal, TypeVar, Union, get_args, get_origin

import torch
from torch import nn

from dynnsiha.attention import NSAConfig
from dynnsiha.embedding.deep_embed import DeepEmbed
from dynnsiha.embedding.mapped_table import MappedTable
from dynnsiha.embedding.segmenter import WordSegmenter
from dynnsiha.optional import safetensors

WEIGHTS, CONFIG, SEGMENTER = "model.safetensors", "config.json", "segmenter.json"

Model = TypeVar("Model", bound=nn.Module)
Made = TypeVar("Made")


def save_model(
    folder: str | os.PathLike[str], model: nn.Module, config: Any, segmenter: WordSegmenter | None
) -> None:
    """Write a model and its dataclass ``config`` to a folder, which is made if need be.

    Tables that are on disk already are written as well: the folder is complete. Weights that were
    there before are replaced at once, so that a model whose tables are mapped from them keeps them.
    Without a segmenter, one that was there before is removed.

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
    (path / CONFIG).write_text(json.dumps(asdict(config), indent=1) + "\n", encoding="utf-8")
    if segmenter is None:
        (path / SEGMENTER).unlink(missing_ok=True)
    else:
        words = json.dumps(segmenter.to_dict(), ensure_ascii=False)
        (path / SEGMENTER).write_text(words + "\n", encoding="utf-8")


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
        ValueError: a configuration or segmenter of another version, weights that do not fit it, or
            a file that cannot be read.
        ModuleNotFoundError: safetensors is not installed.
    """
    files = safetensors()
    path = Path(folder)
    if not (path / CONFIG).is_file() or not (path / WEIGHTS).is_file():
        raise FileNotFoundError(f"{path}: holds no {CONFIG} and {WEIGHTS}; save a model there")
    settings = _read_json(path / CONFIG)
    nsa = settings.get("nsa")
    if isinstance(nsa, dict):
        if isinstance(nsa.get("branches"), list):
            nsa["branches"] = tuple(nsa["branches"])
        settings["nsa"] = _made(NSAConfig, nsa, path / CONFIG)
    model = model_type(_made(config_type, settings, path / CONFIG))
    try:
        in_file = files.torch.load_file(path / WEIGHTS)
    except files.SafetensorError as error:
        raise ValueError(f"{path / WEIGHTS}: cannot be read: {error}; save it again") from error
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
        segmenter = _made(WordSegmenter, _read_json(path / SEGMENTER), path / SEGMENTER)
    return model.to(device), segmenter


def _read_json(path: Path) -> dict[str, Any]:
    try:
        state = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path}: cannot be read: {error}; save the model again") from error
    if not isinstance(state, dict):
        raise ValueError(f"{path}: holds no settings but {state!r:.40}; save the model again")
    return state


def _made(kind: Callable[..., Made], settings: dict[str, Any], path: Path) -> Made:
    """``kind`` with the settings of a file: all that it needs, none else, each of its type."""
    known = inspect.signature(kind, eval_str=True).parameters
    unknown = sorted(settings.keys() - known.keys())
    if unknown:
        raise ValueError(f"{path}: unknown settings {unknown}; written by a later version")
    missing = [n for n, p in known.items() if p.default is p.empty and n not in settings]
    if missing:
        raise ValueError(f"{path}: has no settings {missing}; written by another version")
    for name, value in settings.items():
        if not _is_of(known[name].annotation, value):
            found = f"{name}={value!r:.60}"  # words may be many
            raise ValueError(f"{path}: {found}: has another type; save the model again")
    return kind(**settings)


def _is_of(hint: Any, value: Any) -> bool:
    """Whether ``value``, from JSON, may stand where a configuration or a segmenter has ``hint``."""
    kind = get_origin(hint)
    if kind is None:
        return isinstance(value, (int, float) if hint is float else hint)
    if kind is Literal:
        return isinstance(value, str)  # which ones, the configuration says
    if kind in (Union, UnionType):
        return any(_is_of(one, value) for one in get_args(hint))
    part = get_args(hint)[0]  # of a tuple, or of words
    return isinstance(value, (list, tuple)) and all(_is_of(part, one) for one in value)
