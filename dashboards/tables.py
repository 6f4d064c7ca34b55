"""Tables: under every figure, of all lines against the baseline, of cases, of failures."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import pandas as pd

from dynbench.dashboards.compare import Comparison, Gain, comparisons
from dynbench.dashboards.frame import number
from dynbench.dashboards.model import Facet, Failure, Line, Panel, Point, runs_text
from dynbench.dashboards.samples import sampled, samples_cells
from dynbench.dashboards.stages import OTHER
from dynbench.dashboards.text import (
    cell_text,
    command_text,
    count_text,
    label_text,
    length_text,
    near_length_text,
    number_text,
    percent_text,
    plain_text,
    times_text,
    visible_lines,
)

WIDE_LENGTHS = 12
"""With more lengths than this a table has one row per length instead of one column."""

NOT_MEASURED = "not measured"

_FAILURES_SHOWN = 400
_DETAILS_SHOWN = 40
_DETAILS_CHARS = 4000

CellOf = Callable[[Line, Point], str]
CellOfRow = Callable[[dict[str, Any]], str]


@dataclass(frozen=True)
class Group:
    """Rows that share a header cell."""

    header: str
    rows: tuple[tuple[str, ...], ...]
    line: int | None = None  # of which they are, for the page's filters


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

    A cell says so where a line has no row at all; it is empty where rows have not this number.

    Lines that have points, but an empty ``cell`` for each, are left out; None without any line.
    With many lengths the table is long: one row per line and length.
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
            Group(line.label, (tuple(cells.get(s, NOT_MEASURED) for s in lengths),), line.number)
            for line, cells in filled
        ]
        return Table(f"{caption}, by sequence length in tokens", columns, tuple(groups))
    groups = [
        Group(line.label, tuple((length_text(s), cells[s]) for s in sorted(cells)), line.number)
        for line, cells in filled
    ]
    return Table(caption, ("line", "length (tokens)", "value"), tuple(groups))


def stages_table(panel: Panel) -> Table | None:
    """Where the time goes: a row per line and length, a column per stage; None without any."""
    found = [(line, p, p.stages) for line in panel.lines for p in line.points]
    told = [(line, point, stages) for line, point, stages in found if stages is not None]
    if not told:
        return None
    names = list(dict.fromkeys(name for *_, stages in told for name, _ in stages.parts))
    by_line: dict[int, list[tuple[str, ...]]] = {}
    for line, point, stages in told:
        times = dict(stages.with_other)
        cells = (
            f"{number_text(times[name])} ({stages.share_text(times[name])})"
            if name in times
            else ""
            for name in (*names, OTHER)
        )
        whole = f"{number_text(stages.whole_ms)}{runs_text(point)}"
        row = (length_text(point.seq_len), whole, number_text(stages.sum_ms), *cells)
        by_line.setdefault(line.number, []).append(row)
    return Table(
        f"Stages of a call, {panel.title.lower()}: ms, and share of the median",
        ("line", "length (tokens)", "median (ms)", "sum of stages (ms)", *names, OTHER),
        tuple(
            Group(line.label, tuple(by_line[line.number]), line.number)
            for line in panel.lines
            if line.number in by_line
        ),
    )


def overview_table(facet: Facet) -> Table | None:
    """Every line of a facet against the baseline: where it pays, how much, at what error."""
    groups = []
    for panel in facet.panels:
        for comparison in comparisons(panel):
            last, worst = comparison.gains[-1], comparison.largest_error
            groups.append(
                Group(
                    comparison.line.label,
                    (
                        (
                            panel.title,
                            _pays_text(comparison),
                            ", ".join(near_length_text(c) for c in comparison.crossings),
                            _lengths_text(comparison.losses, comparison),
                            _lengths_text(comparison.ties, comparison),
                            f"{times_text(last.speedup)} at {length_text(last.seq_len)}",
                            _mean_text(comparison),
                            percent_text(last.point.sparsity),
                            plain_text(worst.rms_error) if worst else "",
                            str(comparison.cases),
                            str(comparison.samples),
                        ),
                    ),
                    comparison.line.number,
                )
            )
    if not groups:
        return None
    baseline = label_text(facet.baseline)
    columns = (
        "line",
        "pass",
        "pays from",
        "crosses near",
        "slower at",
        "no difference at",
        "at the longest length compared",
        "geometric mean",
        "pairs left out there",
        "largest RMS error",
        "cases",
        "samples",
    )
    return Table(f"Every line against {baseline}", columns, tuple(groups), text=("pass",))


def samples_table(facet: Facet, panel: Panel) -> Table | None:
    """What the samples' figure shows: a row per line; None without samples."""
    groups = tuple(
        Group(line.label, ((length_text(point.seq_len), *samples_cells(lists)),), line.number)
        for line, point, lists in sampled(facet, panel)
    )
    columns = (
        "line",
        "length (tokens)",
        "samples",
        "taken in",
        "least to most (ms)",
        "last quarter over first",
        "clock (MHz)",
        "power (W)",
    )
    caption = f"Samples of each line's longest length, {panel.title.lower()}"
    return Table(caption, columns, groups) if groups else None


