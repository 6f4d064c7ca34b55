"""The sliding window of native sparse attention, without its lists."""

from __future__ import annotations

from dynbench.suites.providers.base import Provider
from dynbench.suites.providers.core import sparse_core
from dynbench.suites.spec import Spec


def load(spec: Spec, variant: str = "") -> Provider:
    """The sparse core; the case's settings leave it the one branch."""
    return sparse_core(spec)
