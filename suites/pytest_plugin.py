"""The suites' cases as pytest benchmarks: for a project that has a test suite of its own.

::

    from dynbench.suites.pytest_plugin import parametrize

    @parametrize(seq="1k,4k", providers="nsa,dynnsiha")
    def test_speed(case, dynbench_case):
        dynbench_case(case)

``dynbench_case`` measures and checks the case as ``dynbench run --quick`` would, but in this
process, and writes its row into a run: one for each session, which the gate counts as one process.
With pytest-benchmark the same calls are its benchmark, too, and its numbers carry the row's id.
"""

from __future__ import annotations

import contextlib
import gc
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from dynbench.harness.case import Case
    from dynbench.harness.store import RunWriter
    from dynbench.harness.subject import Subject

Row = dict[str, Any]
Benchmark = Callable[[Callable[[], None]], Any]

_OUT = "Folder for the run of dynbench_case; as dynbench run if not given."
_NOT_HERE = ("unavailable", "unsupported")


def parametrize(**options: Any) -> pytest.MarkDecorator:
    """Give a test the argument ``case``: each case that these options of ``dynbench run`` plan.

    Options are those of ``request.wanted``: ``seq="1k,4k"``, ``providers="nsa"``, ``passes=...``.
    Raises UsageError and SweepError as it does.
    """
    from dynbench.harness.gate.conditions import case_label
    from dynbench.harness.schema import complete_row
    from dynbench.suites import request
    from dynbench.suites.plan import plan

    cases = plan(request.wanted(**options))
    labels = [case_label(complete_row(case.columns())) for case in cases]
    return pytest.mark.parametrize("case", cases, ids=labels)


def pytest_addoption(parser: pytest.Parser) -> None:
    """``--dynbench-out``."""
    group = parser.getgroup("dynbench")
    group.addoption("--dynbench-out", metavar="FOLDER", type=Path, help=_OUT)


def pytest_configure(config: pytest.Config) -> None:
    """Register the fixture, with pytest-benchmark's where that plugin is."""
    session = _Session(config.getoption("--dynbench-out"))
    has_benchmark = config.pluginmanager.hasplugin("benchmark")
    plugin = _WithBenchmark(session) if has_benchmark else _Alone(session)
    config.pluginmanager.register(plugin, "dynbench-case")


@dataclass
class _Session:
    """The run that the session's rows go to; there is none before the first row."""

    out: Path | None
    writer: RunWriter | None = None
    machines: dict[str, Row] = field(default_factory=dict)
    held: contextlib.ExitStack = field(default_factory=contextlib.ExitStack)

    def measure(
        self, case: Case, provider_files: Sequence[str | Path], benchmark: Any | None
    ) -> Row:
        """Write the case's row, run pytest-benchmark on the same calls, and return the row.

        Skips the test where the case cannot be measured here, fails it where it is not ok.
        """
        from dynbench.harness.failure import failure_columns
        from dynbench.suites.prepare import prepare

        machine = self._machine(case.device)
        writer = self._writer()
        subject = None
        try:
            with _measuring(machine["cpu_threads"]):
                subject = prepare(case, provider_files)
                if subject.once and benchmark is not None:  # its only call is the benchmark
                    work = (subject, case, machine)
                    columns = benchmark.pedantic(_columns, args=work, rounds=1, iterations=1)
                else:
                    columns = _columns(subject, case, machine)
                if columns["status"] == "ok" and subject.keep is not None:
                    subject.keep(writer.path, writer.run_id)
        except Exception as error:
            columns = {**machine, **failure_columns(error)}
        row = self._append(case, columns, provider_files)
        if row["status"] in _NOT_HERE:
            pytest.skip(row["reason"])
        if row["status"] != "ok" or subject is None:
            pytest.fail(f"{row['status']}: {row['reason']}", pytrace=False)
        if benchmark is not None:
            names = ("run_id", "case_id", "latency_ms", "peak_memory_bytes", "rms_error")
            benchmark.extra_info["dynbench"] = {name: row[name] for name in names}
            if not subject.once:
                with _measuring(machine["cpu_threads"]):
                    benchmark(_synchronised(subject, case.device))
        return row

    def finish(self) -> None:
        """Compact the run and give the GPU free."""
        if self.writer is not None:
            self.writer.finish()
        self.held.close()

    def _machine(self, device: str) -> Row:
        if device not in self.machines:
            import torch

            from dynbench.harness.gpus import GpuBusy, locked
            from dynbench.harness.machine import machine_facts, usable_cpus
            from dynbench.suites.request import used_gpus

            try:
                self.held.enter_context(locked(used_gpus((), device)))
            except GpuBusy as busy:
                pytest.fail(str(busy), pytrace=False)
            facts = machine_facts(device)
            facts["cpu_threads"] = min(torch.get_num_threads(), usable_cpus())  # as a worker has
            self.machines[device] = facts
        return self.machines[device]

    def _writer(self) -> RunWriter:
        from dynbench.harness.store import RunWriter, default_root

        if self.writer is None:
            self.writer = RunWriter.create(self.out or default_root(), "pytest", quick=True)
        return self.writer

    def _append(self, case: Case, columns: Row, provider_files: Sequence[str | Path]) -> Row:
        from dynbench.harness.run import RunOptions, identity_columns, without_identity
        from dynbench.suites.request import repeat_command

        files = [Path(path) for path in provider_files]
        options = RunOptions(command_for=lambda one: repeat_command(one, files, ["--quick"]))
        identity = identity_columns(case, options)
        return self._writer().append({**identity, **without_identity(columns)})


