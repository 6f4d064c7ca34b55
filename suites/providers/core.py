"""What nsa and dynnsiha share: the sparse core with a case's configuration."""

from __future__ import annotations

from torch import Tensor

from dynbench.suites.providers.base import Provider, package_version
from dynbench.suites.spec import Spec
from dynnsiha.attention import NSAAux, NSAConfig, native_sparse_attention


def sparse_core(spec: Spec) -> Provider:
    """The sparse core, with whatever backend serves best."""

    def attention(
        q: Tensor, k: Tensor, v: Tensor, gates: Tensor, config: NSAConfig
    ) -> tuple[Tensor, NSAAux]:
        # The lists exist anyway; taking them from the timed call ties the check to that call.
        return native_sparse_attention(q, k, v, gates, config, return_aux=True)

    return Provider(library_version(), attention, sparse=True)


def library_version() -> str:
    """Version of the library that is measured; it is released together with the benchmark."""
    return package_version("dynbench").replace("dynbench", "dynnsiha")
