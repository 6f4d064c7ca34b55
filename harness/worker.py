"""The child process that measures: ``python -m dynbench.harness.worker IN OUT DEVICE``.

It reads requests as JSON lines from file descriptor IN and answers on OUT; both are pipes of their
own, so nothing a provider prints can get between them. One worker measures many cases, so that
torch is imported once. It is replaced when it cannot be trusted any more (``healthy: false``).

Messages out: ``{"kind": "ready", "machine": …}`` once, ``{"kind": "stage", "stage": …}`` as a case
goes on (the first of them says that the request arrived), and ``{"kind": "row", "columns": …,
"healthy": …, "ceilings": …}`` at its end.
"""

from __future__ import annotations

import contextlib
import ctypes
import faulthandler
import gc
import importlib
import json
import os
import resource
import signal
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TextIO

from dynbench.harness.case import Case
from dynbench.harness.ceilings import Ceilings, measure_ceilings
from dynbench.harness.failure import failure_columns, is_device_fault, is_out_of_memory
from dynbench.harness.graph import CaptureFailed
from dynbench.harness.machine import (
    GIB,
    available_memory_bytes,
    machine_facts,
    usable_cpus,
)
from dynbench.harness.measure import Limits, measure, work_columns
from dynbench.harness.memory import (
    keep_numpy_off_huge_pages,
    limit_address_space,
    release_memory,
)
from dynbench.harness.schema import Status, complete_row
from dynbench.harness.subject import Subject, Unavailable

_HOST_RESERVE_BYTES = 2 * GIB
_PR_SET_PDEATHSIG = 1  # see prctl(2)


@dataclass
class Worker:
    """State kept from case to case. ``send`` writes one message to the parent."""

    device: str
    send: Callable[[dict[str, Any]], None]
    machine: dict[str, Any]
    threads: int
    ceilings: dict[str, Ceilings] = field(default_factory=dict)

    def serve(self, requests: TextIO) -> None:
        """Answer requests until there are no more, or until this process is not to be reused."""
        self.send({"kind": "ready", "machine": self.machine})
        for line in requests:
            if not self._answer(json.loads(line)):
                return

    def _answer(self, request: dict[str, Any]) -> bool:
        for dtype, (copy_gb_s, matmul_tflops) in request["ceilings"].items():
            self.ceilings.setdefault(dtype, Ceilings(copy_gb_s, matmul_tflops))
        columns, healthy = self._measure(Case.from_json(request["case"]), request)
        ceilings = {d: [c.copy_gb_s, c.matmul_tflops] for d, c in self.ceilings.items()}
        self.send({"kind": "row", "columns": columns, "healthy": healthy, "ceilings": ceilings})
        return healthy

    def _measure(self, case: Case, request: dict[str, Any]) -> tuple[dict[str, Any], bool]:
        """Columns of the row, and whether this process can go on. Raises nothing."""
        columns: dict[str, Any] = dict(self.machine)
        healthy = True
        subject: Subject | None = None
        run = request.get("run")

        def keep() -> None:
            if subject is not None and subject.keep is not None and run:
                subject.keep(Path(run["folder"]), run["run_id"])

        def progress(where: str) -> None:
            self._stage(f"run, {where}")
            keep()

        try:
            self._stage("accepted")
            reset_torch(self.threads)
            self._check_device()
            ceilings = self._ceilings_of(case.dtype)
            self._stage("prepare")
            subject = load_subject(case, request["prepare"], request["provider_files"])
            columns.update(work_columns(subject))
            limits = Limits.quick() if request["quick"] else Limits()
            found = measure(
                subject,
                case,
                self.machine,
                ceilings,
                limits,
                self._stage,
                on_progress=progress,
                stages=request["stages"],
            )
            columns.update(found)
            complete_row(columns)  # a suite's misspelt column must fail here, as this case's error
            if columns["status"] == Status.OK:
                self._stage("keep")
                keep()
        except BaseException as error:  # SystemExit and KeyboardInterrupt of a provider, too
            columns = {**_accepted(columns), **failure_columns(error)}
            healthy = not (
                isinstance(error, CaptureFailed)
                or is_out_of_memory(error)
                or is_device_fault(error)
            )
        # the subject goes with its tensors before the next case, and a fault in that is this one's
        subject = None
        self._stage("cleaning up")
        return columns, self._clean() and healthy

    def _check_device(self) -> None:
        import torch

        if self.device == "cuda" and not torch.cuda.is_available():
            raise Unavailable("torch sees no CUDA device; see nvidia-smi and torch's build")

    def _ceilings_of(self, dtype: str) -> Ceilings | None:
        if dtype not in self.ceilings:
            self._stage("ceilings")
            try:
                self.ceilings[dtype] = measure_ceilings(self.device, dtype)
            except (RuntimeError, MemoryError):  # no room, or no such dtype: rates go without
                return None
        return self.ceilings[dtype]

    def _clean(self) -> bool:
        try:
            release_memory(self.device if self.machine.get("gpu_name") else "cpu")
        except Exception:  # a sticky CUDA error shows at the next synchronisation: here
            return False
        gc.freeze()  # what this case imported and compiled
        return True

    def _stage(self, stage: str) -> None:
        self.send({"kind": "stage", "stage": stage})


