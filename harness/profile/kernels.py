"""What a profiler saw of a call: its kernels, or on a CPU its operators."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

TOOLS = ("torch", "proton", "ncu")
"""The profilers, in the order in which they run."""


@dataclass(frozen=True)
class Kernel:
    """Launches of one kernel: times and bytes are sums over ``calls`` of them.

    ``kind`` is ``kernel``, ``copy``, ``fill`` or ``operator``. What a tool does not tell is None.
    """

    name: str
    kind: str
    calls: float
    time_ms: float
    registers: int | None = None
    shared_bytes: int | None = None
    dram_read_bytes: float | None = None
    dram_write_bytes: float | None = None


def per_call(launches: Iterable[Kernel], calls: int) -> list[Kernel]:
    """Launches of equal name and kind as one kernel, in one of ``calls`` calls; the longest first.

    Registers and shared memory are the largest of the launches.
    """
    groups: dict[tuple[str, str], list[Kernel]] = {}
    for launch in launches:
        groups.setdefault((launch.kind, launch.name), []).append(launch)
    found = [
        Kernel(
            name=name,
            kind=kind,
            calls=sum(launch.calls for launch in group) / calls,
            time_ms=sum(launch.time_ms for launch in group) / calls,
            registers=_largest(launch.registers for launch in group),
            shared_bytes=_largest(launch.shared_bytes for launch in group),
            dram_read_bytes=_per_call([launch.dram_read_bytes for launch in group], calls),
            dram_write_bytes=_per_call([launch.dram_write_bytes for launch in group], calls),
        )
        for (kind, name), group in groups.items()
    ]
    return sorted(found, key=lambda kernel: -kernel.time_ms)


def dram_bytes(kernels: Sequence[Kernel]) -> float | None:
    """Bytes that all the kernels moved from and to DRAM; None where one of them is not known."""
    amounts = [k.dram_read_bytes for k in kernels] + [k.dram_write_bytes for k in kernels]
    return _per_call(amounts, 1) if amounts else None


def _per_call(amounts: Sequence[float | None], calls: int) -> float | None:
    """The sum over one call; None where a launch lacks the amount: the rest would mislead."""
    known = [amount for amount in amounts if amount is not None]
    return sum(known) / calls if len(known) == len(amounts) else None


def _largest(values: Iterable[int | None]) -> int | None:
    return max((value for value in values if value is not None), default=None)
