"""The parent's side of measuring: gives cases to a worker, and outlives whatever happens to it.

A worker that crashes, hangs or runs out of memory costs the case it was measuring, one row, and
nothing else: the next case gets a new worker.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import select
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

from dynbench.harness.case import Case
from dynbench.harness.failure import (
    death_columns,
    timeout_columns,
    unstarted_columns,
    untaken_columns,
)
from dynbench.harness.machine import host_facts
from dynbench.harness.measure import Limits

_START_LIMIT_S = 180.0  # importing torch from a cold disk, starting CUDA
_START_ATTEMPTS = 2
_POLL_S = 0.1
_PIPE_CLOSED_LIMIT_S = 1.0  # a worker that closed its pipe is about to end, or must be ended
_LAST_WORDS_BYTES = 8192


class WorkerDied(Exception):
    """The worker ended before it answered; negative exit codes are signals.

    ``stopped_for`` says why, if it was ended by this side.
    """

    def __init__(self, exit_code: int, stage: str, last_words: str, stopped_for: str = "") -> None:
        super().__init__(f"exit code {exit_code}")
        self.exit_code = exit_code
        self.stage = stage
        self.last_words = last_words
        self.stopped_for = stopped_for


class WorkerTooSlow(Exception):
    """The worker did not answer in time."""

    def __init__(self, stage: str, last_words: str) -> None:
        super().__init__(stage)
        self.stage = stage
        self.last_words = last_words


class Stopped(Exception):
    """This side gave up waiting, since the whole run is to end."""


class WorkerProcess:
    """One worker: its process (leader of a session of its own), its two pipes and its log.

    Whatever waits for it raises Stopped once ``stopped`` says so.
    """

    def __init__(
        self,
        device: str,
        environment: Mapping[str, str] | None = None,
        stopped: Callable[[], bool] = lambda: False,
    ) -> None:
        self.device = device
        self._stopped = stopped
        self.stage = ""
        self.machine: dict[str, Any] = {}
        self._buffer = b""
        self._log = tempfile.TemporaryFile()  # noqa: SIM115 - closed with the worker
        # appending lets the file be emptied between cases while the worker holds it open
        flags = fcntl.fcntl(self._log, fcntl.F_GETFL)
        fcntl.fcntl(self._log, fcntl.F_SETFL, flags | os.O_APPEND)
        request_read, self._requests = os.pipe()
        self._replies, reply_write = os.pipe()
        command = [sys.executable, "-P", "-m", "dynbench.harness.worker"]
        try:
            self._process = subprocess.Popen(
                [*command, str(request_read), str(reply_write), device, str(os.getpid())],
                stdin=subprocess.DEVNULL,
                stdout=self._log,
                stderr=self._log,
                pass_fds=(request_read, reply_write),
                start_new_session=True,
                env={**os.environ, **(environment or {})},
            )
        except BaseException:
            for descriptor in (self._requests, self._replies):
                os.close(descriptor)
            self._log.close()
            raise
        finally:
            os.close(request_read)
            os.close(reply_write)
        os.set_blocking(self._replies, False)

    def wait_ready(self) -> None:
        """Wait until the worker takes requests. Raises WorkerDied or WorkerTooSlow."""
        self.stage = "starting"
        self.machine = self._receive(time.monotonic() + _START_LIMIT_S)["machine"]

    def request(
        self, message: dict[str, Any], limit_s: float, on_stage: Callable[[str], None]
    ) -> dict[str, Any]:
        """Send a request and return the ``row`` message that answers it.

        Raises WorkerDied (with stage "" where the request was not even accepted) or WorkerTooSlow.
        """
        self.stage = ""
        self._log.truncate(0)
        deadline = time.monotonic() + limit_s
        with contextlib.suppress(BrokenPipeError):  # its death shows below
            os.write(self._requests, json.dumps(message).encode() + b"\n")
        while True:
            reply = self._receive(deadline)
            if reply["kind"] == "row":
                return reply
            self.stage = reply["stage"]
            on_stage(self.stage)

    def kill(self) -> int:
        """End the worker and all it started, at once; return its exit code."""
        if self._process.returncode is None:  # not reaped yet: the id is still its own
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(self._process.pid, signal.SIGKILL)
        return self._process.wait()

    def close(self) -> None:
        """Kill the worker and release its pipes and its log."""
        self.kill()
        for descriptor in (self._requests, self._replies):
            os.close(descriptor)
        self._log.close()

    def _receive(self, deadline: float) -> dict[str, Any]:
        """The next message. Raises WorkerDied or WorkerTooSlow, the worker being dead then."""
        while True:
            line, found, rest = self._buffer.partition(b"\n")
            if found:
                self._buffer = rest
                return self._parse(line)
            # the exit is looked for before the pipe is read: what was sent before it is not lost,
            # and a process that inherited the pipe cannot keep a dead worker waited for
            exited = self._has_exited()
            data = self._read()
            if data:
                self._buffer += data
            elif exited or data == b"":
                raise self._death()
            elif time.monotonic() >= deadline:
                last_words = self._last_words()
                self.kill()
                raise WorkerTooSlow(self.stage, last_words)
            elif self._stopped():
                raise Stopped
            else:
                wait_s = min(_POLL_S, max(deadline - time.monotonic(), 0.0))
                select.select([self._replies], [], [], wait_s)

    def _parse(self, line: bytes) -> dict[str, Any]:
        try:
            message: dict[str, Any] = json.loads(line)
            if message["kind"] in ("ready", "stage", "row"):
                return message
        except (ValueError, KeyError, TypeError):
            pass
        # a provider wrote into the pipe: nothing that follows can be trusted
        last_words = self._last_words()
        why = f"unreadable reply {line[:80].decode(errors='replace')!r}"
        raise WorkerDied(self.kill(), self.stage, last_words, why)

    def _read(self) -> bytes | None:
        """What is in the pipe: None if nothing is, empty at its end."""
        try:
            return os.read(self._replies, 1 << 16)
        except BlockingIOError:
            return None

    def _has_exited(self) -> bool:
        """Whether the process ended; it is not reaped, so that its group can still be killed."""
        if self._process.returncode is not None:
            return True
        flags = os.WEXITED | os.WNOHANG | os.WNOWAIT
        return os.waitid(os.P_PID, self._process.pid, flags) is not None

    def _death(self) -> WorkerDied:
        give_up = time.monotonic() + _PIPE_CLOSED_LIMIT_S
        while not self._has_exited() and time.monotonic() < give_up:
            time.sleep(_POLL_S / 10)
        stopped_for = "" if self._has_exited() else "it closed its pipe"
        return WorkerDied(self.kill(), self.stage, self._last_words(), stopped_for)

    def _last_words(self) -> str:
        size = self._log.seek(0, os.SEEK_END)
        self._log.seek(max(size - _LAST_WORDS_BYTES, 0))
        return self._log.read().decode(errors="replace").strip()


class Supervisor:
    """Measures cases in workers; every case gives columns, whatever happens.

    A worker dies with the thread that started it, so use one supervisor from one thread only. What
    another thread can do is make ``stopped`` true: then the call that waits raises Stopped.

    ``prepare`` is the dotted path of the suite's function, ``provider_files`` go to it as they are,
    ``quick`` takes fewer samples, ``stages`` records the stages of each call as well, ``isolate``
    gives every case a worker of its own, and ``on_stage`` hears how a case goes on.
    A case that ``distrust`` names (one that runs a user's code, which may change its process at
    will) is the last one of its worker. ``run_folder`` and ``run_id`` are of the run whose rows
    these are, for subjects that keep something beside their row; None where there is none.
    Attribute ``ceilings`` holds what was measured: ``{"cpu": {"float32": [GB/s, TFLOP/s]}}``.
    """

    def __init__(
        self,
        prepare: str,
        *,
        provider_files: Sequence[str] = (),
        quick: bool = False,
        stages: bool = False,
        isolate: bool = False,
        distrust: Callable[[Case], bool] = lambda case: False,
        environment: Mapping[str, str] | None = None,
        on_stage: Callable[[str], None] = lambda stage: None,
        stopped: Callable[[], bool] = lambda: False,
        run_folder: Path | None = None,
        run_id: str = "",
    ) -> None:
        self.ceilings: dict[str, dict[str, list[float]]] = {}
        self._request = {
            "prepare": prepare,
            "provider_files": [os.fspath(path) for path in provider_files],
            "quick": quick,
            "stages": stages,
            "run": run_folder and {"folder": str(run_folder.absolute()), "run_id": run_id},
        }
        self._isolate = isolate
        self._distrust = distrust
        self._environment = environment
        self._on_stage = on_stage
        self._stopped = stopped
        self._worker: WorkerProcess | None = None
        self._machines: dict[str, dict[str, Any]] = {}
        self._start_failures: dict[str, dict[str, Any]] = {}

    def __enter__(self) -> Supervisor:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Kill the worker, if there is one."""
        worker, self._worker = self._worker, None
        if worker is not None:
            worker.close()

    def launch(self, device: str) -> None:
        """Begin to start a worker, if there is none, and do not wait for it.

        Several supervisors' workers start at the same time that way.
        """
        if self._worker is None and device not in self._start_failures:
            self._worker = WorkerProcess(device, self._environment, self._stopped)

    def machine(self, device: str) -> dict[str, Any]:
        """Provenance columns for rows on ``device``, as the worker reported them.

        Starts a worker if none ran on the device yet; where none can be started, what is known
        without one.
        """
        if device not in self._machines:
            self._ready_worker(device)
        return self._machines.get(device) or host_facts()

    def start_failure(self, device: str) -> str:
        """Why no worker can be started on ``device``; empty as long as one could be."""
        failure = self._start_failures.get(device)
        return "" if failure is None else str(failure["reason"])

    def measure(self, case: Case, limit_s: float) -> dict[str, Any]:
        """Columns of the case's row: of any status, no exception but Stopped.

        ``limit_s`` limits the case, a worker's start not counted.
        """
        columns: dict[str, Any] = {}
        for _ in range(2):  # a worker that died between two cases is no fault of the second
            worker = self._ready_worker(case.device)
            if worker is None:
                columns = self._start_failures[case.device]
                break
            columns, accepted = self._measure_in(worker, case, limit_s)
            if accepted:
                break
        else:
            columns = untaken_columns(columns)
        # Facts that a case which failed early has too, else nobody could compare it.
        limits = Limits.quick() if self._request["quick"] else Limits()
        rest = limits.rest_on(case.device)
        return {**self.machine(case.device), "rest": rest, **columns}

    def _measure_in(
        self, worker: WorkerProcess, case: Case, limit_s: float
    ) -> tuple[dict[str, Any], bool]:
        """Columns, and whether the worker accepted the case at all."""
        ceilings = self.ceilings.setdefault(case.device, {})
        message = {**self._request, "case": case.to_json(), "ceilings": ceilings}
        try:
            reply = worker.request(message, limit_s, self._on_stage)
        except WorkerDied as death:
            self.close()
            stage, words = death.stage, death.last_words
            columns = death_columns(death.exit_code, stage, words, death.stopped_for)
            return columns, bool(stage)
        except WorkerTooSlow as slow:
            self.close()
            return timeout_columns(limit_s, slow.stage, slow.last_words), True
        ceilings.update(reply["ceilings"])
        if self._isolate or self._distrust(case) or not reply["healthy"]:
            self.close()
        columns = reply["columns"]
        return columns, True

    def _ready_worker(self, device: str) -> WorkerProcess | None:
        """The worker for ``device``, started if need be; None where none can be started."""
        if self._worker is not None and self._worker.device != device:
            self.close()
        ready = self._worker is not None and self._worker.machine
        if not ready and device not in self._start_failures:
            self._start(device)
        return self._worker

    def _start(self, device: str) -> None:
        for attempt in range(_START_ATTEMPTS):
            self.launch(device)  # before waiting: Ctrl-C must find it
            worker = self._worker
            assert worker is not None
            try:
                worker.wait_ready()
            except (WorkerDied, WorkerTooSlow) as failure:
                self.close()
                if attempt + 1 == _START_ATTEMPTS:
                    self._start_failures[device] = unstarted_columns(failure.last_words)
            else:
                self._machines[device] = worker.machine
                return
