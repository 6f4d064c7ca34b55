"""Triton's kernels run on a machine without a GPU too, through Triton's interpreter.

Triton reads TRITON_INTERPRET where a kernel is decorated, its own library's kernels included, so
the variable must stand when Triton and the backend are imported for the first time;
``tests/dynnsiha/conftest.py`` does that. Here it stands while a test runs, and nowhere else.
"""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path

import pytest
import torch
from filelock import FileLock

from . import warm

WORKER = "PYTEST_XDIST_WORKER"

if importlib.util.find_spec("triton") is None:
    collect_ignore_glob = ["test_*.py"]


@pytest.fixture(autouse=True)
def _interpreted(interpreter: None) -> None:
    """All tests here."""


@pytest.fixture(autouse=True, scope="session")
def _compiled(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> None:
    """On a GPU, and for more than a few tests: everything is compiled at once, before the first.

    Of several workers one does it, and the others wait.
    """
    here = [item for item in request.session.items if item.path.parent == Path(__file__).parent]
    if not torch.cuda.is_available() or len(here) <= 100:
        return
    done = tmp_path_factory.getbasetemp().parent / "compiled"
    with FileLock(f"{done}.lock"):
        if not (WORKER in os.environ and done.exists()):
            warm.finish(warm.start())
            done.touch()
