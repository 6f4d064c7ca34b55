"""A user's own provider: a Python file with a function ``attention``."""

from __future__ import annotations

import importlib.util
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

from dynbench.suites.own import OwnProvider, read_own_provider
from dynbench.suites.providers.base import Provider
from dynbench.suites.shapes import UsageError


class ProviderFileError(RuntimeError):
    """A provider file cannot be loaded. The message is one line: file, line and what is wrong."""


def load_file(path: Path) -> Provider:
    """Import a provider file and take its ``attention``.

    Raises ProviderFileError if importing it fails or if it has no callable ``attention``.
    """
    try:
        own = read_own_provider(path)
    except UsageError as error:
        raise ProviderFileError(str(error)) from None
    attention = getattr(_import(own), "attention", None)
    if not callable(attention):
        raise ProviderFileError(f"provider file {path.name}: attention is not a function")
    dense = own.computes == "dense"
    called = _without_extras(attention) if dense else attention
    return Provider(own.version, called, sparse=not dense)


def _without_extras(attention: Callable[..., Any]) -> Callable[..., Any]:
    """A dense attention that may return (o, log-sum-exp, ...), as many kernels do, reduced to o."""

    def first(*operands: Any) -> Any:
        out = attention(*operands)
        return out[0] if isinstance(out, tuple) and out else out

    return first


def _import(own: OwnProvider) -> ModuleType:
    """The file as a module of its own; files beside it can be imported by it."""
    name = f"dynbench_own_{own.name.replace('.', '_').replace('-', '_')}"
    spec = importlib.util.spec_from_file_location(name, own.path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses and torch.compile look modules up by name
    folder = str(own.path.resolve().parent)
    if folder not in sys.path:
        sys.path.append(folder)
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        frames = [
            f for f in traceback.extract_tb(error.__traceback__) if f.filename == str(own.path)
        ]
        line = f" line {frames[-1].lineno}" if frames else ""
        message = str(error).strip().splitlines()[0] if str(error).strip() else "no message"
        raise ProviderFileError(
            f"provider file {own.path.name}{line}: {type(error).__name__}: {message}"
        ) from error
    return module
