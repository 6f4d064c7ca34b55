"""Times of a call's kernels alone, by proton: the gaps between them do not count."""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from dynbench.harness.subject import Unavailable, Unsupported
from dynbench.harness.timing import Timed, flush_buffer

_FLUSH = "dynbench cache flush"
_KERNEL_TIME = "time (ns)"


class KernelTimer:
    """The sum of the durations of the kernels of a call, each call in a session of proton's.

    The cache is flushed just before, as for events; copies and fills by the driver are no kernels.
    Raises Unavailable where there is no proton, or where it sees no kernels.
    """

    def __init__(self) -> None:
        try:
            import triton.profiler
        except ImportError as error:
            raise Unavailable(f"timer proton needs triton.profiler: {error}; use event") from None
        self._proton: Any = triton.profiler
        self._folder = tempfile.TemporaryDirectory(prefix="dynbench-proton-")
        self._flush = flush_buffer()
        try:
            seen_ms = self._profile(lambda: self._flush[:1].add_(1)).ms
        except Exception as error:  # its library says so in many ways: RuntimeError, ValueError
            raise Unavailable(f"timer proton cannot start here: {error}; use event") from None
        if seen_ms <= 0:
            raise Unavailable("timer proton sees no kernels here (is CUPTI allowed?); use event")

    def time(self, run: Callable[[], Any]) -> Timed:
        """Call ``run`` once; raises Unsupported for a call without a kernel."""
        timed = self._profile(run)
        if timed.ms <= 0:
            raise Unsupported("timer proton saw no kernel in the call; use event or wall")
        return timed

    def _profile(self, run: Callable[[], Any]) -> Timed:
        import torch

        path = Path(self._folder.name) / "call"
        torch.cuda.synchronize()
        session = self._proton.start(str(path))
        if session is None:
            raise RuntimeError("TRITON_PROTON_DISABLE is set")
        try:
            with self._proton.scope(_FLUSH):
                self._flush.zero_()
            start_s = time.perf_counter()
            outputs = run()
            torch.cuda.synchronize()
        finally:
            self._proton.finalize(session)
        tree = json.loads(path.with_suffix(".hatchet").read_text(encoding="utf-8"))
        return Timed(kernel_ms(tree[0]), start_s, outputs)


def kernel_ms(node: Mapping[str, Any]) -> float:
    """Milliseconds of all kernels below a node of proton's tree, but for those of the flush."""
    if node["frame"]["name"] == _FLUSH:
        return 0.0
    own_ms = float(node["metrics"].get(_KERNEL_TIME, 0)) / 1e6
    return own_ms + sum(kernel_ms(child) for child in node["children"])
