"""DimensionDynSIHA's attention: dense. Suite ``layer`` puts it between sparse proto layers."""

from __future__ import annotations

from dynbench.suites.providers.base import Provider
from dynbench.suites.providers.core import dense_attention
from dynbench.suites.spec import Spec


def load(spec: Spec, variant: str = "") -> Provider:
    """The attention inside; the version says that it is dense."""
    return dense_attention("deprecated form")
