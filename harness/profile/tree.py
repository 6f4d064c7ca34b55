"""A call under proton: its kernels in the tree of the Python frames that launched them."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from dynbench.harness.memory import paused_collection
from dynbench.harness.profile.kernels import Kernel, per_call
from dynbench.harness.subject import Unavailable
from dynbench.harness.timing import flush_buffer

_TIME, _COUNT = "time (ns)", "count"


def record_tree(run: Callable[[], Any], path: Path) -> list[Kernel]:
    """Write proton's tree of one call to ``path`` (``.hatchet``) and return its kernels.

    ``run`` must have been called before; the cache is flushed first. Copies and fills by the
    driver are no kernels. Raises Unavailable where there is no proton, or where it sees no kernel.
    """
    try:
        import triton.profiler as proton
    except ImportError as error:
        raise Unavailable(f"triton.profiler cannot be imported: {error}") from None
    import torch

    flush_buffer().zero_()
    torch.cuda.synchronize()
    try:
        session = proton.start(str(path.with_suffix("")), context="python")
    except Exception as error:  # its library says so in many ways: RuntimeError, ValueError
        raise Unavailable(f"proton cannot start here: {error}") from None
    if session is None:
        raise Unavailable("proton is off: TRITON_PROTON_DISABLE is set")
    try:
        with paused_collection():
            outputs = run()
            torch.cuda.synchronize()
    finally:
        proton.finalize(session)
    del outputs
    found = tree_kernels(json.loads(path.read_text(encoding="utf-8"))[0])
    if not found:
        raise Unavailable("proton saw no kernel of the call (is CUPTI allowed here?)")
    return found


def tree_kernels(root: Mapping[str, Any]) -> list[Kernel]:
    """Kernels of the tree of one call, wherever they were launched; the longest first."""
    return per_call(_launches(root), 1)


def _launches(node: Mapping[str, Any]) -> Iterator[Kernel]:
    metrics = node["metrics"]
    if metrics.get(_TIME):
        name, count = node["frame"]["name"], float(metrics.get(_COUNT, 1))
        yield Kernel(name, "kernel", count, float(metrics[_TIME]) / 1e6)
    for child in node["children"]:
        yield from _launches(child)
