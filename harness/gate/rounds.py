"""A-B-B-A rounds: two versions measured against each other by fresh processes.

A round starts four processes, two for each version. Every case goes through all four before the
next one begins: A, B, B, A, and B, A, A, B in every second round. So what changes slowly (heat,
another job on the machine) meets both versions alike, and the processes are new in every round,
because noise lies between processes. The rows of each process are a run of their own::

    <folder>/<version>/<gate>-000-0/    round 0, first process
    <folder>/<version>/<gate>-retest-002-3/
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dynbench.harness.case import Case
from dynbench.harness.gate.conditions import Reading
from dynbench.harness.gate.errors import SettingsError
from dynbench.harness.rowfiles import CutOff, Row, replace_file
from dynbench.harness.run import RunOptions, identity_columns, without_identity
from dynbench.harness.schema import Status
from dynbench.harness.store import RunWriter, check_output_root, new_run_id, read_rows
from dynbench.harness.supervisor import Supervisor

BASELINE, CANDIDATE = "baseline", "candidate"
GATE_FILE = "gate.json"

_ORDERS = (
    (BASELINE, CANDIDATE, CANDIDATE, BASELINE),
    (CANDIDATE, BASELINE, BASELINE, CANDIDATE),
)


@dataclass(frozen=True)
class Side:
    """One of the two versions: its name, what its workers need in their environment, and the
    columns that say which code they measured."""

    name: str
    environment: Mapping[str, str] = field(default_factory=dict)
    columns: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Progress:
    """``done`` of ``total`` measurements of a round are there; ``row`` is the newest."""

    stage: str
    round: int
    done: int
    total: int
    side: str
    row: Mapping[str, Any]


@dataclass
class Rounds:
    """Measures rounds into a folder, and reads them back from it.

    ``prepare`` and ``options`` are those of ``run_cases``; ``sides`` has a Side for BASELINE and
    for CANDIDATE. Rows that the folder has already are not measured again, so that an interrupted
    gate goes on where it was.
    """

    folder: Path
    sides: Mapping[str, Side]
    prepare: str
    options: RunOptions
    command: str = ""
    on_progress: Callable[[Progress], None] = lambda progress: None
    stage: str = ""
    _ceilings: dict[str, dict[str, list[float]]] = field(default_factory=dict)

    def measure(self, cases: Sequence[Case], index: int) -> dict[str, list[Reading]]:
        """One round of the cases: readings of both sides, each with the round's index."""
        with contextlib.ExitStack() as stack:
            processes = [
                stack.enter_context(self._process(side, index, place))
                for place, side in enumerate(_ORDERS[index % len(_ORDERS)])
            ]
            found: dict[str, list[Reading]] = {BASELINE: [], CANDIDATE: []}
            missing = [c for c in cases if any(c.case_id not in p.rows for p in processes)]
            if missing:
                _start(processes, missing[0].device)
            total = len(cases) * len(processes)
            for done, (case, process) in enumerate(itertools.product(cases, processes), start=1):
                row = process.row(case)
                found[process.side].append(Reading(row, index))
                self.on_progress(Progress(self.stage, index, done, total, process.side, row))
            for process in processes:
                process.writer.finish()
        return found

    @contextlib.contextmanager
    def _process(self, name: str, index: int, place: int) -> Iterator[_Process]:
        side = self.sides[name]
        run_id = f"{self.folder.name}-{self.stage}{'-' * bool(self.stage)}{index:03d}-{place}"
        path = self.folder / name / run_id
        quick = self.options.quick
        if (path / "run.json").is_file():
            writer = RunWriter.resume(path, quick=quick)
        else:
            writer = RunWriter.create(path.parent, self.command, quick=quick, run_id=run_id)
        # a resumed run, too: it may have been cut off before this
        writer.note(round=index, stage=self.stage, side=name, version=side.name)
        supervisor = Supervisor(
            self.prepare,
            provider_files=self.options.provider_files,
            quick=quick,
            isolate=self.options.isolate,
            distrust=self.options.distrust,
            environment=side.environment,
        )
        supervisor.ceilings = self._ceilings  # measured once: the machine is one
        with writer, supervisor:
            rows = writer.finished_rows()
            yield _Process(name, side, self.options, writer, supervisor, rows)


