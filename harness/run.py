"""Runs a list of cases: one row for each, whatever happens to it.

``run_cases`` is all the command line needs: it plans nothing and prints nothing, but tells
``on_event`` what happens, so that a progress bar can show the running case and the time left.
"""

from __future__ import annotations

import shlex
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from dynbench.harness.case import Case
from dynbench.harness.lanes import Lane, WorkQueue, duration_s, homes_of
from dynbench.harness.predict import Predictor
from dynbench.harness.schema import Status
from dynbench.harness.store import RunWriter
from dynbench.harness.supervisor import Stopped, Supervisor
from dynbench.harness.telemetry import load_average

_IDENTITY = frozenset(
    ("case_id", "workload_id", "suite", "provider", "pass", "device", "dtype", "timer")
)


@dataclass(frozen=True)
class RunOptions:
    """How cases are run.

    ``timeout_s`` limits one case, inputs and checks included. ``isolate`` gives every case its own
    process, and a case that ``distrust`` names is the last one of its process. ``budget_s`` limits
    the whole run: a case predicted not to fit into what is left becomes a ``skipped`` row, and so
    does one that the budget's end cuts off. ``quick`` takes fewer samples, ``stages`` further calls
    that record where their time goes. ``together`` keeps the cases of a workload in one lane, where
    their times are to be compared. ``provider_files`` are paths of the user's own providers,
    handed to ``prepare`` as they are. ``command_for`` gives the
    command line that repeats one case. ``version_of`` gives the version of a provider that may
    change between two calls of ``run_cases`` (a user's file), None for others: a finished row of
    another version is measured again.
    """

    timeout_s: float = 600.0
    isolate: bool = False
    budget_s: float | None = None
    quick: bool = False
    stages: bool = False
    together: bool = True
    provider_files: tuple[str, ...] = ()
    command_for: Callable[[Case], str] | None = None
    distrust: Callable[[Case], bool] = lambda case: False
    version_of: Callable[[Case], str | None] = lambda case: None


@dataclass(frozen=True)
class RunStarted:
    """First event: ``total`` cases will be dealt with, ``already_done`` were finished before."""

    total: int
    already_done: int
    predicted_s: float


@dataclass(frozen=True)
class CaseStarted:
    """A case begins; ``index`` counts from 0, ``seconds_left`` is for all that is left.

    ``lane`` is the name of the one that measures it, empty where there is only one.
    """

    case: Case
    index: int
    total: int
    predicted_s: float
    seconds_left: float
    lane: str = ""


@dataclass(frozen=True)
class StageStarted:
    """The running case enters a stage: ``prepare``, ``first call``, ``check``, ``sampling``, ..."""

    case: Case
    stage: str
    lane: str = ""


@dataclass(frozen=True)
class RowFinished:
    """A row is on the disk; ``done`` of ``total`` cases are dealt with, this one included."""

    case: Case
    row: dict[str, Any]
    done: int
    total: int
    wall_s: float
    seconds_left: float
    lane: str = ""


@dataclass(frozen=True)
class LaneEnded:
    """A lane can start no worker, for this reason; the others measure what was its own."""

    lane: str
    reason: str


Event = RunStarted | CaseStarted | StageStarted | RowFinished | LaneEnded


@dataclass
class RunSummary:
    """What a run came to: rows written now by status, cases that had a row before, seconds."""

    counts: dict[str, int] = field(default_factory=dict)
    already_done: int = 0
    wall_s: float = 0.0


def run_cases(
    cases: Sequence[Case],
    writer: RunWriter,
    *,
    prepare: str,
    options: RunOptions,
    predictor: Predictor,
    lanes: Sequence[Lane] = (Lane(),),
    on_event: Callable[[Event], None] = lambda event: None,
) -> RunSummary:
    """Measure ``cases`` and write one row for each; compact the run at the end, in their order.

    One lane measures them in the order given. Several (each names itself) measure side by side,
    ``together`` all cases of a workload in one of them; events then come from their threads, one at
    a time.

    ``prepare`` is a dotted path such as ``dynbench.suites.prepare:prepare``, called in the worker
    as ``prepare(case, provider_files) -> Subject``. Cases that the run has a row for already are
    passed over (so the same call starts and resumes), repeated cases are measured once. On Ctrl-C
    the workers are killed, finished rows are compacted, and KeyboardInterrupt is raised again.
    Raises OutputError where a row cannot be written.
    """
    unique = {case.case_id: case for case in cases}
    rows = writer.finished_rows()
    done = {
        case_id
        for case_id, case in unique.items()
        if case_id in rows and _is_current(rows[case_id], options.version_of(case))
    }
    todo = [case for case_id, case in unique.items() if case_id not in done]
    writer.note(planned_cases=len(unique))
    queue = WorkQueue(
        todo,
        lanes,
        predictor.case_seconds,
        longest_first=options.budget_s is None,
        together=options.together,
        homes=homes_of(rows.values()),
    )
    run = _Run(queue, lanes, writer, prepare, options, predictor, on_event)
    run.summary.already_done = len(done)
    try:
        run.all()
    except KeyboardInterrupt:
        run.finish(list(unique))
        raise
    except BaseException:
        writer.close()  # rows stay in the journal
        raise
    run.finish(list(unique))
    return run.summary


