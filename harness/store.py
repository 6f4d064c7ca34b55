"""Where rows live: a run is a folder, written row by row and read whole.

::

    <root>/<run_id>/run.json      command line, time, schema version, ceilings, planned cases
    <root>/<run_id>/rows.jsonl    journal: one row a line, flushed to the disk row by row
    <root>/<run_id>/rows.parquet  the journal compacted: one immutable file, written at the end
    <root>/<run_id>/rows.damaged-1.jsonl  a compacted journal that had lines which are no rows

Every step can be cut by kill -9 without losing a finished row: the parquet file appears under a
temporary name and is renamed, and the journal is removed only after that. A resumed run appends a
journal beside the parquet file and compacts both. Readers take any mixture; where a case has
several rows in a run, the last one counts.
"""

from __future__ import annotations

import fcntl
import itertools
import json
import os
import secrets
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, BinaryIO

from dynbench.harness.curves import CURVES_FOLDER
from dynbench.harness.failure import is_untaken
from dynbench.harness.rowfiles import (
    CutOff,
    Row,
    StoreError,
    check_version,
    mend_journal,
    read_journal,
    read_parquet,
    replace_file,
    sync_folder,
    write_parquet,
)
from dynbench.harness.schema import COLUMNS, SCHEMA_VERSION, Status, complete_row

if TYPE_CHECKING:
    import pandas as pd

RUN_FILE = "run.json"
JOURNAL_FILE = "rows.jsonl"
PARQUET_FILE = "rows.parquet"
PROFILES_FOLDER = "profiles"  # beside the rows; what lies there has a schema of its own
_DAMAGED = "rows.damaged-{}.jsonl"  # read by nobody, named as a problem
_NO_ROWS = (PROFILES_FOLDER, CURVES_FOLDER)

_OTHER_QUICK = {
    False: "this run was made with --quick; add it, or leave --resume out",
    True: "this run was made without --quick; leave --quick out, or --resume",
}


class OutputError(Exception):
    """A folder that cannot take a run. One line: the path, what is wrong and what to do instead."""


@dataclass(frozen=True)
class RunInfo:
    """What ``list_runs`` says about a run. ``command`` and ``created_at`` are empty if unknown."""

    run_id: str
    path: Path
    created_at: str
    command: str
    row_count: int
    planned_cases: int | None
    finished: bool  # compacted, with a row for every planned case


def default_root() -> Path:
    """Where runs go if nothing says so: beside the committed ones, where there are such."""
    return Path("results/local") if Path("results").is_dir() else Path("dynbench-results")


def check_output_root(root: str | os.PathLike[str]) -> Path:
    """Return ``root`` as a path if a run can be written under it, creating nothing.

    Raises OutputError where it or one of its parents is a file, or where it cannot be written.
    """
    path = Path(root)
    existing = next(p for p in (path.absolute(), *path.absolute().parents) if os.path.lexists(p))
    if not existing.is_dir():
        raise OutputError(f"output folder {path}: {existing} is not a folder; name another folder")
    if not os.access(existing, os.W_OK | os.X_OK):
        raise OutputError(f"output folder {path}: {existing} is not writable; name another folder")
    return path


