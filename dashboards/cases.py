"""The rows of a facet as the page's drawer and its table of cases read them.

Column by column, since a large report repeats most values: what all rows share stands once, words
that come again stand once each, numbers have six digits. Samples go apart, for the rows that
matter most; every row has its quartiles.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from dynbench.dashboards.frame import QUALITY_SUITE
from dynbench.dashboards.labels import shape_text, value_text
from dynbench.dashboards.model import Facet, Line
from dynbench.dashboards.samples import SAMPLE_COLUMNS, numbers_of, shortened
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
    "pass",
    "seq_len",
    "seed",
    "latency_ms",
    "latency_q1_ms",
    "latency_q3_ms",
    "sample_count",
    "eval_loss",
    "eval_accuracy",
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
    places = rows.index.tolist()
    kept = np.array([whole is None or place in whole for place in places])
    shared, columns = _numbers(rows, kept)
    shared_texts, columns_of_text = _texts(rows, kept)
    return {
        "rows": places,
        "lines": rows["line"].tolist(),
        "shared": shared | shared_texts,
        "columns": columns | columns_of_text,
        "brief": rows.index[~kept].tolist(),
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
    chosen = rows.loc[sorted(set(places).intersection(rows.index.tolist())), list(SAMPLE_COLUMNS)]
    columns = [chosen[name].tolist() for name in SAMPLE_COLUMNS]
    return {
        place: lists
        for place, *held in zip(chosen.index.tolist(), *columns, strict=True)
        if (lists := [numbers_of(values) for values in held])[0]
    }


def _numbers(rows: pd.DataFrame, kept: NDArray[np.bool]) -> tuple[dict[str, Any], dict[str, Any]]:
    """The numbers that all rows share, and the other columns; decimals are shortened."""
    shared: dict[str, Any] = {}
    columns: dict[str, Any] = {}
    for kind in ("int", "float"):
        names = [name for name, column in COLUMNS.items() if column.kind == kind]
        values = rows[names].to_numpy(np.float64)
        known = ~np.isnan(values)
        exact = shortened(values) if kind == "float" else np.where(known, values, 0).astype(int)
        same = (exact == exact[0]).all(axis=0) & known.all(axis=0)
        shared |= {names[place]: exact[0, place].item() for place in np.flatnonzero(same)}
        for place in np.flatnonzero(known.any(axis=0) & ~same):
            name, told = names[place], known[:, place]
            told = told if name in BRIEF_COLUMNS else told & kept
            held = zip(exact[:, place].tolist(), told.tolist(), strict=True)
            columns[name] = [value if has else None for value, has in held]
    return shared, columns


def _texts(rows: pd.DataFrame, kept: NDArray[np.bool]) -> tuple[dict[str, Any], dict[str, Any]]:
    """The same of the other columns but those of samples, as the page shows them."""
    shared: dict[str, Any] = {}
    columns: dict[str, Any] = {}
    names = [name for name, c in COLUMNS.items() if c.kind in ("string", "strings", "bool")]
    for name, values in zip(names, rows[names].to_numpy(object).T, strict=True):
        distinct = set(values)
        if len(distinct) > 1:
            told = values if name in BRIEF_COLUMNS else np.where(kept, values, "")
            shown = {text: _text(name, text) or None for text in set(told)}
            columns[name] = _words([shown[text] for text in told])
        elif text := _text(name, *distinct):
            shared[name] = text
    return shared, columns


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
