"""The process in which one tool looks at a call: ``python -m dynbench.harness.profile.child JOB``.

Profilers of one process get into each other's way (a GPU's tracing interface has one user at a
time), so each tool has a process. JOB is a JSON file that says what to do, and where the answer
goes: ``{"kernels": [...], "reason": ..., "columns": {...}}``, where ``columns`` come from measuring
the call as a row is measured, with few samples. Only the first tool does that: it also tells
whether the call is right.
"""

from __future__ import annotations

import json
import os
import sys
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from dynbench.harness.case import Case
from dynbench.harness.failure import failure_columns
from dynbench.harness.machine import machine_facts, usable_cpus
from dynbench.harness.measure import Limits, measure, work_columns
from dynbench.harness.profile.counters import call_in_range
from dynbench.harness.profile.kernels import Kernel
from dynbench.harness.profile.trace import record_trace
from dynbench.harness.profile.tree import record_tree
from dynbench.harness.schema import Status
from dynbench.harness.subject import Subject, Unavailable, Unsupported
from dynbench.harness.timing import TIMERS
from dynbench.harness.worker import guard_process, limit_memory, load_subject, reset_torch

_CALLS = 3  # under torch's profiler
_SLOW_CALL_MS = 2000.0


def answer(job: dict[str, Any]) -> dict[str, Any]:
    """What the tool of the job found; raises whatever the suite, the call or the tool raises."""
    case = Case.from_json(job["case"])
    tool, path = job["tool"], Path(job["file"])
    if tool == "torch":
        return _measured_and_traced(case, job, path)
    subject = _ready_subject(case, job)
    if tool == "proton":
        return {"kernels": _plain(record_tree(subject.run, path))}
    call_in_range(subject.run)  # ncu, which started this process, writes what it counted
    return {"kernels": []}


def _measured_and_traced(case: Case, job: dict[str, Any], path: Path) -> dict[str, Any]:
    subject = _repeatable_subject(case, job)
    eager = replace(case, timer=TIMERS[case.device][0])
    machine = machine_facts(case.device)
    columns = {**machine, **work_columns(subject)}
    columns |= measure(subject, eager, machine, None, Limits.quick())
    if columns["status"] != Status.OK:
        return {"columns": columns}
    calls = 1 if columns["latency_ms"] > _SLOW_CALL_MS else _CALLS
    try:
        found = record_trace(subject.run, case.device, calls, path)
    except Unavailable as error:
        return {"columns": columns, "reason": str(error)}
    return {"columns": columns, "kernels": _plain(found)}


def _ready_subject(case: Case, job: dict[str, Any]) -> Subject:
    """The subject after two calls, so that nothing is left to compile, tune or load."""
    subject = _repeatable_subject(case, job)
    if subject.setup is not None:
        subject.setup()
    for _ in range(2):
        subject.run()
    return subject


def _repeatable_subject(case: Case, job: dict[str, Any]) -> Subject:
    subject = load_subject(case, job["prepare"], job["provider_files"])
    if subject.once:
        raise Unsupported(f"suite {case.suite} runs a case once as a whole: profile another suite")
    return subject


def _plain(kernels: list[Kernel]) -> list[dict[str, Any]]:
    return [asdict(kernel) for kernel in kernels]


def main(arguments: list[str]) -> None:
    """Do the job in the file that the one argument names."""
    job = json.loads(Path(arguments[0]).read_text(encoding="utf-8"))
    if job["tool"] != "ncu":  # the thread of ncu's that started this one may end before it
        guard_process(os.getppid())
    try:
        import torch
        import torch.fx.experimental.symbolic_shapes  # before memory is measured: see worker.py

        device = job["case"]["device"]
        if device == "cuda" and not torch.cuda.is_available():
            raise Unavailable("torch sees no CUDA device; see nvidia-smi and torch's build")
        reset_torch(min(torch.get_num_threads(), usable_cpus()))
        if device == "cpu":
            limit_memory()
        found = answer(job)
    except BaseException as error:  # SystemExit of a provider, too
        found = {"columns": failure_columns(error)}
    Path(job["answer"]).write_text(json.dumps(found), encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1:])