class RunWriter:
    """Writes one run. Make it with ``create`` or ``resume``, then ``append`` rows and ``finish``.

    Attributes: ``path`` (the run's folder) and ``run_id``. Only one process can write a run at a
    time. It is a context manager that closes the journal (compacting nothing).
    """

    def __init__(self, path: Path, run_id: str) -> None:
        self.path = path
        self.run_id = run_id
        self._journal: BinaryIO | None = None
        self._lock: int | None = _lock_folder(path)

    @classmethod
    def create(
        cls,
        root: str | os.PathLike[str],
        command: str,
        *,
        quick: bool = False,
        run_id: str | None = None,
    ) -> RunWriter:
        """Start a run in a new folder under ``root``, made where needed. Raises OutputError.

        ``run_id`` names the folder; without it the run gets the name of its moment.
        """
        now = datetime.now(UTC)
        run_id = run_id or new_run_id(now)
        folder = check_output_root(root) / run_id
        try:
            folder.mkdir(parents=True)
            writer = cls(folder, run_id)
            try:
                writer.note(
                    run_id=run_id,
                    command=command,
                    created_at=now.isoformat(timespec="seconds"),
                    schema_version=SCHEMA_VERSION,
                    quick=quick,
                )
            except BaseException:
                writer.close()
                raise
        except OSError as error:
            raise OutputError(_refused(folder, error)) from error
        return writer

    @classmethod
    def resume(cls, path: str | os.PathLike[str], *, quick: bool = False) -> RunWriter:
        """Go on with the run in the folder ``path``; a torn last line is cut off first.

        Raises OutputError where ``path`` is no run, is ``quick`` and this is not (or the reverse:
        rows of fewer samples would count as finished), has another schema version, cannot be read
        or written, or is being written by another process.
        """
        folder = Path(path)
        if not (folder / RUN_FILE).is_file():
            raise OutputError(f"{folder}: no run to resume; name a run's folder (with {RUN_FILE})")
        if not os.access(folder, os.W_OK | os.X_OK):
            raise OutputError(f"{folder}: not writable; copy the run to a folder that is")
        try:
            facts = _read_facts(folder)
            check_version(facts.get("schema_version"), folder)
            if bool(facts.get("quick")) != quick:
                raise OutputError(f"{folder}: {_OTHER_QUICK[quick]}")
            writer = cls(folder, str(facts.get("run_id") or folder.name))
            try:
                mend_journal(folder / JOURNAL_FILE)
                _run_rows(folder)  # an unreadable part must show now, not after hours of measuring
            except BaseException:
                writer.close()
                raise
        except StoreError as error:
            raise OutputError(f"{error}; start a new run instead") from error
        except OSError as error:
            raise OutputError(_refused(folder, error)) from error
        return writer

    def note(self, **facts: Any) -> None:
        """Add facts to ``run.json`` (``planned_cases``, ``ceilings``, ...), replacing it whole.

        Raises OutputError if the disk refuses.
        """
        path = self.path / RUN_FILE
        try:
            known = _read_facts(self.path) if path.exists() else {}
            text = json.dumps({**known, **facts}, indent=2) + "\n"
            replace_file(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))
        except (OSError, StoreError) as error:
            raise OutputError(_refused(path, error)) from error

    def finished_rows(self) -> dict[str, Row]:
        """Rows of this run that need no further measurement (see the function of that name)."""
        return finished_rows(self.path)

    def append(self, row: Mapping[str, Any]) -> Row:
        """Complete the row, fill in ``run_id``, write it through to the disk and return it.

        Raises what ``complete_row`` raises, and OutputError if the disk refuses.
        """
        completed = complete_row({**row, "run_id": self.run_id})
        present = {name: value for name, value in completed.items() if value is not None}
        line = json.dumps(present, separators=(",", ":")).encode() + b"\n"
        try:
            if self._journal is None:
                self._journal = (self.path / JOURNAL_FILE).open("ab")
                sync_folder(self.path)
            self._journal.write(line)
            self._journal.flush()
            os.fsync(self._journal.fileno())
        except OSError as error:
            raise OutputError(_refused(self.path, error)) from error
        return completed

    def finish(self, order: Sequence[str] = ()) -> Path:
        """Compact the run into ``rows.parquet``, close it and return that path.

        Rows stand in the ``order`` of these case ids, behind all others, which keep their own.
        Without a journal the parquet file is complete already and stays as it is, so calling this
        twice is fine. A journal with lines that are no rows is kept under another name, which
        readers of the run tell. Raises OutputError if the disk refuses; the journal is kept then.
        """
        journal, parquet = self.path / JOURNAL_FILE, self.path / PARQUET_FILE
        if self._journal is not None:
            self._journal.close()
            self._journal = None
        try:
            if journal.exists() or not parquet.exists():
                places = {case_id: place for place, case_id in enumerate(order)}
                rows, problems = _run_rows(self.path)
                rows.sort(key=lambda row: places.get(row["case_id"], -1))
                write_parquet(rows, parquet)
                if any(not isinstance(problem, CutOff) for problem in problems):
                    _set_aside(journal)
                else:
                    journal.unlink(missing_ok=True)
                sync_folder(self.path)
        except (OSError, StoreError) as error:
            raise OutputError(_refused(self.path, error)) from error
        finally:
            self.close()
        return parquet

    def close(self) -> None:
        """Close the journal and let other processes write the run."""
        if self._journal is not None:
            self._journal.close()
            self._journal = None
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def __enter__(self) -> RunWriter:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()


