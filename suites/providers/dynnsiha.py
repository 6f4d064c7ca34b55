"""DynNSIHA's attention: word-guided windows, lists exact, hybrid or shared as the case says."""

from __future__ import annotations

from dynbench.suites.providers.base import Provider
from dynbench.suites.providers.core import sparse_core
from dynbench.suites.spec import Spec


def load(spec: Spec, variant: str = "") -> Provider:
    """The sparse core; the case's settings hold the word-guided configuration."""
    return sparse_core(spec)
