"""Triton's kernels run on a machine without a GPU too, through Triton's interpreter.

Triton reads TRITON_INTERPRET where a kernel is decorated, its own library's kernels included, so
the variable must stand when Triton and the backend are imported for the first time;
``tests/dynnsiha/conftest.py`` does that. Here it stands while a test runs, and nowhere else.
"""

from __future__ import annotations

import importlib.util

import pytest
import torch

if importlib.util.find_spec("triton") is None:
    collect_ignore_glob = ["test_*.py"]


@pytest.fixture(autouse=True)
def _interpreter(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the backend asks, to know that CPU tensors are fine."""
    if not torch.cuda.is_available():
        monkeypatch.setenv("TRITON_INTERPRET", "1")
