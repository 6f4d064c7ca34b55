"""Profiles one case with every tool that is here: runs the tools, gathers rows, writes the files.

A tool that is absent, fails, dies or takes too long costs its own rows: one row says why. Only a
call that cannot be measured at all, or whose output is wrong, ends the profile.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from dynbench.harness.case import Case
from dynbench.harness.failure import death_columns, one_line, timeout_columns
from dynbench.harness.profile.counters import complaint, counted_kernels, find_ncu, ncu_command
from dynbench.harness.profile.errors import ProfileError
from dynbench.harness.profile.kernels import TOOLS, Kernel, dram_bytes
from dynbench.harness.profile.schema import (
    CASE_COLUMNS,
    COUNTERS_FILE,
    KERNELS_FILE,
    PROFILE_COLUMNS,
    TRACE_FILE,
    TREE_FILE,
    write_profile,
)
from dynbench.harness.schema import Status
from dynbench.harness.store import PROFILES_FOLDER, OutputError, check_output_root, new_run_id
from dynbench.harness.subject import Unavailable

FILES = dict(zip(TOOLS, (TRACE_FILE, TREE_FILE, COUNTERS_FILE), strict=True))
"""The file that each tool leaves in the folder of a profile."""

_LAST_WORDS_BYTES = 8192
_GPU_ONLY = {
    "proton": "it sees kernels of a GPU, and this case runs on the CPU",
    "ncu": "it counts on NVIDIA GPUs, and this case runs on the CPU",
}


@dataclass(frozen=True)
class ProfileOptions:
    """How a case is profiled.

    ``prepare`` is the dotted path of the suite's function, ``provider_files`` go to it as they
    are. ``limit_s`` limits each tool. ``command`` is the command line that repeats the profile,
    ``run_id`` the run whose row is profiled, if there is one.
    """

    prepare: str
    provider_files: Sequence[str] = ()
    limit_s: float = 600.0
    command: str | None = None
    run_id: str | None = None


@dataclass(frozen=True)
class _Found:
    """What one tool gave: kernels, or the reason why there are none."""

    tool: str
    kernels: Sequence[Kernel] = ()
    reason: str | None = None


def profile_case(
    case: Case,
    root: Path,
    options: ProfileOptions,
    on_tool: Callable[[str], None] = lambda tool: None,
) -> tuple[Path, list[dict[str, Any]]]:
    """Profile ``case`` into a new folder under ``root/profiles``; return it, and its rows.

    ``on_tool`` hears which tool begins. Raises ProfileError where the call cannot be measured or
    its output is wrong, and OutputError where the folder cannot be written.
    """
    now = datetime.now(UTC)
    folder = check_output_root(root) / PROFILES_FOLDER / new_run_id(now)
    try:
        folder.mkdir(parents=True)
    except OSError as error:
        raise OutputError(f"{folder}: {error.strerror}; name another folder with --out") from None
    on_tool("torch")
    job = _Job(case, folder, options)
    answer = job.run("torch")
    measured = answer["columns"]
    if measured["status"] != Status.OK:
        with suppress(OSError):  # nothing but, at most, a torn trace lies in it
            (folder / TRACE_FILE).unlink(missing_ok=True)
            folder.rmdir()
        raise ProfileError(f"{case.label}: {measured['status']}: {measured['reason']}")
    found = [_Found("torch", _kernels(answer), answer.get("reason"))]
    for tool, use in (("proton", job.proton), ("ncu", job.ncu)):
        if case.device == "cpu":
            found.append(_Found(tool, reason=_GPU_ONLY[tool]))
            continue
        on_tool(tool)
        try:
            found.append(_Found(tool, use()))
        except Unavailable as absent:
            found.append(_Found(tool, reason=one_line(str(absent))))
    shared = _case_columns(case, measured, options, folder.name, now)
    rows = [
        {name: row.get(name) for name in PROFILE_COLUMNS}
        for one in found
        for row in _rows(one, shared)
    ]
    write_profile(rows, folder / KERNELS_FILE)
    return folder, rows


class _Job:
    """Runs the tools on one case, each in a process of its own."""

    def __init__(self, case: Case, folder: Path, options: ProfileOptions) -> None:
        self._case = case
        self._folder = folder
        self._options = options

    def proton(self) -> list[Kernel]:
        """The kernels in proton's tree. Raises Unavailable."""
        return _kernels(_gave(self.run("proton")))

    def ncu(self) -> list[Kernel]:
        """The kernels that ncu counted. Raises Unavailable."""
        ncu, log = find_ncu(), self._folder / COUNTERS_FILE
        answer = self.run("ncu", lambda command: ncu_command(ncu, log.absolute(), command))
        told = log.read_text(encoding="utf-8", errors="replace") if log.exists() else ""
        if "==ERROR==" in told:  # what it says tells more than how the call ended
            raise Unavailable(complaint(told))
        _gave(answer)
        return counted_kernels(told)

    def run(
        self, tool: str, under: Callable[[list[str]], list[str]] = lambda command: command
    ) -> dict[str, Any]:
        """The answer of the tool's process; its death is an answer as well, with a status."""
        with tempfile.TemporaryDirectory(prefix="dynbench-profile-") as place:
            job, answer = Path(place, "job.json"), Path(place, "answer.json")
            content = {
                "tool": tool,
                "case": self._case.to_json(),
                "prepare": self._options.prepare,
                "provider_files": [os.path.abspath(path) for path in self._options.provider_files],
                "file": str((self._folder / FILES[tool]).absolute()),
                "answer": str(answer),
            }
            job.write_text(json.dumps(content), encoding="utf-8")
            command = [sys.executable, "-P", "-m", "dynbench.harness.profile.child", str(job)]
            died = _run_alone(under(command), self._options.limit_s, tool)
            if not answer.exists():
                return {"columns": died}
            found: dict[str, Any] = json.loads(answer.read_text(encoding="utf-8"))
            return found


