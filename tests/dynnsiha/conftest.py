"""Real text for the model library's tests."""

from __future__ import annotations

import sysconfig
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def library_source() -> str:
    """Source of a module of Python's standard library: real text that is on every machine."""
    return (Path(sysconfig.get_path("stdlib")) / "textwrap.py").read_text(encoding="utf-8")