def _accepted(columns: dict[str, Any]) -> dict[str, Any]:
    """Those of the columns that a row can take."""
    accepted = {}
    for name, value in columns.items():
        with contextlib.suppress(KeyError, TypeError, ValueError):
            complete_row({name: value})
            accepted[name] = value
    return accepted


def load_subject(case: Case, prepare: str, provider_files: Sequence[str]) -> Subject:
    """The subject of a case by the suite's function, whose dotted path ``prepare`` is."""
    module, _, name = prepare.partition(":")
    subject: Subject = getattr(importlib.import_module(module), name)(case, tuple(provider_files))
    return subject


def reset_torch(threads: int) -> None:
    """Undo what the case before may have set for the whole process."""
    import torch

    torch.set_num_threads(threads)
    torch.set_grad_enabled(True)
    torch.set_default_dtype(torch.float32)
    torch.set_float32_matmul_precision("highest")
    torch.manual_seed(0)


def guard_process(parent: int) -> None:
    """Die with the parent, leave no core files, and say where a fault happened."""
    with contextlib.suppress(OSError, AttributeError):  # Linux only; elsewhere end of input does
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # it died before the line above
        os._exit(1)
    resource.setrlimit(resource.RLIMIT_CORE, (0, resource.getrlimit(resource.RLIMIT_CORE)[1]))
    faulthandler.enable()


def limit_memory() -> None:
    """Let this process fail for want of memory, before the kernel kills one for it."""
    available = available_memory_bytes()
    limit_address_space(max(available - _HOST_RESERVE_BYTES, available // 2))


def main(arguments: list[str]) -> None:
    """Serve requests; ``arguments`` are IN, OUT, DEVICE and the parent's process id."""
    request_fd, reply_fd, parent = int(arguments[0]), int(arguments[1]), int(arguments[3])
    device = arguments[2]
    for descriptor in (request_fd, reply_fd):  # compilers started by a provider get neither
        os.set_inheritable(descriptor, False)
    guard_process(parent)

    keep_numpy_off_huge_pages()
    # What torch and the harness would import later is imported here: scipy not between the first
    # case's samples, and symbolic shapes (with all of sympy, 33 MiB) not in the first
    # torch.autograd.grad, whose memory and duration are a row's.
    import scipy.special  # noqa: F401
    import torch
    import torch.fx.experimental.symbolic_shapes

    # torch counts the host's cores, a container may have fewer
    threads = min(torch.get_num_threads(), usable_cpus())
    torch.set_num_threads(threads)
    machine = machine_facts(device)
    gc.collect()
    gc.freeze()  # what is loaded by now stays: the many collections of a case need not walk it
    if device == "cpu":
        limit_memory()
    with (
        os.fdopen(request_fd, encoding="utf-8") as requests,
        os.fdopen(reply_fd, "w", encoding="utf-8") as replies,
    ):

        def send(message: dict[str, Any]) -> None:
            replies.write(json.dumps(message) + "\n")
            replies.flush()

        Worker(device, send, machine, threads).serve(requests)


if __name__ == "__main__":
    main(sys.argv[1:])
