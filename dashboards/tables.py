"""Tables: one under every figure, one of all lines against the baseline, one of cases, one of failures."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import pandas as pd

from dynbench.dashboards.compare import comparisons
from dynbench.dashboards.frame import number
from dynbench.dashboards.model import Facet, Failure, Line, Point, pass_text
from dynbench.dashboards.text import (
    cell_text,
    clip,
    command_text,
    count_text,
    label_text,
    length_text,
    near_length_text,
    number_text,
    percent_text,
    plain_text,
    time_text,
    times_text,
    visible_lines,
    whole_text,
)

WIDE_LENGTHS = 12
"""With more lengths than this a table has one row per length instead of one column."""

_DETAILS_SHOWN = 40
_DETAILS_CHARS = 4000

CellOf = Callable[[Line, Point], str]


@dataclass(frozen=True)
class Group:
    """Rows that share a header cell."""

    header: str
    rows: tuple[tuple[str, ...], ...]


@dataclass(frozen=True)
class Table:
    """A table: ``columns`` includes the header column.

    Columns hold numbers, but for those named in ``text`` (words), ``prose`` (text that wraps) and
    ``code`` (commands).
    """

    caption: str
    columns: tuple[str, ...]
    groups: tuple[Group, ...]
    text: tuple[str, ...] = ()
    prose: tuple[str, ...] = ()
    code: tuple[str, ...] = ()

    @property
    def classes(self) -> tuple[str, ...]:
        """``t`` (text), ``p`` (prose), ``c`` (code) or nothing for each column but the header."""
        named = {"t": self.text, "p": self.prose, "c": self.code}
        return tuple(
            next((kind for kind, names in named.items() if column in names), "")
            for column in self.columns[1:]
        )


@dataclass(frozen=True)
class Detail:
    """The details (a traceback) that ``count`` failed rows have in common."""

    title: str
    text: str


def figure_table(
    lines: Iterable[Line], caption: str, cell: CellOf, failure: Callable[[Failure], str]
) -> Table | None:
    """The numbers of a figure: a row per line, a column per length; a failure stands in its cell.

    Lines that have points, but an empty ``cell`` for each, are left out; None without any line. With
    many lengths the table is long: one row per line and length.
    """
    filled = [
        (line, _cells(line, cell, failure))
        for line in lines
        if not line.points or any(cell(line, point) for point in line.points)
    ]
    if not any(cells for _, cells in filled):
        return None
    lengths = sorted({seq_len for _, cells in filled for seq_len in cells})
    if len(lengths) <= WIDE_LENGTHS:
        columns = ("line", *(length_text(seq_len) for seq_len in lengths))
        groups = [
            Group(line.label, (tuple(cells.get(s, "") for s in lengths),))
            for line, cells in filled
        ]
        return Table(f"{caption}, by sequence length in tokens", columns, tuple(groups))
    groups = [
        Group(line.label, tuple((length_text(s), cells[s]) for s in sorted(cells)))
        for line, cells in filled
    ]
    return Table(caption, ("line", "length (tokens)", "value"), tuple(groups))


def overview_table(facet: Facet) -> Table | None:
    """Every line of a facet against the baseline: where it pays, how much, at what error."""
    groups = []
    for panel in facet.panels:
        rows = []
        for comparison in comparisons(panel):
            last, worst = comparison.gains[-1], comparison.largest_error
            pays = comparison.pays_from
            lost = ", ".join(length_text(gain.seq_len) for gain in comparison.losses)
            rows.append(
                (
                    comparison.line.label,
                    length_text(pays) if pays else "does not",
                    ", ".join(near_length_text(c) for c in comparison.crossings),
                    lost or "nowhere",
                    f"{times_text(last.speedup)} at {length_text(last.seq_len)}",
                    f"{times_text(comparison.geometric_mean)} (n = {len(comparison.gains)})",
                    percent_text(last.point.sparsity),
                    plain_text(worst.rms_error) if worst else "",
                    str(comparison.cases),
                    str(comparison.samples),
                )
            )
        if rows:
            groups.append(Group(panel.title, tuple(rows)))
    if not groups:
        return None
    baseline = label_text(facet.panels[0].baseline)
    columns = (
        "pass",
        "line",
        "pays from",
        "crosses near",
        "does not pay at",
        "at the longest length",
        "geometric mean",
        "pairs left out",
        "largest RMS error",
        "cases",
        "samples",
    )
    return Table(f"Every line against {baseline}", columns, tuple(groups), text=("line",))


def cases_table(facet: Facet) -> Table | None:
    """Every ok row of a facet with its samples, settings measured and the command that repeats it."""
    rows = facet.rows[facet.rows["status"] == "ok"]
    columns = (
        "line",
        "pass",
        "length (tokens)",
        "median (ms)",
        "quartiles (ms)",
        "samples",
        "±95 %",
        "first call",
        "pairs left out",
        "blocks per query",
        "list overlap",
        "of roofline",
        "clock (MHz)",
        "throttled",
        "seed",
        "run",
        "command to repeat",
    )
    table = Table(
        "Measured cases",
        columns,
        _grouped(facet, rows, _case_cells),
        text=("pass", "run"),
        code=("command to repeat",),
    )
    return table if table.groups else None


def failures_table(facet: Facet) -> Table | None:
    """Every row of a facet that is not ok, with its reason and the command that repeats it."""
    rows = facet.rows[facet.rows["status"] != "ok"]
    columns = ("line", "pass", "length (tokens)", "status", "reason", "run", "command to repeat")
    table = Table(
        "Rows without a number",
        columns,
        _grouped(facet, rows, _failure_cells),
        text=("pass", "status", "run"),
        prose=("reason",),
        code=("command to repeat",),
    )
    return table if table.groups else None


def failure_details(facet: Facet) -> tuple[list[Detail], int]:
    """Distinct details of failed rows, most frequent first, and how many more there are."""
    failed = facet.rows[(facet.rows["status"] != "ok") & (facet.rows["details"] != "")]
    counts = failed["details"].value_counts(sort=True)
    firsts = failed.drop_duplicates("details").set_index("details")
    shown = []
    for text, count in list(counts.items())[:_DETAILS_SHOWN]:
        row = firsts.loc[text]
        where = f"{label_text(row['provider'])}, {length_text(number(row['seq_len']))}"
        more = f" and {count_text(int(count) - 1, 'more row')}" if count > 1 else ""
        lines = visible_lines(str(text)[-_DETAILS_CHARS:])
        left_out = max(0, len(str(text)) - _DETAILS_CHARS)
        note = f"({left_out} characters before these)\n" if left_out else ""
        shown.append(Detail(f"{where}{more}", note + lines))
    return shown, max(0, len(counts) - _DETAILS_SHOWN)


def latency_cell(line: Line, point: Point) -> str:
    """Median and quartiles in milliseconds."""
    if point.q1_ms is None or point.q3_ms is None:
        return number_text(point.latency_ms, 4)
    quartiles = f"{number_text(point.q1_ms, 4)}–{number_text(point.q3_ms, 4)}"
    return f"{number_text(point.latency_ms, 4)} ({quartiles})"


def status_text(failure: Failure) -> str:
    """What stands in the cell of a case without a number."""
    return label_text(failure.status) or "no status"


def _cells(line: Line, cell: CellOf, failure: Callable[[Failure], str]) -> dict[int, str]:
    cells = {point.seq_len: cell(line, point) for point in line.points}
    return cells | {seq_len: failure(f) for seq_len, f in line.failed_lengths.items()}


def _grouped(
    facet: Facet, rows: pd.DataFrame, cells: Callable[[dict], tuple[str, ...]]
) -> tuple[Group, ...]:
    lines = facet.lines
    ordered = {number: place for place, number in enumerate(lines)}
    by_line: dict[int, list[tuple[str, ...]]] = {}
    for record in rows.sort_values("length", kind="stable").to_dict("records"):
        by_line.setdefault(record["line"], []).append(cells(record))
    return tuple(
        Group(lines[line].label, tuple(by_line[line])) for line in sorted(by_line, key=ordered.__getitem__)
    )


def _case_cells(row: dict) -> tuple[str, ...]:
    value = {name: number(row[name]) for name in _CASE_NUMBERS}
    quartiles = "–".join(number_text(value[name], 4) for name in ("latency_q1_ms", "latency_q3_ms"))
    return (
        pass_text(label_text(row["pass"])),
        length_text(row["seq_len"]),
        number_text(value["latency_ms"], 4),
        quartiles if quartiles != "–" else "",
        whole_text(value["sample_count"]),
        percent_text(value["precision"]),
        time_text(value["compile_ms"]),
        percent_text(value["sparsity"]),
        number_text(value["mean_blocks"]),
        percent_text(value["list_overlap"]),
        percent_text(value["roofline_share"]),
        number_text(value["sm_clock_mhz"], 4),
        whole_text(value["throttled_samples"]),
        whole_text(value["seed"]),
        label_text(row["run_id"]),
        command_text(row["command"]),
    )


_CASE_NUMBERS = (
    "latency_ms",
    "latency_q1_ms",
    "latency_q3_ms",
    "sample_count",
    "precision",
    "compile_ms",
    "sparsity",
    "mean_blocks",
    "list_overlap",
    "roofline_share",
    "sm_clock_mhz",
    "throttled_samples",
    "seed",
)


def _failure_cells(row: dict) -> tuple[str, ...]:
    return (
        pass_text(label_text(row["pass"])),
        length_text(row["seq_len"]),
        label_text(row["status"]) or "no status",
        cell_text(row["reason"]),
        label_text(row["run_id"]),
        command_text(row["command"]),
    )
