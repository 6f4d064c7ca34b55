"""DynSIHA's attention: dense, by torch's choice of kernel. Suite ``layer`` has its synthesis."""

from __future__ import annotations

from dynbench.suites.providers.base import Provider, torch_version
from dynbench.suites.providers.core import library_version
from dynbench.suites.spec import Spec
from dynnsiha.forms.layer import causal_attention


def load(spec: Spec, variant: str = "") -> Provider:
    """The attention that DynSIHA layers call; the version says that it is dense."""
    version = f"{library_version()}, dense attention by {torch_version()}"
    return Provider(version, causal_attention, heads_first=True)
