"""What the tests of the harness share: cases of planted providers."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from dynbench.harness.case import Case
from dynbench.harness.timing import TIMERS


def _planted_case(
    provider: str, size: int = 1000, device: str = "cpu", timer: str | None = None
) -> Case:
    timer = timer or TIMERS[device][0]
    return Case("planted", provider, "forward", device, "float32", timer, {"seq_len": size})


@pytest.fixture
def planted(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Case]:
    """Makes cases of the providers in planted.py, which workers started meanwhile can import."""
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parent))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    return _planted_case
