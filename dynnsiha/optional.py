"""Packages that parts of the library need and that it can be installed without."""

from __future__ import annotations

from types import ModuleType


def safetensors() -> ModuleType:
    """The package, with ``safetensors.torch``.

    Raises:
        ModuleNotFoundError: it is not installed; says how to get it.
    """
    try:
        import safetensors
        import safetensors.torch
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            "saving and loading needs safetensors: pip install 'dynbench[quality]'",
            name="safetensors",
        ) from error
    return safetensors
