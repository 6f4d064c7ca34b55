"""The rows of a facet as the page's drawer and its table of cases read them.

Column by column, since a large report repeats most values: what all rows share stands once, words
that come again stand once each, numbers have six digits. Samples go apart, for the rows that
matter most; every row has its quartiles.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import Any

import pandas as pd

from dynbench.dashboards.frame import QUALITY_SUITE
from dynbench.dashboards.labels import shape_text, value_text
from dynbench.dashboards.model import Facet, Line
from dynbench.dashboards.samples import SAMPLE_COLUMNS, numbers_of, short
from dynbench.dashboards.text import (
    cell_text,
    command_text,
    label_text,
    length_text,
    visible_lines,
)
from dynbench.harness.schema import COLUMNS, SECTIONS

DETAILS_CHARS = 4000
"""Longest end of a traceback in the page."""

BRIEF_COLUMNS = (
    "run_id",
    "status",
    "reason",
    "seq_len",
    "latency_ms",
    "latency_q1_ms",
    "latency_q3_ms",
    "sample_count",
    "command",
)
"""What every row keeps where a report has too many rows for all of their columns."""


def schema_json() -> list[dict[str, Any]]:
    """The schema as the drawer shows it: sections of columns with unit and meaning."""
    return [
        {
            "title": title.capitalize(),
            "columns": [
                [column.name, column.unit, column.meaning]
                for column in columns
                if column.name not in SAMPLE_COLUMNS
            ],
        }
        for title, columns in SECTIONS.items()
    ]


def cases_json(facet: Facet, whole: Collection[int] | None = None) -> dict[str, Any]:
    """All rows of a facet, column by column.

    ``whole`` are the places (in the index of all rows) of those with every column, None for all of
    them; the others have ``BRIEF_COLUMNS``.

    Of the result, ``rows`` are places, ``lines`` the numbers of their lines, ``shared`` holds what
    all rows have in common, and ``columns`` a list of values for each other column: values
    themselves, or ``{"words", "codes"}`` where words come again.
    """
    rows = facet.rows
    kept = pd.Series(True, index=rows.index) if whole is None else rows.index.isin(list(whole))
    shared: dict[str, Any] = {}
    columns: dict[str, Any] = {}
    for name, column in COLUMNS.items():
        if column.kind == "floats":
            continue
        values = rows[name]
        listed: list[Any]
        if column.kind in ("int", "float"):
            listed = _numbers(values, column.kind == "int")
        else:
            texts = values.tolist()  # most come again and again
            shown = {text: _text(name, text) or None for text in set(texts)}
            listed = [shown[text] for text in texts]
        distinct = set(listed)
        if len(distinct) == 1:
            (value,) = distinct
            if value is not None:
                shared[name] = value
            continue
        if name not in BRIEF_COLUMNS:
            listed = [v if keep else None for v, keep in zip(listed, kept, strict=True)]
        columns[name] = listed if column.kind in ("int", "float") else _words(listed)
    return {
        "rows": [int(place) for place in rows.index],
        "lines": [int(line) for line in rows["line"]],
        "shared": shared,
        "columns": columns,
        "brief": [int(place) for place in rows.index[~kept]] if whole is not None else [],
    }


def lines_json(facet: Facet) -> dict[int, list[str]]:
    """Of each line: its label, provider, ``query_tile`` (empty for none) and pass."""
    return {
        line.number: [line.label, line.provider, tile_text(line), panel.title]
        for panel in facet.panels
        for line in panel.lines
    }


def tile_text(line: Line) -> str:
    """``query_tile`` of a line that has block lists, else empty."""
    return value_text(line.settings["query_tile"])


def facts_of(facet: Facet, machine: str) -> dict[str, str]:
    """What the page's filters ask of a facet. ``machine`` is its name in the report.

    Task and length are asked of trainings alone: elsewhere the length varies within a figure.
    """
    first = {str(name): value for name, value in facet.rows.iloc[0].items()}
    trained = {
        "task": label_text(first["task"]) or "not recorded",
        "length": length_text(first["seq_len"]) or "not recorded",
    }
    return {
        "machine": machine,
        "suite": value_text(first["suite"]),
        "shape": shape_text(first),
        "dtype": value_text(first["dtype"]),
        **(trained if first["suite"] == QUALITY_SUITE else {}),
    }


def samples_json(rows: pd.DataFrame, places: Iterable[int]) -> dict[int, list[list[float] | None]]:
    """The lists of ``SAMPLE_COLUMNS`` of each row that has samples."""
    chosen = rows.loc[rows.index.isin(list(places)), list(SAMPLE_COLUMNS)]
    return {
        int(place): lists
        for place, *held in chosen.itertuples()
        if (lists := [numbers_of(values) for values in held])[0]
    }


def _numbers(values: pd.Series, whole: bool) -> list[float | int | None]:
    if whole:
        return [None if value != value else int(value) for value in values.tolist()]
    return [None if value != value else short(value) for value in values.tolist()]


def _text(name: str, text: str) -> str:
    if not text:
        return ""
    if name == "command":
        return command_text(text)
    if name != "details":
        return cell_text(text)
    left_out = len(text) - DETAILS_CHARS
    note = f"({left_out} characters before these)\n" if left_out > 0 else ""
    return note + visible_lines(text[-DETAILS_CHARS:])


def _words(listed: list[Any]) -> Any:
    """A list of words, or its distinct words with a code for each place where that is shorter."""
    distinct = list(dict.fromkeys(listed))
    if len(distinct) > len(listed) / 2:
        return listed
    codes = {word: code for code, word in enumerate(distinct)}
    return {"words": distinct, "codes": [codes[word] for word in listed]}
