"""Profiles as tables: their columns, the parquet file of each, and where the files lie.

One row for each kernel that a tool saw in one call of a case. A tool that gave nothing has one row
as well, without a kernel, which says why.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from dynbench.harness.profile.kernels import TOOLS
from dynbench.harness.rowfiles import StoreError, read_version, write_rows
from dynbench.harness.schema import COLUMNS, SECTIONS, Column, arrow_schema_of
from dynbench.harness.store import PROFILES_FOLDER

PROFILE_SCHEMA_VERSION = 1
"""Raised when a column changes its name, type or meaning."""

KERNELS_FILE = "kernels.parquet"
TRACE_FILE = "trace.json.gz"
TREE_FILE = "call.hatchet"
COUNTERS_FILE = "ncu.csv"

_VERSION_KEY = "dynbench.profile_schema_version"

PROFILE_SECTIONS: dict[str, tuple[Column, ...]] = {
    "profile": (
        Column("profile_id", "string", "The profile of this row; also the name of its folder."),
        Column(
            "tool",
            "string",
            "What saw the kernel: "
            + ", ".join(f"`{tool}`" for tool in TOOLS)
            + ". Each ran in a process of its own.",
        ),
        Column("reason", "string", "Why the tool gave nothing; null in the rows of kernels."),
        Column(
            "call_ms",
            "float",
            "Median of the call without a profiler: eager, by device events, on a CPU by the "
            "host's clock.",
            "ms",
        ),
    ),
    "kernel": (
        Column("kernel", "string", "Name of the kernel, on a CPU of the operator."),
        Column(
            "kind",
            "string",
            "`kernel`, `copy`, `fill` (both by the driver) or `operator` (on a CPU).",
        ),
        Column("calls", "float", "Launches in one call."),
        Column(
            "time_ms",
            "float",
            "Time of these launches in one call. An operator's is its own, without the operators "
            "that it calls.",
            "ms",
        ),
        Column("share", "float", "time_ms over the sum of all rows of this tool."),
        Column("registers", "int", "Registers of a thread."),
        Column("shared_bytes", "int", "Shared memory of a block.", "bytes"),
        Column("dram_read_bytes", "float", "Read from DRAM by these launches.", "bytes"),
        Column("dram_write_bytes", "float", "Written to DRAM by these launches.", "bytes"),
        Column(
            "achieved_intensity",
            "float",
            "flops over the bytes that all kernels of the call moved from and to DRAM: the same in "
            "every row of the tool that counted them.",
            "FLOP/byte",
        ),
    ),
}
"""The columns that a profile adds to those of its case, by section."""

CASE_COLUMNS: tuple[Column, ...] = (
    *(c for section in ("identity", "work", "settings") for c in SECTIONS[section]),
    *(COLUMNS[name] for name in ("timer", "flops", "bytes", "arithmetic_intensity")),
    *SECTIONS["provenance"],
)
"""The columns of a row of ``dynbench run`` that a profile has as well."""

PROFILE_COLUMNS: dict[str, Column] = {
    c.name: c
    for c in (
        *PROFILE_SECTIONS["profile"],
        *PROFILE_SECTIONS["kernel"],
        *CASE_COLUMNS,
    )
}
"""All columns by name, in the order of the file."""


def write_profile(rows: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Write rows to a parquet file, whole or not at all. Raises OSError."""
    columns = PROFILE_COLUMNS.values()
    write_rows(rows, path, arrow_schema_of(columns, _VERSION_KEY, PROFILE_SCHEMA_VERSION))


def read_profile(path: Path) -> list[dict[str, Any]]:
    """The rows of a file; columns that it lacks are None. Raises StoreError."""
    remedy = "profile the case again"
    table = read_version(path, _VERSION_KEY, PROFILE_SCHEMA_VERSION, "profile", remedy)
    return [{name: row.get(name) for name in PROFILE_COLUMNS} for row in table.to_pylist()]


def read_profiles(paths: Iterable[Path]) -> tuple[list[dict[str, Any]], list[str]]:
    """Rows of all profiles below the paths or beside them, the oldest first; what was not read.

    A path is a run's folder, a folder of runs or a parquet file: beside a run lies the folder
    ``profiles`` of cases that were profiled without one.
    """
    rows: list[dict[str, Any]] = []
    problems: list[str] = []
    for path in sorted(set(_files(paths)), key=lambda path: (path.parent.name, path)):
        try:
            rows += read_profile(path)
        except StoreError as error:
            problems.append(str(error))
    return rows, problems


def _files(paths: Iterable[Path]) -> Iterator[Path]:
    for path in paths:
        yield from (path.parent / PROFILES_FOLDER).glob(f"*/{KERNELS_FILE}")
        for folder, _, files in os.walk(path):
            if KERNELS_FILE in files and Path(folder).parent.name == PROFILES_FOLDER:
                yield Path(folder, KERNELS_FILE)
