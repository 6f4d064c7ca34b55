"""DynSIHA's attention: dense, by torch's choice of kernel. Suite ``layer`` has its synthesis."""

from __future__ import annotations

from dynbench.suites.providers.base import Provider
from dynbench.suites.providers.core import dense_attention
from dynbench.suites.spec import Spec


def load(spec: Spec, variant: str = "") -> Provider:
    """The attention that DynSIHA layers call; the version says that it is dense."""
    return dense_attention()
