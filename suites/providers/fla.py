"""Flash-linear-attention's native sparse attention: ``parallel_nsa`` of fla-core.

It computes the compressed and the selected branch over 64/64 windows with exact lists, in the same
sense as our core does: only windows that have ended are seen, block 0 and the two newest blocks are
forced, and the rest are the best by the sum of the compressed probabilities over the G heads. Its
sliding branch calls FlashAttention 2 and is left out here.

What bears on its numbers (0.6.0): its kernels are tuned at the first length that a process meets
and keep that choice for every other length. Its backward pass collects queries in the order of
their arrival, so dk and dv may differ in their last bits from call to call. For heads wider than
128 its dq and dk are wrong (the compressed branch takes v in parts of 128 and subtracts the mean
over all of it in each), and those rows are ``incorrect``.
"""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from types import ModuleType

import torch
from torch import Tensor

from dynbench.harness.subject import Unavailable, Unsupported
from dynbench.suites.providers.base import Provider, package_version, require_cuda, require_half
from dynbench.suites.spec import Spec
from dynnsiha.attention.config import NSAConfig

BRANCHES = ("compressed", "selected")
INIT_BLOCKS, LOCAL_BLOCKS = 1, 2
LEAST_GROUP, LEAST_DIM = 16, 16


@dataclass(frozen=True)
class Fla:
    """The modules of fla-core that are called, and the widest head that they serve here."""

    nsa: ModuleType
    compression: ModuleType
    pooling: ModuleType
    most_dim: int = 128

    def attention(
        self, q: Tensor, k: Tensor, v: Tensor, gates: Tensor, config: NSAConfig
    ) -> Tensor:
        """o [B, T, H, D] of the compressed and the selected branch."""
        out: Tensor = self.nsa.parallel_nsa(
            q,
            k,
            v,
            g_cmp=gates[..., 0],
            g_slc=gates[..., 1],
            block_counts=config.top_n,
            block_size=config.block_size,
            window_size=0,
        )
        return out

    def lists(self, q: Tensor, k: Tensor, v: Tensor, gates: Tensor, config: NSAConfig) -> Tensor:
        """The lists that ``attention`` chooses and does not return: int32 [B, T, K, top_n].

        The same calls of the same kernels on the same operands, which add up in a fixed order.
        """
        size, scale, length = config.block_size, q.shape[-1] ** -0.5, k.shape[1]
        k_cmp, v_cmp = (self.pooling.mean_pooling(x, size) for x in (k, v))
        _, lse = self.compression.parallel_nsa_compression(
            q, k_cmp, v_cmp, TK=length, block_size=size, scale=scale
        )
        found: Tensor = self.nsa.parallel_nsa_topk(
            q=q,
            k=k_cmp,
            TK=length,
            lse=lse,
            block_counts=config.top_n,
            block_size=size,
            scale=scale,
        )
        return found


def load(spec: Spec, variant: str = "") -> Provider:
    """fla-core's ``parallel_nsa``.

    Raises Unavailable without a GPU or the package, Unsupported for what it does not compute.
    """
    require_cuda(spec, "fla", instead="dynnsiha")
    fla = import_fla(spec.device)
    require_half(spec, "fla")
    problem = unserved(spec, fla.most_dim)
    if problem:
        raise Unsupported(f"fla: {problem}")
    version = f"{package_version('fla-core')} parallel_nsa, sliding branch left out"
    return Provider(version, fla.attention, sparse=True, lists=fla.lists)


def import_fla(device: torch.device) -> Fla:
    """The modules of fla-core. Raises Unavailable where they are missing or cannot be imported."""
    try:
        nsa, compression, pooling, utils = (
            importlib.import_module(f"fla.{name}")
            for name in ("ops.nsa.parallel", "ops.nsa.compression", "ops.utils.pooling", "utils")
        )
    except (ImportError, AttributeError, OSError) as error:
        reason = str(error).splitlines()[0] if str(error) else "no import"
        raise Unavailable(f"no fla-core ({reason}): pip install 'dynbench[peers]'") from None
    # Its kernels hold a whole row of a head in shared memory: what Hopper has takes 256 elements.
    roomy = device.type == "cuda" and utils.check_shared_mem("hopper", device.index or 0)
    return Fla(nsa, compression, pooling, 256 if roomy else 128)


def unserved(spec: Spec, most_dim: int) -> str:
    """Why ``parallel_nsa`` does not compute what the case asks for; empty if it does."""
    config, group, width = spec.config, spec.group, spec.head_dim
    assert config is not None
    if config.branches != BRANCHES:
        return (
            f"computes the branches {' and '.join(BRANCHES)} alone: "
            f"use --branches {','.join(BRANCHES)}, or leave it out"
        )
    if group < LEAST_GROUP or group & (group - 1):
        return (
            f"{group} query heads share a K/V head, but it takes a power of two from "
            f"{LEAST_GROUP} on: try --shape paper"
        )
    if not LEAST_DIM <= width <= most_dim:
        return f"head_dim={width}: it takes {LEAST_DIM} to {most_dim} on this device"
    top_n = config.top_n
    if top_n & (top_n - 1) or 2 * top_n > config.block_size:
        return (
            f"top_n={top_n}: it takes powers of two up to {config.block_size // 2}: try --top-n 16"
        )
    windows = (config.compress_block, config.compress_stride)
    forced = (config.init_blocks, config.local_blocks)
    exact = config.query_tile == 1 and config.top_p is None
    if not exact or windows != 2 * (config.block_size,) or forced != (INIT_BLOCKS, LOCAL_BLOCKS):
        return "computes exact lists, windows as long as a block, one initial and two local blocks"
    return ""
