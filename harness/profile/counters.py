"""Hardware counters of a call's kernels, by Nsight Compute's command line (``ncu``).

ncu runs a process of its own and counts between ``cudaProfilerStart`` and ``cudaProfilerStop``,
which that process calls around exactly one call. Caches are left as the kernels leave them, so that
what one kernel finds of another counts as it is; clocks are left alone too.
"""

from __future__ import annotations

import csv
import shutil
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from dynbench.harness.memory import paused_collection
from dynbench.harness.profile.kernels import Kernel, per_call
from dynbench.harness.subject import Unavailable
from dynbench.harness.timing import flush_buffer

_READ, _WRITE = "dram__bytes_read.sum", "dram__bytes_write.sum"
_TIME = "gpu__time_duration.sum"
_REGISTERS = "launch__registers_per_thread"
_SHARED = ("launch__shared_mem_per_block_static", "launch__shared_mem_per_block_dynamic")
METRICS = (_READ, _WRITE, _TIME, _REGISTERS, *_SHARED)

_BASE = {  # units that ncu's versions write, in bytes and nanoseconds
    "": 1.0,
    "register/thread": 1.0,
    "byte": 1.0,
    "byte/block": 1.0,
    "Kbyte/block": 1e3,
    "Kbyte": 1e3,
    "Mbyte": 1e6,
    "Gbyte": 1e9,
    "ns": 1.0,
    "nsecond": 1.0,
    "us": 1e3,
    "usecond": 1e3,
    "ms": 1e6,
    "msecond": 1e6,
    "s": 1e9,
    "second": 1e9,
}
_INSTALLED = ("/usr/local/cuda/bin/ncu", "/opt/nvidia/nsight-compute/*/ncu")
_REASON_LINES = ("==ERROR==", "==WARNING==")
_FORBIDDEN = (
    "the driver keeps GPU counters for administrators (ERR_NVGPUCTRPERM): run as root (a container "
    "needs the capability SYS_ADMIN), or load the driver with NVreg_RestrictProfilingToAdminUsers=0"
)


def find_ncu() -> str:
    """The path of ncu. Raises Unavailable where it is not installed."""
    found = shutil.which("ncu") or next(map(str, _elsewhere()), None)
    if found is None:
        raise Unavailable(
            "ncu is not installed (not on PATH): it is Nsight Compute's command line, a part of "
            "the CUDA toolkit"
        )
    return found


def _elsewhere() -> Iterable[Path]:
    for pattern in _INSTALLED:
        yield from sorted(Path("/").glob(pattern.removeprefix("/")), reverse=True)


def ncu_command(ncu: str, log: Path, command: Sequence[str]) -> list[str]:
    """The command line that counts in ``command``; numbers and complaints go to ``log``."""
    options = ["--csv", "--page", "raw", "--print-units", "base", "--log-file", str(log)]
    options += ["--profile-from-start", "off", "--target-processes", "application-only"]
    options += ["--cache-control", "none", "--clock-control", "none"]
    return [ncu, *options, "--metrics", ",".join(METRICS), *command]


def call_in_range(run: Callable[[], Any]) -> None:
    """One call between the marks that ncu counts between; ``run`` must have been called before."""
    import torch

    flush_buffer().zero_()
    torch.cuda.synchronize()
    with paused_collection():
        torch.cuda.profiler.start()
        outputs = run()
        torch.cuda.synchronize()
        torch.cuda.profiler.stop()
    del outputs


def counted_kernels(log: str) -> list[Kernel]:
    """The kernels in what ncu wrote: its table is one row of names, one of units, then launches.

    Raises Unavailable, with ncu's own complaint, where it counted nothing.
    """
    lines = log.splitlines()
    begin = next((i for i, line in enumerate(lines) if line.startswith('"ID"')), len(lines))
    table = list(csv.DictReader(line for line in lines[begin:] if line.startswith('"')))
    if len(table) < 2:
        raise Unavailable(complaint(log))
    units, *launches = table
    found = per_call((_kernel(launch, units) for launch in launches), 1)
    if all(kernel.dram_read_bytes is None for kernel in found):
        raise Unavailable(f"ncu counted no {_READ} here: {complaint(log)}")
    return found


def complaint(log: str) -> str:
    """What ncu says that kept it from counting."""
    if "ERR_NVGPUCTRPERM" in log:
        return _FORBIDDEN
    told = [line for line in log.splitlines() if line.startswith(_REASON_LINES)]
    return told[0].split("==", 2)[2].strip() if told else "it saw no kernel of the call"


def _kernel(launch: dict[str, str], units: dict[str, str]) -> Kernel:
    values = {name: _number(launch.get(name), units.get(name, "")) for name in METRICS}
    registers, shared = values[_REGISTERS], [values[name] for name in _SHARED]
    known = [amount for amount in shared if amount is not None]
    return Kernel(
        name=launch["Kernel Name"],
        kind="kernel",
        calls=1,
        time_ms=(values[_TIME] or 0.0) / 1e6,
        registers=None if registers is None else round(registers),
        shared_bytes=round(sum(known)) if known else None,
        dram_read_bytes=values[_READ],
        dram_write_bytes=values[_WRITE],
    )


def _number(text: str | None, unit: str) -> float | None:
    """A cell in bytes or nanoseconds; None for ``n/a``. Raises Unavailable for a unit not known."""
    try:
        value = float((text or "").replace(",", ""))
    except ValueError:
        return None
    if unit not in _BASE:
        raise Unavailable(f"ncu counts in the unit {unit!r}, which is not known here")
    return value * _BASE[unit]