class _Run:
    """The state of one call of ``run_cases``. Lanes share it: what they touch is under the lock."""

    def __init__(
        self,
        queue: WorkQueue,
        lanes: Sequence[Lane],
        writer: RunWriter,
        prepare: str,
        options: RunOptions,
        predictor: Predictor,
        on_event: Callable[[Event], None],
    ) -> None:
        self.summary = RunSummary()
        self._queue = queue
        self._lanes = lanes
        self._writer = writer
        self._prepare = prepare
        self._options = options
        self._predictor = predictor
        self._on_event = on_event
        self._total = sum(map(len, queue.waiting()))
        self._started = 0
        self._taken: dict[str, list[Case]] = {}  # by lane, the running case first
        self._active = len(lanes)
        self._ceilings: dict[str, dict[str, list[float]]] = {}
        self._began = time.monotonic()
        self._lock = threading.RLock()
        self._stop = threading.Event()
        self._failure: BaseException | None = None

    def all(self) -> None:
        """Deal with every case."""
        self._on_event(RunStarted(self._total, self.summary.already_done, self._predicted_s()))
        if len(self._lanes) == 1:
            self._measure_in(self._lanes[0])
        else:
            self._measure_side_by_side()
        self.summary.wall_s = self._elapsed_s()

    def finish(self, order: Sequence[str]) -> None:
        """Note what the whole run found, and compact it."""
        if any(self._ceilings.values()):
            self._writer.note(ceilings=self._ceilings)
        self._writer.finish(order)

    def _measure_side_by_side(self) -> None:
        """Each lane in a thread of its own: a worker dies with the thread that started it."""
        threads = [threading.Thread(target=self._try_lane, args=(lane,)) for lane in self._lanes]
        try:
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
        finally:  # Ctrl-C comes to this thread alone
            self._stop.set()
            for thread in threads:
                if thread.ident is not None:
                    thread.join()
        if self._failure is not None:
            raise self._failure

    def _try_lane(self, lane: Lane) -> None:
        try:
            self._measure_in(lane)
        except Stopped:
            pass
        except BaseException as error:
            with self._lock:
                self._failure = self._failure or error
                self._stop.set()

    def _measure_in(self, lane: Lane) -> None:
        """Measure what the lane takes from the queue, until nothing is left for it."""
        with self._supervisor(lane) as supervisor:
            try:
                while cases := self._take(lane):
                    while cases and not self._stop.is_set():
                        if self._gives_up(lane, supervisor, cases[0].device):
                            return
                        self._one(lane, supervisor, cases)
            finally:
                for device, ceilings in supervisor.ceilings.items():
                    self._ceilings.setdefault(device, ceilings)

    def _supervisor(self, lane: Lane) -> Supervisor:
        return Supervisor(
            self._prepare,
            provider_files=self._options.provider_files,
            quick=self._options.quick,
            stages=self._options.stages,
            isolate=self._options.isolate,
            distrust=self._options.distrust,
            environment=lane.environment,
            on_stage=lambda stage: self._tell_stage(lane, stage),
            stopped=self._stop.is_set,
            run_folder=self._writer.path,
            run_id=self._writer.run_id,
        )

    def _take(self, lane: Lane) -> list[Case]:
        with self._lock:
            cases = [] if self._stop.is_set() else self._queue.take(lane)
            self._taken[lane.name] = cases
            self._active -= not cases
            return cases

    def _gives_up(self, lane: Lane, supervisor: Supervisor, device: str) -> bool:
        """Whether the lane can start no worker and leaves its cases to others.

        The last lane does not: its cases need rows that say why.
        """
        supervisor.machine(device)  # starts the first worker
        reason = supervisor.start_failure(device)
        with self._lock:
            if not reason or self._active < 2:
                return False
            self._active -= 1
            self._queue.give_back(self._taken.pop(lane.name), lane)
            self._on_event(LaneEnded(lane.name, reason))
            return True

    def _one(self, lane: Lane, supervisor: Supervisor, cases: list[Case]) -> None:
        """Deal with the first of the cases, and take it from them."""
        case = cases[0]
        machine = {**supervisor.machine(case.device), **lane.columns}
        name = lane.name if len(self._lanes) > 1 else ""
        began = time.monotonic()
        with self._lock:
            predicted_s = self._predictor.case_seconds(case)
            index, self._started = self._started, self._started + 1
            reason = over_budget(predicted_s, self._options.budget_s, self._elapsed_s())
            if not reason:
                left_s = self._seconds_left()
                started = CaseStarted(case, index, self._total, predicted_s, left_s, name)
                self._on_event(started)
        identity = identity_columns(case, self._options, lane.words)
        if reason:
            columns = {**machine, "status": Status.SKIPPED, "reason": reason}
        else:
            columns = {**self._measure(supervisor, case), **lane.columns}
        with self._lock:
            row = self._writer.append({**identity, **without_identity(columns)})
            wall_s = time.monotonic() - began
            self._predictor.observe(case, row, None if reason else wall_s)
            status = row["status"]
            self.summary.counts[status] = self.summary.counts.get(status, 0) + 1
            done = sum(self.summary.counts.values())
            cases.pop(0)
            left_s = self._seconds_left()
            self._on_event(RowFinished(case, row, done, self._total, wall_s, left_s, name))

    def _measure(self, supervisor: Supervisor, case: Case) -> dict[str, Any]:
        limit_s = self._limit_s()
        columns = supervisor.measure(case, limit_s)
        if columns["status"] == Status.TIMEOUT and limit_s < self._options.timeout_s:
            reason = f"the budget of {self._options.budget_s:.0f} s ended while it ran"
            return {**columns, "status": Status.SKIPPED, "reason": reason}
        return columns

    def _limit_s(self) -> float:
        """The case's time limit: its own, or what is left of the budget if that is less."""
        budget_s = self._options.budget_s
        if budget_s is None:
            return self._options.timeout_s
        return min(self._options.timeout_s, max(budget_s - self._elapsed_s(), 1.0))

    def _predicted_s(self) -> float:
        """For all cases that have no row, those that run included."""
        groups = [*self._queue.waiting(), *self._taken.values()]
        return duration_s(map(self._predictor.total_seconds, groups), len(self._lanes))

    def _seconds_left(self) -> float:
        left_s = self._predicted_s()
        if self._options.budget_s is not None:
            left_s = min(left_s, max(self._options.budget_s - self._elapsed_s(), 0.0))
        return left_s

    def _elapsed_s(self) -> float:
        return time.monotonic() - self._began

    def _tell_stage(self, lane: Lane, stage: str) -> None:
        with self._lock:
            cases = self._taken.get(lane.name)
            if cases:
                name = lane.name if len(self._lanes) > 1 else ""
                self._on_event(StageStarted(cases[0], stage, name))