def new_run_id(now: datetime | None = None) -> str:
    """A name for a run: when it began (``now``), and chance against two in one second."""
    return f"{now or datetime.now(UTC):%Y%m%d-%H%M%S}-{secrets.token_hex(3)}"


def read_runs(
    paths: Iterable[str | os.PathLike[str]],
) -> tuple[pd.DataFrame, list[str]]:
    """All rows under ``paths``, and one line for everything that could not be read.

    A path is a run's folder, a folder with runs anywhere below it, or a parquet file. A path that
    does not exist, a truncated parquet file, an unknown schema version and a folder without rows
    are named in the second value and skipped; of a journal with a torn last line the other rows are
    kept. The frame is that of ``frame_of``: all columns of the schema, possibly no rows.
    """
    rows, problems = read_rows(paths)
    return frame_of(rows), problems


def read_rows(paths: Iterable[str | os.PathLike[str]]) -> tuple[list[Row], list[str]]:
    """What ``read_runs`` reads, as plain rows; problems that an interruption leaves are CutOff."""
    rows: list[Row] = []
    problems: list[str] = []
    seen: set[Path] = set()
    for path in map(Path, paths):
        sources = list(_sources(path))
        if not sources:
            what = "holds no runs" if path.is_dir() else "does not exist"
            problems.append(f"{path}: {what}")
        for source in sources:
            if source.resolve() in seen:
                continue
            seen.add(source.resolve())
            try:
                found, complaints = _read_source(source)
            except (StoreError, OSError) as error:
                problems.append(str(error))
                continue
            rows += found
            problems += complaints
    return _latest(rows), problems


def frame_of(rows: Sequence[Mapping[str, Any]]) -> pd.DataFrame:
    """Rows as a frame with every column of the schema, in its order.

    Integer columns have dtype ``Int64`` and boolean ones ``boolean`` (missing: ``pd.NA``), float
    columns ``float64`` (missing: NaN), text columns and columns of lists ``object`` (missing:
    None; lists are Python lists).
    """
    import pandas as pd

    dtypes = {"int": "Int64", "bool": "boolean", "float": "float64"}
    return pd.DataFrame(
        {
            name: pd.Series([row.get(name) for row in rows], dtype=dtypes.get(column.kind, object))
            for name, column in COLUMNS.items()
        }
    )


def list_runs(root: str | os.PathLike[str]) -> list[RunInfo]:
    """The runs under the folder ``root``, oldest first; none where the folder does not exist."""
    runs = [_run_info(source) for source in _sources(Path(root)) if source.is_dir()]
    return sorted(runs, key=lambda run: (run.created_at, run.run_id))


def finished_rows(path: str | os.PathLike[str]) -> dict[str, Row]:
    """Rows that the run at ``path`` has, by their case_id, without those that say nothing of it:
    ``skipped`` ones, and those of cases that no worker took.

    A failed row counts as finished: a resumed run measures what is missing and repeats nothing.
    Raises StoreError where the run's parquet file cannot be read.
    """
    rows = _latest(_run_rows(Path(path))[0])
    return {
        row["case_id"]: row
        for row in rows
        if row["status"] != Status.SKIPPED and not is_untaken(row)
    }


