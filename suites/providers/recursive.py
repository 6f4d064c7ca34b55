"""RecursiveDynSIHA's attention: dense. Suite ``layer`` puts it into one block with experts."""

from __future__ import annotations

from dynbench.suites.formwork import SIZE
from dynbench.suites.providers.base import Provider
from dynbench.suites.providers.core import dense_attention
from dynbench.suites.spec import Spec


def load(spec: Spec, variant: str = "") -> Provider:
    """The attention inside; the version tells the size of the repository."""
    return dense_attention(SIZE)
