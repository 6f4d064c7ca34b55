"""Real text for the model library's tests, and Triton's kernels on machines without a GPU."""

from __future__ import annotations

import importlib
import importlib.util
import sysconfig
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch


def _interpret_triton_kernels() -> None:
    """Without a GPU: make the kernels ones that Triton's interpreter runs.

    Triton decides where a kernel is decorated, at the first import of itself and of the backend;
    that is here, before any test module is imported. Afterwards the environment is as it was, for
    other tests and their processes.
    """
    if torch.cuda.is_available() or importlib.util.find_spec("triton") is None:
        return
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TRITON_INTERPRET", "1")
        for package in ("attention", "forms", "synthesis"):
            importlib.import_module(f"dynnsiha.{package}.triton")


_interpret_triton_kernels()


@pytest.fixture(scope="session")
def library_source() -> str:
    """Source of a module of Python's standard library: real text that is on every machine."""
    return (Path(sysconfig.get_path("stdlib")) / "textwrap.py").read_text(encoding="utf-8")


@pytest.fixture
def interpreter(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """What the library asks, to know that CPU tensors are fine; and one thread for small tensors.

    Between the interpreter's steps torch's threads only wait for each other. On a GPU kernels run.
    """
    if torch.cuda.is_available():
        yield
        return
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