def failures_table(facet: Facet) -> tuple[Table | None, int]:
    """Rows of a facet that are not ok, with reason and the command that repeats each.

    And how many are left out: a table of hundreds is read by nobody, and the cases have all.
    """
    rows = facet.rows[facet.rows["status"] != "ok"]
    table = Table(
        "Rows without a number",
        ("line", *_FAILURE_CELLS),
        _grouped(facet, rows.head(_FAILURES_SHOWN), _FAILURE_CELLS, _FAILURE_COLUMNS),
        text=("status", "run"),
        prose=("reason",),
        code=("command to repeat",),
    )
    left_out = max(0, len(rows) - _FAILURES_SHOWN)
    return (_without_empty_columns(table), left_out) if table.groups else (None, 0)


def failure_details(facet: Facet) -> tuple[list[Detail], int]:
    """Distinct details of failed rows, most frequent first, and how many more there are."""
    failed = facet.rows[(facet.rows["status"] != "ok") & (facet.rows["details"] != "")]
    counts = failed["details"].value_counts(sort=True)
    firsts = {row["details"]: row for row in failed.drop_duplicates("details").to_dict("records")}
    shown = []
    for text, count in list(counts.items())[:_DETAILS_SHOWN]:
        row = firsts[text]
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


def _pays_text(comparison: Comparison) -> str:
    if comparison.pays_from is not None:
        return length_text(comparison.pays_from)
    return "does not" if comparison.gains[-1].sign else "no difference"


def _lengths_text(gains: Sequence[Gain], among: Comparison) -> str:
    """The lengths; three or more that follow one another as ``8k–128k``."""
    if not gains:
        return "nowhere"
    places = [among.gains.index(gain) for gain in gains]
    if len(places) > 2 and places[-1] - places[0] == len(places) - 1:
        return f"{length_text(gains[0].seq_len)}–{length_text(gains[-1].seq_len)}"
    return ", ".join(length_text(gain.seq_len) for gain in gains)


def _mean_text(comparison: Comparison) -> str:
    first, last = (length_text(comparison.gains[place].seq_len) for place in (0, -1))
    span = first if first == last else f"{first}–{last}"
    return f"{times_text(comparison.geometric_mean)} (n = {len(comparison.gains)}, {span})"


def _cells(line: Line, cell: CellOf, failure: Callable[[Failure], str]) -> dict[int, str]:
    texts = ((point, cell(line, point)) for point in line.points)
    cells = {point.seq_len: text and f"{text}{runs_text(point)}" for point, text in texts}
    return cells | {seq_len: failure(f) for seq_len, f in line.failed_lengths.items()}


def _grouped(
    facet: Facet, rows: pd.DataFrame, cells: dict[str, CellOfRow], columns: tuple[str, ...]
) -> tuple[Group, ...]:
    """The rows by line in the order of the figures, by length within a line."""
    by_line: dict[int, list[tuple[str, ...]]] = {}
    ordered = rows.sort_values("length", kind="stable")[["line", *columns]]
    for record in ordered.to_dict("records"):
        row = {str(name): value for name, value in record.items()}
        by_line.setdefault(row["line"], []).append(tuple(show(row) for show in cells.values()))
    return tuple(
        Group(f"{line.label} ({panel.title.lower()})", tuple(by_line[line.number]), line.number)
        for panel in facet.panels
        for line in panel.lines
        if line.number in by_line
    )


def _without_empty_columns(table: Table) -> Table:
    """The table without columns that are empty in every row."""
    kept = [
        place
        for place in range(len(table.columns) - 1)
        if any(row[place] for group in table.groups for row in group.rows)
    ]
    return replace(
        table,
        columns=(table.columns[0], *(table.columns[place + 1] for place in kept)),
        groups=tuple(
            replace(group, rows=tuple(tuple(row[place] for place in kept) for row in group.rows))
            for group in table.groups
        ),
    )


def _shown(name: str, show: Callable[[float | None], str]) -> CellOfRow:
    return lambda row: show(number(row[name]))


_FAILURE_CELLS: dict[str, CellOfRow] = {
    "length (tokens)": _shown("seq_len", length_text),
    "status": lambda row: label_text(row["status"]) or "no status",
    "reason": lambda row: cell_text(row["reason"]),
    "run": lambda row: label_text(row["run_id"]),
    "command to repeat": lambda row: command_text(row["command"]),
}
_FAILURE_COLUMNS = ("seq_len", "status", "reason", "run_id", "command")