@dataclass
class _Process:
    """One place in a round: a worker, and the run that its rows go to."""

    side: str
    version: Side
    options: RunOptions
    writer: RunWriter
    supervisor: Supervisor
    rows: dict[str, dict[str, Any]]

    def row(self, case: Case) -> dict[str, Any]:
        """The case's row: measured now, unless it is there."""
        if case.case_id not in self.rows:
            identity = identity_columns(case, self.options)
            columns = self.supervisor.measure(case, self.options.timeout_s)
            row = {**identity, **without_identity(columns), **self.version.columns}
            self.rows[case.case_id] = self.writer.append(row)
        return self.rows[case.case_id]


def _start(processes: Sequence[_Process], device: str) -> None:
    """Start all workers at once, before the first case: starting lies between no two rows."""
    for process in processes:
        process.supervisor.launch(device)
    for process in processes:
        process.supervisor.machine(device)


def new_folder(root: Path, name: str | None = None) -> Path:
    """A folder for one gate's rounds, under ``root``; made. Raises OutputError."""
    folder = check_output_root(root) / (name or f"gate-{new_run_id()}")
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def gate_folder_for(root: Path, digests: Mapping[str, str], *, resume: bool = False) -> Path:
    """A new folder for a gate; or the newest one under ``root`` (or ``root`` itself) to go on with.

    ``digests`` say which code is measured: a gate of other code is not gone on with. Raises
    SettingsError and OutputError.
    """
    if not resume:
        folder = new_folder(root)
        note(folder, digests=dict(digests))
        return folder
    gates = (
        [root] if is_gate_folder(root) else sorted(p.parent for p in root.glob(f"*/{GATE_FILE}"))
    )
    if not gates:
        raise SettingsError(f"--resume: no gate in {root}; leave --resume out, or name its --out")
    if noted(gates[-1]).get("digests") != dict(digests):
        raise SettingsError(
            f"--resume: {gates[-1]} measured other code; leave --resume out to start anew"
        )
    return gates[-1]


def note(folder: Path, **facts: Any) -> None:
    """Add facts to the folder's ``gate.json``."""
    text = json.dumps({**noted(folder), **facts}, indent=2) + "\n"
    path = folder / GATE_FILE
    replace_file(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))


def noted(folder: Path) -> dict[str, Any]:
    """What ``gate.json`` says; nothing where there is none, or none that can be read."""
    try:
        facts = json.loads((folder / GATE_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return facts if isinstance(facts, dict) else {}


def read_side(folder: Path, side: str, stage: str = "") -> tuple[list[Reading], list[str]]:
    """Readings of one side's rounds as they lie in the folder, and what could not be read.

    What an interruption leaves is no problem: run folders without rows, and a torn last line.
    """
    readings: list[Reading] = []
    problems: list[str] = []
    for path in sorted((folder / side).glob("*")):
        try:
            facts = json.loads((path / "run.json").read_text(encoding="utf-8"))
            index, of_stage = int(facts["round"]), str(facts["stage"])
        except (OSError, ValueError, KeyError, TypeError) as error:
            if any(_rows_and_damage(path)):
                problems.append(f"{path}: no round of a gate ({type(error).__name__}: {error})")
            continue
        if of_stage == stage:
            rows, damage = _rows_and_damage(path)
            readings += [Reading(row, index) for row in rows if row["status"] != Status.SKIPPED]
            problems += damage
    return readings, problems


def _rows_and_damage(path: Path) -> tuple[list[Row], list[str]]:
    rows, problems = read_rows([path])
    return rows, [line for line in problems if not isinstance(line, CutOff)]


def is_gate_folder(path: Path) -> bool:
    """Whether the folder holds the rounds of a gate."""
    return os.path.isfile(path / GATE_FILE)


@dataclass
class Clock:
    """Whether another round fits: ``limit_s`` for all of them, None for no limit."""

    limit_s: float | None = None
    began: float = field(default_factory=time.monotonic)
    longest_s: float = 0.0

    def fits(self) -> bool:
        """Whether a round as long as the longest so far ends in time."""
        if self.limit_s is None:
            return True
        return time.monotonic() - self.began + self.longest_s <= self.limit_s

    @contextlib.contextmanager
    def round(self) -> Iterator[None]:
        """Around a round."""
        began = time.monotonic()
        yield
        self.longest_s = max(self.longest_s, time.monotonic() - began)
