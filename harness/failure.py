"""Turns what went wrong into a status and one line of reason."""

from __future__ import annotations

import re
import signal
import traceback
from collections.abc import Mapping
from typing import Any

from dynbench.harness.schema import Status
from dynbench.harness.subject import Unavailable, Unsupported

_REASON_LENGTH = 300
_DETAILS_LENGTH = 20_000
_OUT_OF_MEMORY = re.compile(
    r"can't allocate memory|std::bad_alloc|out of memory|cannot allocate memory"
    r"|CUBLAS_STATUS_ALLOC_FAILED|CUDNN_STATUS_ALLOC_FAILED|failed to map segment",
    re.IGNORECASE,
)
_HOST_ALLOCATION = re.compile(r"DefaultCPUAllocator: .* tried to allocate (\d+) bytes")
_NO_WORKER, _NOT_TAKEN = "no worker can be started: ", "no worker takes the case: "
# what faulthandler and the interpreter print around a message, and lines of a traceback
_NO_MESSAGE = re.compile(
    r"\s|$|<no Python frame>|(Current thread|Thread) 0x|Extension modules: |Python runtime state: "
    r"|Traceback \(most recent call last\):"
)
_DEVICE_FAULT = re.compile(
    r"CUDA error|CUDA driver error|Triton Error \[CUDA\]|cuBLAS|CUBLAS|cuDNN|device-side assert"
)


def failure_columns(error: BaseException) -> dict[str, Any]:
    """Status, reason and details of the row for an exception raised by a suite or a provider."""
    text = one_line(str(error))
    name = type(error).__name__
    if isinstance(error, Unavailable):
        return {"status": Status.UNAVAILABLE, "reason": text or name}
    if isinstance(error, Unsupported):
        return {"status": Status.UNSUPPORTED, "reason": text or name}
    if is_out_of_memory(error):
        reason = _memory_reason(text) or name
        return {"status": Status.OUT_OF_MEMORY, "reason": reason, "details": str(error) or None}
    if isinstance(error, SystemExit):
        name, text = "the provider called sys.exit", str(error.code)
    return {
        "status": Status.ERROR,
        "reason": one_line(f"{name}: {text}" if text else name),
        "details": "".join(traceback.format_exception(error))[-_DETAILS_LENGTH:],
    }


def is_out_of_memory(error: BaseException) -> bool:
    """Whether memory ran out, of the device or of the host."""
    if isinstance(error, MemoryError):
        return True
    import torch

    return isinstance(error, torch.OutOfMemoryError) or (
        isinstance(error, (RuntimeError, OSError)) and bool(_OUT_OF_MEMORY.search(str(error)))
    )


def is_device_fault(error: BaseException) -> bool:
    """Whether the error came from the GPU's driver or libraries: such a process is not reused."""
    return isinstance(error, RuntimeError) and bool(_DEVICE_FAULT.search(str(error)))


def death_columns(
    exit_code: int, stage: str, last_words: str, stopped_for: str = ""
) -> dict[str, Any]:
    """The row of a worker that died. ``exit_code`` is negative for a signal, as in subprocess.

    ``stopped_for`` says why the parent ended it, if the parent did.
    """
    details = last_words[-_DETAILS_LENGTH:] or None
    where = f" (in stage: {stage})" if stage else ""
    if stopped_for:
        reason = f"worker stopped: {stopped_for}{where}"
        return {"status": Status.ERROR, "reason": reason, "details": details}
    if exit_code == -signal.SIGKILL:
        reason = f"worker killed by SIGKILL, as the kernel does when memory runs out{where}"
        return {"status": Status.OUT_OF_MEMORY, "reason": reason, "details": details}
    if exit_code < 0:
        try:
            what = signal.Signals(-exit_code).name
        except ValueError:
            what = f"signal {-exit_code}"
    else:
        what = f"exit code {exit_code}"
    # a thread of a library cannot raise: it aborts, and only its last words tell why
    aborted_for_memory = exit_code == -signal.SIGABRT and _OUT_OF_MEMORY.search(last_words)
    status = Status.OUT_OF_MEMORY if aborted_for_memory else Status.ERROR
    return {"status": status, "reason": f"worker died: {what}{where}", "details": details}


def unstarted_columns(last_words: str) -> dict[str, Any]:
    """The row of a case for which no worker could be started."""
    lines = [line for line in last_words.splitlines() if not _NO_MESSAGE.match(line)]
    message = lines[-1] if lines else last_words.strip() or "it did not answer"
    return {
        "status": Status.ERROR,
        "reason": one_line(f"{_NO_WORKER}{message}"),
        "details": last_words[-_DETAILS_LENGTH:] or None,
    }


def untaken_columns(death: Mapping[str, Any]) -> dict[str, Any]:
    """The row of a case whose workers died before they took it, from that of such a death."""
    reason = one_line(f"{_NOT_TAKEN}{death['reason']}")
    return {**death, "status": Status.ERROR, "reason": reason}


def is_untaken(row: Mapping[str, Any]) -> bool:
    """Whether no worker took the row's case, so that the row says nothing of it."""
    reason = row["reason"] or ""
    return row["status"] == Status.ERROR and reason.startswith((_NO_WORKER, _NOT_TAKEN))


def timeout_columns(limit_s: float, stage: str, last_words: str) -> dict[str, Any]:
    """The row of a case that was stopped at its time limit."""
    where = f" (in stage: {stage})" if stage else ""
    return {
        "status": Status.TIMEOUT,
        "reason": f"stopped at its time limit of {limit_s:.3g} s{where}",
        "details": last_words[-_DETAILS_LENGTH:] or None,
    }


def _memory_reason(text: str) -> str:
    host = _HOST_ALLOCATION.search(text)
    if host is None:
        return text
    return f"tried to allocate {int(host[1]) / 2**30:.3g} GiB of host memory, beyond what is left"


def one_line(text: str) -> str:
    """The text without line breaks, cut at the length of a reason."""
    line = " ".join(text.split())
    return line if len(line) <= _REASON_LENGTH else line[: _REASON_LENGTH - 1] + "…"