def over_budget(predicted_s: float, budget_s: float | None, elapsed_s: float) -> str:
    """Why a case of ``predicted_s`` is skipped, all in seconds, or an empty text."""
    if budget_s is None:
        return ""
    left_s = max(budget_s - elapsed_s, 0.0)
    if predicted_s <= left_s:
        return ""
    digits = 0 if left_s >= 10 else 1  # "predicted 1 s, but 1 s are left" is no reason
    left = f"{left_s:.{digits}f} s of the budget of {budget_s:.0f} s are left"
    return f"predicted {predicted_s:.{digits}f} s, but {left}"


def _is_current(row: Mapping[str, Any], version: str | None) -> bool:
    """Whether a finished row is of this version; a suite may have added to the version's text."""
    return version is None or (row["provider_version"] or "").startswith(version)


def identity_columns(case: Case, options: RunOptions, words: Sequence[str] = ()) -> dict[str, Any]:
    """Columns of a row that begins now: what the case decides, when, and how to repeat it.

    ``words`` are added to the command that repeats it.
    """
    command = options.command_for(case) if options.command_for else None
    return {
        **case.columns(),
        "provider_version": options.version_of(case),
        "started_at": datetime.now(UTC).isoformat(timespec="milliseconds"),
        "load_average": load_average(),
        "command": f"{command} {shlex.join(words)}" if command and words else command,
    }


def without_identity(columns: Mapping[str, Any]) -> dict[str, Any]:
    """Columns of the worker, less those that the case decides: facts must not move a row."""
    return {name: value for name, value in columns.items() if name not in _IDENTITY}