class _Plugin:
    def __init__(self, session: _Session) -> None:
        self._session = session

    def pytest_sessionfinish(self) -> None:
        self._session.finish()

    def pytest_terminal_summary(self, terminalreporter: Any) -> None:
        writer = self._session.writer
        if writer is not None:
            path = os.path.relpath(writer.path)
            terminalreporter.write_line(f"dynbench: rows in {path} (dynbench show {path})")


class _WithBenchmark(_Plugin):
    @pytest.fixture
    def dynbench_case(self, benchmark: Any) -> Callable[..., Row]:
        """Call it with a case (and ``provider_files`` for an own kernel's); it returns the row."""
        return lambda case, provider_files=(): self._session.measure(
            case, provider_files, benchmark
        )


class _Alone(_Plugin):
    @pytest.fixture
    def dynbench_case(self) -> Callable[..., Row]:
        """Call it with a case (and ``provider_files`` for an own kernel's); it returns the row."""
        return lambda case, provider_files=(): self._session.measure(case, provider_files, None)


def _columns(subject: Subject, case: Case, machine: Row) -> Row:
    from dynbench.harness.measure import Limits, measure

    return measure(subject, case, machine, None, Limits.quick())


@contextlib.contextmanager
def _measuring(threads: int) -> Iterator[None]:
    """A worker's conditions, whatever other tests have set: torch as a case finds it there, so many
    threads, and a heap that collections need not walk. Afterwards all is as it was."""
    import torch

    from dynbench.harness.worker import reset_torch

    before = torch.get_num_threads(), torch.get_default_dtype(), torch.is_grad_enabled()
    precision = torch.get_float32_matmul_precision()
    gpus = [torch.cuda.current_device()] if torch.cuda.is_initialized() else []
    gc.collect()
    gc.freeze()
    try:
        with torch.random.fork_rng(gpus):
            reset_torch(threads)
            yield
    finally:
        gc.unfreeze()
        torch.set_num_threads(before[0])
        torch.set_default_dtype(before[1])
        torch.set_grad_enabled(before[2])
        torch.set_float32_matmul_precision(precision)


def _synchronised(subject: Subject, device: str) -> Callable[[], None]:
    """The subject's call, ended by the device's own end of it."""
    import torch

    def call() -> None:
        subject.run()
        if device == "cuda":
            torch.cuda.synchronize()

    return call
