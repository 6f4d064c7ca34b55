"""What compilers made of kernels, as a table: its columns, and the parquet file that holds it.

One row for each build: a variant of a kernel for one target. Equal sources and versions give equal
files, byte for byte, so a baseline in version control changes only when a build does. Durations are
left out: they do not repeat.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from dynbench.harness.crosscompile import Build
from dynbench.harness.ptx import INSTRUCTIONS
from dynbench.harness.rowfiles import StoreError, read_table, write_rows
from dynbench.harness.schema import Column, arrow_schema_of

COMPILE_SCHEMA_VERSION = 1
"""Raised when a column comes, goes or changes its meaning: such a baseline is saved again."""

_VERSION_KEY = "dynbench.compile_schema_version"

COMPILE_SECTIONS: dict[str, tuple[Column, ...]] = {
    "identity": (
        Column("target", "string", "Architecture: `sm_80`, `sm_90a` or `sm_100a`."),
        Column("module", "string", "Module that the kernel's source is in."),
        Column("kernel", "string", "Name of the kernel's function."),
        Column(
            "uses",
            "strings",
            "What launches it: with target and kernel the key on which builds are compared, since "
            "it stays while sizes of tiles change.",
        ),
        Column("identity", "string", "Stable hash of kernel, arguments, constants and options."),
        Column("constants", "string", "JSON object: values compiled in."),
        Column("signature", "string", "JSON object: types of the other arguments."),
        Column("products", "string", "JSON list: (M, N, K) of the matrix products in the source."),
        Column("warps", "int", "Warps of a block; 0 where the launch left them to Triton."),
        Column("stages", "int", "Stages of pipelined loops; 0 where left to Triton."),
        Column("triton_version", "string", "Triton, which brings the compiler and the assembler."),
    ),
    "metrics": (
        Column("error", "string", "Why the launch cannot run; empty where it can."),
        Column("registers", "int", "Registers of a thread."),
        Column("spill_store_bytes", "int", "Spilled registers written, a thread.", "bytes"),
        Column("spill_load_bytes", "int", "Spilled registers read back, a thread.", "bytes"),
        Column("stack_bytes", "int", "Stack frame of a thread.", "bytes"),
        Column("shared_bytes", "int", "Shared memory that the launch asks for.", "bytes"),
        Column("static_shared_bytes", "int", "Shared memory fixed in the binary.", "bytes"),
        Column("tensor_memory_columns", "int", "Columns of tensor memory (sm_100a)."),
    ),
    "instructions": tuple(
        Column(f"{kind}_count", "int", f"Instructions in PTX that begin as `{pattern}`.")
        for kind, pattern in INSTRUCTIONS.items()
    ),
}
"""All columns by section, in the order of the file."""

COMPILE_COLUMNS: dict[str, Column] = {
    c.name: c for section in COMPILE_SECTIONS.values() for c in section
}
"""All columns by name."""

_JSON = ("constants", "signature", "products")


def metrics_row(build: Build) -> dict[str, Any]:
    """A build as a row: nested values as JSON, one column for each kind of instruction."""
    values: dict[str, Any] = {name: getattr(build, name, None) for name in COMPILE_COLUMNS}
    values["uses"] = list(build.uses)
    values |= {f"{kind}_count": build.instructions.get(kind, 0) for kind in INSTRUCTIONS}
    for name in _JSON:
        values[name] = json.dumps(values[name], sort_keys=True, default=str)
    return values


def build_of_row(row: Mapping[str, Any]) -> Build:
    """The build that a row is of, without its duration."""
    values = {name: row[name] for name in COMPILE_COLUMNS if not name.endswith("_count")}
    values |= {name: json.loads(row[name]) for name in _JSON}
    values["products"] = tuple(tuple(product) for product in values["products"])
    values["uses"] = tuple(row["uses"])
    return Build(**values, instructions={kind: row[f"{kind}_count"] for kind in INSTRUCTIONS})


def write_metrics(builds: Sequence[Build], path: Path) -> None:
    """Write builds to a parquet file, whole or not at all. Raises OSError."""
    schema = arrow_schema_of(COMPILE_COLUMNS.values(), _VERSION_KEY, COMPILE_SCHEMA_VERSION)
    write_rows([metrics_row(build) for build in builds], path, schema)


def read_metrics(path: Path) -> list[Build]:
    """The builds of a file.

    Raises FileNotFoundError, and StoreError for a file that is torn, is none of compile metrics or
    has other columns than this version.
    """
    try:
        table, found = read_table(path, _VERSION_KEY)
    except StoreError as error:
        if isinstance(error.__cause__, FileNotFoundError):
            raise error.__cause__ from None
        raise
    if not found:
        raise StoreError(f"{path}: holds no compile metrics (their schema version is missing)")
    if found != str(COMPILE_SCHEMA_VERSION) or table.column_names != list(COMPILE_COLUMNS):
        raise StoreError(
            f"{path}: has other columns than this dynbench (schema version {found}, here "
            f"{COMPILE_SCHEMA_VERSION}); write it again with dynbench gate --compile --save"
        )
    return [build_of_row(row) for row in table.to_pylist()]