def _run_alone(command: Sequence[str], limit_s: float, tool: str) -> dict[str, Any]:
    """Run a command in a session of its own; the columns of a row that ended as it did."""
    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
            env={**os.environ, "LC_ALL": "C"},  # for ncu's numbers
        )
        try:
            code: int | None = process.wait(limit_s)
        except subprocess.TimeoutExpired:
            code = None
        finally:  # on Ctrl-C as well: nothing that it started is left
            with suppress(ProcessLookupError, PermissionError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        log.seek(max(log.seek(0, os.SEEK_END) - _LAST_WORDS_BYTES, 0))
        words = log.read().decode(errors="replace").strip()
    stage = f"profiling with {tool}"
    if code is None:
        return timeout_columns(limit_s, stage, words)
    return death_columns(code, stage, words)


def _gave(answer: Mapping[str, Any]) -> Mapping[str, Any]:
    """An answer with kernels. Raises Unavailable where the process failed."""
    columns = answer.get("columns")
    if columns is None:
        return answer
    raise Unavailable(columns["reason"] or str(columns["status"]))


def _kernels(answer: Mapping[str, Any]) -> list[Kernel]:
    return [Kernel(**kernel) for kernel in answer.get("kernels", ())]


def _case_columns(
    case: Case,
    measured: Mapping[str, Any],
    options: ProfileOptions,
    profile_id: str,
    now: datetime,
) -> dict[str, Any]:
    """What every row of the profile has: the case, what measuring it told, provenance."""
    known = {column.name: measured.get(column.name) for column in CASE_COLUMNS}
    return {
        **known,
        **case.columns(),
        "backend": measured.get("backend") or case.settings.get("backend"),
        "profile_id": profile_id,
        "run_id": options.run_id,
        "call_ms": measured["latency_ms"],
        "started_at": now.isoformat(timespec="milliseconds"),
        "command": options.command,
    }


def _rows(found: _Found, shared: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The rows of one tool: of its kernels, or the one that says why there is none."""
    if not found.kernels:
        reason = found.reason or "it gave no kernel"
        return [{**shared, "tool": found.tool, "reason": reason}]
    whole_ms = sum(kernel.time_ms for kernel in found.kernels)
    moved_bytes = dram_bytes(found.kernels)
    intensity = shared["flops"] / moved_bytes if moved_bytes else None
    return [
        {
            **shared,
            "tool": found.tool,
            "kernel": kernel.name,
            "kind": kernel.kind,
            "calls": kernel.calls,
            "time_ms": kernel.time_ms,
            "share": kernel.time_ms / whole_ms if whole_ms else None,
            "registers": kernel.registers,
            "shared_bytes": kernel.shared_bytes,
            "dram_read_bytes": kernel.dram_read_bytes,
            "dram_write_bytes": kernel.dram_write_bytes,
            "achieved_intensity": intensity,
        }
        for kernel in found.kernels
    ]
