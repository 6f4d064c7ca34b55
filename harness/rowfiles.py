"""Reads the two forms rows are stored in, a journal and a parquet file, and writes the second."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dynbench.harness.schema import COLUMNS, SCHEMA_VERSION, arrow_schema, complete_row

if TYPE_CHECKING:
    import pyarrow as pa

VERSION_KEY = b"dynbench.schema_version"

Row = dict[str, Any]


class StoreError(Exception):
    """A file that cannot be read as rows. One line: the path and what is wrong with it."""


class CutOff(str):
    """A complaint about rows that lack only what an interruption left unwritten."""


def check_version(version: Any, path: Path) -> None:
    """Raise StoreError unless ``version`` is the schema version that this code writes."""
    if str(version) != str(SCHEMA_VERSION):
        raise StoreError(
            f"{path}: has schema version {version}, this dynbench reads {SCHEMA_VERSION}; "
            "read it with the version that wrote it"
        )


def write_parquet(rows: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Write rows to ``path`` whole or not at all: temporary name, flush, rename."""
    write_rows(rows, path, arrow_schema())


def write_rows(rows: Sequence[Mapping[str, Any]], path: Path, schema: pa.Schema) -> None:
    """The same for rows of any schema; values that a row lacks are null."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    columns = {name: [row.get(name) for row in rows] for name in schema.names}
    table = pa.Table.from_pydict(columns, schema=schema)
    replace_file(path, lambda temporary: pq.write_table(table, temporary, compression="zstd"))


def replace_file(path: Path, write: Callable[[Path], object]) -> None:
    """Call ``write(temporary_path)``, flush what it wrote, and rename it to ``path``."""
    temporary = path.with_name(f"{path.name}.tmp")
    write(temporary)
    with open(temporary, "rb") as written:
        os.fsync(written.fileno())
    os.replace(temporary, path)
    sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Flush a folder's entries, so that a rename or a new file outlives a power cut."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def read_parquet(path: Path) -> list[Row]:
    """Rows of a parquet file, columns unknown to this code left out. Raises StoreError."""
    with _as_store_error(path):
        import pyarrow.parquet as pq

        metadata = pq.read_schema(path).metadata or {}
        if VERSION_KEY not in metadata:
            raise StoreError(f"{path}: no file of dynbench (its schema version is missing)")
        check_version(metadata[VERSION_KEY].decode(errors="replace"), path)
        return _table_rows(pq.read_table(path, partitioning=None))


def read_table(path: Path, version_key: str) -> tuple[pa.Table, str]:
    """A parquet file of any schema, and its version (empty if it has none). Raises StoreError."""
    with _as_store_error(path):
        import pyarrow.parquet as pq

        table = pq.read_table(path, partitioning=None)
        found = (table.schema.metadata or {}).get(version_key.encode(), b"")
        return table, found.decode(errors="replace")


def read_version(path: Path, version_key: str, version: int, what: str, remedy: str) -> pa.Table:
    """A parquet file of ``version`` of its own schema. Raises StoreError, also for another version.

    ``what`` the file holds and the ``remedy`` stand in the message.
    """
    table, found = read_table(path, version_key)
    if found != str(version):
        raise StoreError(
            f"{path}: has {what} schema version {found or 'none'}, this dynbench reads {version}; "
            f"{remedy}"
        )
    return table


@contextmanager
def _as_store_error(path: Path) -> Iterator[None]:
    """What pyarrow and the disk raise becomes a StoreError."""
    import pyarrow as pa

    try:
        yield
    except (pa.ArrowException, OSError) as error:
        first_line = str(error).partition("\n")[0]
        message = f"{path}: not readable as parquet, perhaps truncated ({first_line})"
        raise StoreError(message) from error


def _table_rows(table: pa.Table) -> list[Row]:
    schema = arrow_schema()
    columns: dict[str, Iterable[Any]] = {}
    for name, column in COLUMNS.items():
        if name not in table.column_names:
            columns[name] = [None] * table.num_rows
            continue
        values = table.column(name).cast(schema.field(name).type)
        if column.kind in ("floats", "strings"):  # through numpy: ten times as fast
            arrays = values.to_pandas()
            columns[name] = [None if a is None else a.tolist() for a in arrays]
        else:
            columns[name] = values.to_pylist()
    return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]


def read_journal(path: Path) -> tuple[list[Row], list[str]]:
    """Rows of a journal and one line for each of its lines that is no row.

    A last line without its end was cut by a crash: it is named (by a CutOff) and left out, unless
    the row in it is whole.
    """
    rows: list[Row] = []
    problems: list[str] = []
    lines = path.read_bytes().split(b"\n")
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            rows.append(_journal_row(line))
        except (ValueError, TypeError) as error:
            torn = number == len(lines)
            what = "is torn (the run was cut off)" if torn else f"is no row: {error}"
            complaint = f"{path}: line {number} {what}; the other rows are kept"
            problems.append(CutOff(complaint) if torn else complaint)
    return rows, problems


def _journal_row(line: bytes) -> Row:
    values = json.loads(line)
    if not isinstance(values, dict):
        raise TypeError("not a JSON object")
    return complete_row({name: value for name, value in values.items() if name in COLUMNS})


def mend_journal(path: Path) -> None:
    """Cut a torn last line off the journal, so that the next row begins on a line of its own."""
    if not path.exists():
        return
    content = path.read_bytes()
    if not content or content.endswith(b"\n"):
        return
    last = content.rpartition(b"\n")[2]
    try:
        _journal_row(last)
    except (ValueError, TypeError):
        os.truncate(path, len(content) - len(last))
    else:
        with path.open("ab") as journal:
            journal.write(b"\n")