def _sources(path: Path) -> Iterator[Path]:
    """Run folders and loose files under ``path``: folders first, in the order of their names."""
    if path.is_file():
        yield path
        return
    for folder, subfolders, files in os.walk(path):
        subfolders[:] = sorted(name for name in subfolders if name not in _NO_ROWS)
        if {RUN_FILE, JOURNAL_FILE, PARQUET_FILE} & set(files):
            yield Path(folder)
        for name in sorted(files):
            if name.endswith(".parquet") and name != PARQUET_FILE:
                yield Path(folder, name)


def _read_source(source: Path) -> tuple[list[Row], list[str]]:
    if not source.is_dir():
        return read_parquet(source), []
    rows: list[Row] = []
    problems: list[str] = []
    for path in sorted(source.glob(_DAMAGED.format("*"))):
        problems.append(f"{path}: has lines that are no rows; remove it if no row of it is wanted")
    for part in (_parquet_rows, _journal_rows):  # one broken part must not hide the other
        try:
            found, complaints = part(source)
        except (StoreError, OSError) as error:
            problems.append(str(error))
            continue
        rows += found
        problems += complaints
    if not rows and not problems:
        problems.append(CutOff(f"{source}: the run holds no rows"))
    return rows, problems


def _run_rows(folder: Path) -> tuple[list[Row], list[str]]:
    """All rows of a run, the latest of each case, and complaints. Raises StoreError."""
    old, _ = _parquet_rows(folder)
    new, problems = _journal_rows(folder)
    return _latest(old + new), problems


def _parquet_rows(folder: Path) -> tuple[list[Row], list[str]]:
    path = folder / PARQUET_FILE
    return (read_parquet(path) if path.exists() else []), []


def _journal_rows(folder: Path) -> tuple[list[Row], list[str]]:
    path = folder / JOURNAL_FILE
    if not path.exists():
        return [], []
    if not (folder / RUN_FILE).exists():
        raise StoreError(f"{path}: its schema version is unknown, since {RUN_FILE} is missing")
    check_version(_read_facts(folder).get("schema_version"), path)
    return read_journal(path)


def _set_aside(journal: Path) -> None:
    """Keep a journal where no reader takes it for rows, beside those that were kept before."""
    paths = (journal.with_name(_DAMAGED.format(number)) for number in itertools.count(1))
    os.rename(journal, next(path for path in paths if not path.exists()))


def _latest(rows: Sequence[Row]) -> list[Row]:
    return list({(row["run_id"], row["case_id"]): row for row in rows}.values())


def _read_facts(folder: Path) -> dict[str, Any]:
    path = folder / RUN_FILE
    try:
        facts = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, OSError) as error:
        raise StoreError(f"{path}: not readable as JSON ({error})") from error
    if not isinstance(facts, dict):
        raise StoreError(f"{path}: not a JSON object")
    return facts


def _run_info(folder: Path) -> RunInfo:
    try:
        facts = _read_facts(folder)
    except StoreError:
        facts = {}
    rows, _ = _read_source(folder)
    planned = facts.get("planned_cases")
    row_count = len(_latest(rows))
    compacted = (folder / PARQUET_FILE).exists() and not (folder / JOURNAL_FILE).exists()
    return RunInfo(
        run_id=str(facts.get("run_id") or folder.name),
        path=folder,
        created_at=str(facts.get("created_at", "")),
        command=str(facts.get("command", "")),
        row_count=row_count,
        planned_cases=planned,
        finished=compacted and planned is not None and row_count >= planned,
    )


def _lock_folder(path: Path) -> int:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        raise OutputError(f"{path}: another process is writing this run; wait for it") from None
    except OSError:
        pass  # a file system without locks: one writer is then the user's promise
    return descriptor


def _refused(path: Path, error: Exception) -> str:
    why = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return f"{path}: cannot write the run ({why}); name another folder"
