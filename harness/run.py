"""Runs a list of cases: one row for each, whatever happens to it.

``run_cases`` is all the command line needs: it plans nothing and prints nothing, but tells
``on_event`` what happens, so that a progress bar can show the running case and the time left.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from dynbench.harness.case import Case
from dynbench.harness.predict import Predictor
from dynbench.harness.schema import Status
from dynbench.harness.store import RunWriter
from dynbench.harness.supervisor import Supervisor
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
    that record where their time goes. ``provider_files`` are paths of the user's own providers,
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
    """A case begins; ``index`` counts from 0, ``seconds_left`` is for all that is left."""

    case: Case
    index: int
    total: int
    predicted_s: float
    seconds_left: float


@dataclass(frozen=True)
class StageStarted:
    """The running case enters a stage: ``prepare``, ``first call``, ``check``, ``sampling``, ..."""

    case: Case
    stage: str


@dataclass(frozen=True)
class RowFinished:
    """A row is on the disk; ``done`` of ``total`` cases are dealt with, this one included."""

    case: Case
    row: dict[str, Any]
    done: int
    total: int
    wall_s: float
    seconds_left: float


Event = RunStarted | CaseStarted | StageStarted | RowFinished


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
    on_event: Callable[[Event], None] = lambda event: None,
) -> RunSummary:
    """Measure ``cases`` in the order given and write one row for each; compact the run at the end.

    ``prepare`` is a dotted path such as ``dynbench.suites.prepare:prepare``, called in the worker
    as ``prepare(case, provider_files) -> Subject``. Cases that the run has a row for already are
    passed over (so the same call starts and resumes), repeated cases are measured once. On Ctrl-C
    the worker is killed, finished rows are compacted, and KeyboardInterrupt is raised again.
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
    run = _Run(todo, writer, prepare, options, predictor, on_event)
    run.summary.already_done = len(done)
    try:
        run.all()
    except KeyboardInterrupt:
        run.finish()
        raise
    except BaseException:
        writer.close()  # rows stay in the journal
        raise
    run.finish()
    return run.summary


class _Run:
    """The state of one call of ``run_cases``."""

    def __init__(
        self,
        todo: list[Case],
        writer: RunWriter,
        prepare: str,
        options: RunOptions,
        predictor: Predictor,
        on_event: Callable[[Event], None],
    ) -> None:
        self.summary = RunSummary()
        self._todo = todo
        self._writer = writer
        self._options = options
        self._predictor = predictor
        self._on_event = on_event
        self._case: Case | None = None
        self._began = time.monotonic()
        self._supervisor = Supervisor(
            prepare,
            provider_files=options.provider_files,
            quick=options.quick,
            stages=options.stages,
            isolate=options.isolate,
            distrust=options.distrust,
            on_stage=self._tell_stage,
        )

    def all(self) -> None:
        """Deal with every case."""
        total = len(self._todo)
        predicted_s = self._predictor.total_seconds(self._todo)
        self._on_event(RunStarted(total, self.summary.already_done, predicted_s))
        with self._supervisor:
            for index in range(total):
                self._one(index)
        self.summary.wall_s = self._elapsed_s()

    def finish(self) -> None:
        """Note what the whole run found, and compact it."""
        if any(self._supervisor.ceilings.values()):
            self._writer.note(ceilings=self._supervisor.ceilings)
        self._writer.finish()

    def _one(self, index: int) -> None:
        case = self._todo[index]
        machine = self._supervisor.machine(case.device)  # starts the first worker
        predicted_s = self._predictor.case_seconds(case)
        began = time.monotonic()
        identity = identity_columns(case, self._options)
        reason = self._over_budget(predicted_s)
        if reason:
            columns = {**machine, "status": Status.SKIPPED, "reason": reason}
        else:
            self._case = case
            left_s = self._seconds_left(index)
            self._on_event(CaseStarted(case, index, len(self._todo), predicted_s, left_s))
            columns = self._measure(case)
        row = self._writer.append({**identity, **without_identity(columns)})
        wall_s = time.monotonic() - began
        self._predictor.observe(case, row, None if reason else wall_s)
        status = row["status"]
        self.summary.counts[status] = self.summary.counts.get(status, 0) + 1
        left_s = self._seconds_left(index + 1)
        self._on_event(RowFinished(case, row, index + 1, len(self._todo), wall_s, left_s))

    def _measure(self, case: Case) -> dict[str, Any]:
        limit_s = self._limit_s()
        columns = self._supervisor.measure(case, limit_s)
        if columns["status"] == Status.TIMEOUT and limit_s < self._options.timeout_s:
            reason = f"the budget of {self._options.budget_s:.0f} s ended while it ran"
            return {**columns, "status": Status.SKIPPED, "reason": reason}
        return columns

    def _over_budget(self, predicted_s: float) -> str:
        """Why the case is skipped, or an empty text."""
        budget_s = self._options.budget_s
        if budget_s is None:
            return ""
        left_s = max(budget_s - self._elapsed_s(), 0.0)
        if predicted_s <= left_s:
            return ""
        left = f"{left_s:.0f} s of the budget of {budget_s:.0f} s are left"
        return f"predicted {predicted_s:.0f} s, but {left}"

    def _limit_s(self) -> float:
        """The case's time limit: its own, or what is left of the budget if that is less."""
        budget_s = self._options.budget_s
        if budget_s is None:
            return self._options.timeout_s
        return min(self._options.timeout_s, max(budget_s - self._elapsed_s(), 1.0))

    def _seconds_left(self, index: int) -> float:
        left_s = self._predictor.total_seconds(self._todo[index:])
        if self._options.budget_s is not None:
            left_s = min(left_s, max(self._options.budget_s - self._elapsed_s(), 0.0))
        return left_s

    def _elapsed_s(self) -> float:
        return time.monotonic() - self._began

    def _tell_stage(self, stage: str) -> None:
        if self._case is not None:
            self._on_event(StageStarted(self._case, stage))


def _is_current(row: Mapping[str, Any], version: str | None) -> bool:
    """Whether a finished row is of this version; a suite may have added to the version's text."""
    return version is None or (row["provider_version"] or "").startswith(version)


def identity_columns(case: Case, options: RunOptions) -> dict[str, Any]:
    """Columns of a row that begins now: what the case decides, when, and how to repeat it."""
    return {
        **case.columns(),
        "provider_version": options.version_of(case),
        "started_at": datetime.now(UTC).isoformat(timespec="milliseconds"),
        "load_average": load_average(),
        "command": options.command_for(case) if options.command_for else None,
    }


def without_identity(columns: Mapping[str, Any]) -> dict[str, Any]:
    """Columns of the worker, less those that the case decides: facts must not move a row."""
    return {name: value for name, value in columns.items() if name not in _IDENTITY}
