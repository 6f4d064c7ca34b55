"""The column reference in the docs, generated from the schemas."""

from __future__ import annotations

from collections.abc import Mapping

from dynbench.harness.compilemetrics import COMPILE_SCHEMA_VERSION, COMPILE_SECTIONS
from dynbench.harness.curves import CURVE_SECTIONS, CURVES_SCHEMA_VERSION
from dynbench.harness.profile.schema import (
    CASE_COLUMNS,
    PROFILE_SCHEMA_VERSION,
    PROFILE_SECTIONS,
)
from dynbench.harness.schema import SCHEMA_VERSION, SECTIONS, Column

_KINDS = {
    "string": "text",
    "int": "integer",
    "float": "float",
    "bool": "boolean",
    "floats": "list of float",
    "strings": "list of text",
}


def columns_markdown() -> str:
    """All columns as a markdown page, a table per section: the text of ``docs/columns.md``."""
    lines = [
        "# Columns of a row",
        "",
        f"Schema version {SCHEMA_VERSION}. One row per case, provider and pass; failures are rows",
        "too. A column without a value in a row is null. This page is generated from",
        "`harness/schema.py`, `harness/curves.py`, `harness/compilemetrics.py` and",
        "`harness/profile/schema.py`:",
        "",
        "    python -m dynbench.dashboards.columns > docs/columns.md",
        "",
    ]
    lines += _tables(SECTIONS)
    lines += [
        "# Columns of a training curve",
        "",
        f"Schema version {CURVES_SCHEMA_VERSION}. What suite `quality` keeps in a run's folder",
        "`curves`: one record per logged step of a case, and one per layer looked into at it.",
        "",
        *_tables(CURVE_SECTIONS),
        "# Columns of a build",
        "",
        f"Schema version {COMPILE_SCHEMA_VERSION}. What `dynbench gate --compile` keeps: one row",
        "per variant of a kernel and target, from `harness/compilemetrics.py`. Numbers are 0 where",
        "there is an error.",
        "",
        *_tables(COMPILE_SECTIONS),
        "# Columns of a profile",
        "",
        f"Schema version {PROFILE_SCHEMA_VERSION}. What `dynbench profile` keeps in",
        "`kernels.parquet`: one row per tool and kernel of one call, and one for a tool that gave",
        "nothing. A profile has these columns of a row as well, with their meaning there:",
        f"{', '.join(f'`{column.name}`' for column in CASE_COLUMNS)}.",
        "",
        *_tables(PROFILE_SECTIONS),
    ]
    return "\n".join(lines)


def _tables(sections: Mapping[str, tuple[Column, ...]]) -> list[str]:
    lines = []
    for section, columns in sections.items():
        lines += [f"## {section.capitalize()}", "", "| column | type | unit | meaning |"]
        lines += ["|---|---|---|---|", *(_line(column) for column in columns), ""]
    return lines


def _line(column: Column) -> str:
    meaning = column.meaning.replace("|", "\\|")
    return f"| `{column.name}` | {_KINDS[column.kind]} | {column.unit} | {meaning} |"


if __name__ == "__main__":
    print(columns_markdown(), end="")
