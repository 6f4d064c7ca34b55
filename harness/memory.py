"""Peak memory of one call, above a baseline taken before the case's own work began.

On a GPU the framework's allocator counts. On a CPU the kernel's high-water mark of the resident
set (VmHWM) does, reset before the call; freed memory that the C library keeps is handed back first,
because reusing it would not raise the mark. Pages of files (the code of libraries, read in as it is
first run) are no memory of the case and are left out.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import os
import re
import resource
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

T = TypeVar("T")

_STATUS = Path("/proc/self/status")
_CLEAR_REFS = Path("/proc/self/clear_refs")
_RESET_PEAK = "5"  # see proc_pid_clear_refs(5)


@dataclass(frozen=True)
class Peak:
    """Peak of one call in bytes, above the baseline; None where the system does not tell."""

    allocated_bytes: int | None
    reserved_bytes: int | None = None


class MemoryMeter:
    """Measures on ``cpu`` or ``cuda``; the baseline is what is held when the meter is made."""

    def __init__(self, device: str) -> None:
        self._device = device
        self._cuda = device == "cuda"
        self._baseline_bytes = self._held_bytes()

    def peak_of(self, call: Callable[[], T], *, keep_free_memory: bool = False) -> tuple[T, Peak]:
        """Call once; return what it returned and its peak above the baseline.

        ``keep_free_memory`` skips handing freed memory back first, for a call that must run on
        memory just poisoned; on a CPU the peak is then too high by what was not used again.
        """
        if not keep_free_memory:
            release_memory(self._device)
        if self._cuda:
            return self._cuda_peak(call)
        resettable = _reset_resident_peak()
        result = call()
        peak = _status_bytes("VmHWM") if resettable else None
        file_pages = _status_bytes("RssFile")  # they only grow, so this is what they were at most
        if peak is None or file_pages is None or self._baseline_bytes is None:
            return result, Peak(None)
        return result, Peak(max(peak - file_pages - self._baseline_bytes, 0))

    def leave_out(self, call: Callable[[], T]) -> T:
        """Call once, and leave what it goes on holding (a check's reference) out of later peaks."""
        before = self._held_bytes()
        result = call()
        after = self._held_bytes()
        if self._baseline_bytes is not None and before is not None and after is not None:
            self._baseline_bytes += max(after - before, 0)
        return result

    def _cuda_peak(self, call: Callable[[], T]) -> tuple[T, Peak]:
        import torch

        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        result = call()
        torch.cuda.synchronize()
        allocated = torch.cuda.max_memory_allocated() - (self._baseline_bytes or 0)
        return result, Peak(max(allocated, 0), torch.cuda.max_memory_reserved())

    def _held_bytes(self) -> int | None:
        release_memory(self._device)
        if self._cuda:
            import torch

            torch.cuda.synchronize()
            return torch.cuda.memory_allocated()
        resident, file_pages = _status_bytes("VmRSS"), _status_bytes("RssFile")
        return None if resident is None or file_pages is None else resident - file_pages


def keep_numpy_off_huge_pages() -> None:
    """To be called before numpy is imported, in a process whose peaks are measured.

    numpy asks the kernel for huge pages. Where it has freed memory that had them, a later tensor of
    any size counts as the whole 2 MiB that it touches, and its peak is too high by MiB.
    """
    os.environ.setdefault("NUMPY_MADVISE_HUGEPAGE", "0")


def release_memory(device: str) -> None:
    """Collect garbage, hand free memory back to the kernel and, on ``cuda``, to the device."""
    gc.collect()
    if device == "cuda":
        import torch

        torch.cuda.synchronize()
        torch.cuda.empty_cache()
    with contextlib.suppress(OSError, AttributeError):  # a C library other than glibc
        ctypes.CDLL(None).malloc_trim(0)


@contextlib.contextmanager
def paused_collection() -> Iterator[None]:
    """Collect garbage, then have Python's collector rest meanwhile."""
    was_enabled = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


def limit_address_space(room_bytes: int) -> int:
    """Let this process take ``room_bytes`` more than it holds now; return the limit that was set.

    An allocation beyond it fails with an ordinary error, before the kernel has to kill anything.
    Address space that is mapped but not resident (libraries, thread stacks) takes no memory and
    does not count against the room.
    """
    mapped = _status_bytes("VmSize") or 0
    limit = mapped + room_bytes
    _, hard = resource.getrlimit(resource.RLIMIT_AS)
    if hard != resource.RLIM_INFINITY:
        limit = min(limit, hard)
    resource.setrlimit(resource.RLIMIT_AS, (limit, hard))
    return limit


def _reset_resident_peak() -> bool:
    try:
        _CLEAR_REFS.write_text(_RESET_PEAK, encoding="ascii")
    except OSError:  # not Linux, or a sandbox that hides it
        return False
    return True


def _status_bytes(key: str) -> int | None:
    try:
        text = _STATUS.read_text(encoding="ascii", errors="replace")
    except OSError:
        return None
    match = re.search(rf"^{key}:\s+(\d+) kB$", text, re.MULTILINE)
    return int(match[1]) * 1024 if match else None
