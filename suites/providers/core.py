"""What several providers share: the sparse core, and dense attention by torch."""

from __future__ import annotations

from torch import Tensor

from dynbench.suites.providers.base import Provider, package_version, torch_version
from dynbench.suites.spec import Spec
from dynnsiha.attention import NSAAux, NSAConfig, native_sparse_attention
from dynnsiha.forms.layer import causal_attention


def sparse_core(spec: Spec) -> Provider:
    """The sparse core, with whatever backend serves best."""

    def attention(
        q: Tensor, k: Tensor, v: Tensor, gates: Tensor, config: NSAConfig
    ) -> tuple[Tensor, NSAAux]:
        # The lists exist anyway; taking them from the timed call ties the check to that call.
        return native_sparse_attention(q, k, v, gates, config, return_aux=True)

    return Provider(library_version(), attention, sparse=True)


def dense_attention(remark: str = "") -> Provider:
    """The attention that the library's dense layers call; the version says so, with a remark."""
    parts = [library_version(), remark, f"dense attention by {torch_version()}"]
    version = ", ".join(part for part in parts if part)
    return Provider(version, causal_attention, heads_first=True)


def library_version() -> str:
    """Version of the library that is measured; it is released together with the benchmark."""
    return package_version("dynbench").replace("dynbench", "dynnsiha")
