"""torch's scaled_dot_product_attention, by its own choice of kernel or by one named kernel."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from dynbench.suites.providers.base import Provider, probe, torch_version
from dynbench.suites.spec import Spec

KERNELS = {
    "flash": SDPBackend.FLASH_ATTENTION,
    "cudnn": SDPBackend.CUDNN_ATTENTION,
    "efficient": SDPBackend.EFFICIENT_ATTENTION,
    "math": SDPBackend.MATH,
}


def load(spec: Spec, variant: str = "") -> Provider:
    """torch's attention; ``variant`` is a key of KERNELS, or empty for torch's own choice.

    Raises Unsupported, with torch's reason, if that kernel does not serve the dtype and heads.
    """
    grouped = spec.group > 1

    def kernel() -> AbstractContextManager[None]:
        return sdpa_kernel(KERNELS[variant]) if variant else nullcontext()

    def attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        qh, kh, vh = (x.transpose(1, 2) for x in (q, k, v))
        with kernel():
            o = F.scaled_dot_product_attention(qh, kh, vh, is_causal=True, enable_gqa=grouped)
        return o.transpose(1, 2)

    if variant:
        probe(attention, spec, f"sdpa:{variant}")
    return Provider(torch_version(), attention, heads_first=True)
