"""Triton's kernels run on a machine without a GPU too, through Triton's interpreter.

Triton reads TRITON_INTERPRET where a kernel is decorated, its own library's kernels included, so
the variable must stand when Triton and the backend are imported for the first time;
``tests/dynnsiha/conftest.py`` does that. Here it stands while a test runs, and nowhere else.
"""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from filelock import FileLock

from . import warm

WORKER = "PYTEST_XDIST_WORKER"

if importlib.util.find_spec("triton") is None:
    collect_ignore_glob = ["test_*.py"]


@pytest.fixture(autouse=True)
def _interpreter(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """What the backend asks, to know that CPU tensors are fine; and one thread for small tensors.

    Between the interpreter's steps torch's threads only wait for each other.
    """
    if torch.cuda.is_available():
        yield
        return
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


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
