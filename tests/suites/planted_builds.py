"""A kernel of the library, launched with sizes that compile badly; ``dynbench gate --kernels``."""

from __future__ import annotations

from dataclasses import replace

from dynbench.harness.crosscompile import Launch, Target
from dynbench.suites.kernels import CALLS, launches

KERNEL = "compressed_forward"
TOO_FEW_WARPS = 2


def sound(target: Target) -> list[Launch]:
    """As the library launches it in the manifest's first call."""
    return [launch for launch in launches(target, CALLS[:1]) if launch.kernel.__name__ == KERNEL]


def spilling(target: Target) -> list[Launch]:
    """With so few warps that the tile does not fit into registers; on Hopper alone."""
    if target.name != "sm_90a":
        return sound(target)
    return [
        replace(launch, options={**launch.options, "num_warps": TOO_FEW_WARPS})
        for launch in sound(target)
    ]


def retiled(target: Target) -> list[Launch]:
    """With a tile of one query: its 16 heads are too few rows for wgmma and tcgen05."""
    return [
        replace(launch, constants={**launch.constants, (list(launch.signature).index("BQ"),): 1})
        for launch in sound(target)
    ]
