"""A call recorded into a CUDA graph: launched as one, without the host's work between its kernels.

What a replay writes lies where the recorded call put it, so what an earlier replay left there may
pass for the work of a later one that skips some. ``Replay.spoil`` fills the graph's own memory with
NaN; its outputs are overwritten like any that are held (see poison.py).
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from dynbench.harness.memory import paused_collection
from dynbench.harness.subject import Unsupported

_NAN_BYTE = 0xFF


class CaptureFailed(Unsupported):
    """The call does not fit into a graph; the process is not to be reused.

    A capture that broke off may leave torch's allocator and random generators in it.
    """


@contextmanager
def capture_stream() -> Iterator[None]:
    """A stream of its own for all that a case runs, since the default one cannot be captured.

    It has to be so from the first forward pass on: autograd runs a backward pass on the stream of
    the forward pass that it belongs to.
    """
    import torch

    torch.cuda.synchronize()  # the inputs were made on the default stream
    with torch.cuda.stream(_stream()):
        yield
        torch.cuda.synchronize()


@functools.cache
def _stream() -> Any:
    """One for all cases: cuBLAS holds a workspace for every stream that it has seen."""
    import torch

    return torch.cuda.Stream()


class Replay:
    """Calls a captured ``run`` again, and returns its outputs: the same tensors each time.

    ``run`` must have been called before, on the current stream, which is not the default one: what
    it compiles, tunes or loads on a first call cannot be captured. Raises CaptureFailed.
    """

    def __init__(self, run: Callable[[], Any]) -> None:
        import torch

        self._graph = torch.cuda.CUDAGraph()
        problem: Exception | None = None
        try:
            with (
                paused_collection(),  # releasing another graph would break this capture off
                torch.cuda.graph(self._graph, stream=torch.cuda.current_stream()),
            ):
                try:
                    self._outputs = run()
                except Exception as error:  # the end of the capture may raise another
                    problem = error
                    raise
        except Exception as error:
            cause = problem or error
            if isinstance(cause, torch.OutOfMemoryError):
                raise cause from None
            lines = str(cause).splitlines()
            what = lines[0] if lines else type(cause).__name__
            raise CaptureFailed(
                f"cannot be captured into a CUDA graph: {what}; use --timer event"
            ) from None

    def __call__(self) -> Any:
        """Launch the graph on the current stream."""
        self._graph.replay()
        return self._outputs

    def spoil(self) -> None:
        """Fill the memory of intermediate results with NaN: a replay has to write it again."""
        import torch

        pool = self._graph.pool()
        for segment in torch.cuda.memory_snapshot():
            if tuple(segment["segment_pool_id"]) != tuple(pool):
                continue
            address = segment["address"]
            for block in segment["blocks"]:
                if block["state"] == "inactive":
                    device_bytes(address, block["size"]).fill_(_NAN_BYTE)
                address += block["size"]


class _Memory:
    """Memory of the device, in the form in which torch takes it from other libraries."""

    def __init__(self, address: int, size_bytes: int) -> None:
        self.__cuda_array_interface__ = {
            "shape": (size_bytes,),
            "typestr": "|u1",
            "data": (address, False),
            "version": 3,
        }


def device_bytes(address: int, size_bytes: int) -> Any:
    """The memory at ``address`` of the current device as a tensor of bytes; it is not copied."""
    import torch

    return torch.as_tensor(_Memory(address, size_bytes), device="cuda")
