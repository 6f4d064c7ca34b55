"""A call under torch's profiler: its trace, and what the device did in it.

On a GPU the kernels are read from the trace, since it alone has their registers and shared memory.
On a CPU there are no kernels: the operators are listed, each with its time less that of the
operators that it calls.
"""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from dynbench.harness.memory import paused_collection
from dynbench.harness.profile.kernels import Kernel, per_call
from dynbench.harness.subject import Unavailable
from dynbench.harness.timing import flush_buffer

CALL = "dynbench call"
"""The trace's name for one call of what is profiled."""

_KINDS = {"kernel": "kernel", "gpu_memcpy": "copy", "gpu_memset": "fill"}
_LAUNCHES = ("cuda_runtime", "cuda_driver")


def record_trace(run: Callable[[], Any], device: str, calls: int, path: Path) -> list[Kernel]:
    """Write the Chrome trace of ``calls`` calls to ``path`` (``.json.gz``); return their kernels.

    ``run`` must have been called before. On a GPU the cache is flushed before each call, as it is
    for samples. Raises Unavailable where the profiler sees nothing.
    """
    import torch
    from torch.profiler import ProfilerActivity, profile, record_function

    cuda = device == "cuda"
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if cuda else [])]
    flush = flush_buffer() if cuda else None
    for repeats in (1, calls):  # the first session starts the libraries, which takes its time
        with paused_collection(), profile(activities=activities) as session:
            for _ in range(repeats):
                if flush is not None:
                    flush.zero_()
                    torch.cuda.synchronize()
                with record_function(CALL):
                    outputs = run()
                    if cuda:
                        torch.cuda.synchronize()
                del outputs  # after the call, as in samples
    session.export_chrome_trace(str(path))
    if cuda:
        found = device_kernels(_events(path), calls)
    else:
        found = operators(session.key_averages(), calls)
    if not found:
        raise Unavailable("torch's profiler saw no kernel of the call (is CUPTI allowed here?)")
    return found


def operators(averages: Sequence[Any], calls: int) -> list[Kernel]:
    """Operators of one call by their own time, from the profiler's averages over ``calls``."""
    found = [
        Kernel(average.key, "operator", average.count, average.self_cpu_time_total / 1e3)
        for average in averages
        if average.key != CALL
    ]
    return per_call(found, calls)


def device_kernels(events: Sequence[Mapping[str, Any]], calls: int) -> list[Kernel]:
    """Kernels, copies and fills that were launched inside the calls of a Chrome trace.

    An event on the device belongs to the call during which the host launched it; it names that
    launch by its ``correlation``. Without one, its own beginning counts.
    """
    windows = [
        (event["ts"], event["ts"] + event["dur"])
        for event in events
        if event.get("cat") == "user_annotation" and event.get("name") == CALL
    ]
    launched_at = {
        event["args"]["correlation"]: event["ts"]
        for event in events
        if event.get("cat") in _LAUNCHES and "correlation" in event.get("args", {})
    }
    found = []
    for event in events:
        kind, details = _KINDS.get(str(event.get("cat"))), event.get("args", {})
        if kind is None:
            continue
        at = launched_at.get(details.get("correlation"), event["ts"])
        if any(begin <= at <= end for begin, end in windows):
            found.append(
                Kernel(
                    name=event["name"],
                    kind=kind,
                    calls=1,
                    time_ms=event["dur"] / 1e3,
                    registers=details.get("registers per thread"),
                    shared_bytes=details.get("shared memory"),
                )
            )
    return per_call(found, calls)


def _events(path: Path) -> list[dict[str, Any]]:
    with gzip.open(path, "rt", encoding="utf-8") as trace:
        events: list[dict[str, Any]] = json.load(trace)["traceEvents"]
    return events
