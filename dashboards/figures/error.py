"""Errors over sequence length: against the provider's own reference, and dense attention."""

from __future__ import annotations

from dynbench.dashboards.figures.common import (
    Figure,
    Path,
    Trace,
    finished,
    hover_text,
    length_ticks,
    line_trace,
    mark_trace,
    path_of,
    reference_line,
    series_of,
)
from dynbench.dashboards.model import Failure, Line, Panel, Point
from dynbench.dashboards.tables import status_text
from dynbench.dashboards.text import number_text, plain_text


def error_figure(panel: Panel) -> Figure | None:
    """RMS error over length with its tolerance; rows beyond it are crosses. None without any."""
    lines = [
        line
        for line in panel.lines
        if any(p.rms_error for p in line.points) or any(f.rms_error for f in line.failures)
    ]
    if not lines:
        return None
    traces = _tolerance_traces(lines, panel.lengths)
    for series in series_of(lines):
        path = path_of(series, _rms_error, _error_text)
        traces.append(line_trace(series, path))
        beyond = [(line, f) for line in series.lines for f in line.failures if f.rms_error]
        if beyond:
            hover = [
                hover_text(line.label, f.seq_len, f"incorrect, error {plain_text(f.rms_error)}")
                for line, f in beyond
            ]
            marks = Path(
                [failure.seq_len for _, failure in beyond],
                [failure.rms_error for _, failure in beyond],
                hover,
                [failure.case for _, failure in beyond],
            )
            traces.append(mark_trace(series, marks, in_legend=not path.x))
    return finished(
        traces,
        x_title="sequence length (tokens)",
        y_title="RMS error / RMS of the reference",
        lengths=panel.lengths,
    )


def distance_figure(panel: Panel) -> Figure | None:
    """Distance to dense attention over length; None without any."""
    lines = [line for line in panel.lines if any(p.dense_error for p in line.points)]
    if not lines:
        return None
    return finished(
        [line_trace(s, path_of(s, _dense_error, _distance_text)) for s in series_of(lines)],
        x_title="sequence length (tokens)",
        y_title="RMS distance / RMS of dense",
        lengths=panel.lengths,
    )


def error_cell(line: Line, point: Point) -> str:
    """Error and tolerance."""
    if point.rms_error is None:
        return ""
    allowed = f" of {plain_text(point.rms_tolerance)}" if point.rms_tolerance is not None else ""
    return f"{plain_text(point.rms_error)}{allowed}"


def failure_cell(failure: Failure) -> str:
    """The status, with the error where the row has one: what its cross shows."""
    status = status_text(failure)
    return f"{status}, {plain_text(failure.rms_error)}" if failure.rms_error else status


def distance_cell(line: Line, point: Point) -> str:
    """Distance to dense attention."""
    return number_text(point.dense_error)


def _tolerance_traces(lines: list[Line], lengths: list[int]) -> list[Trace]:
    """One line where all rows share a tolerance, else the smallest and the largest."""
    tolerances = sorted({p.rms_tolerance for line in lines for p in line.points if p.rms_tolerance})
    if not tolerances:
        return []
    low, high = (10**power for power in length_ticks(lengths)["range"])
    if len(tolerances) == 1:
        shown = [(f"tolerance {plain_text(tolerances[0])}", tolerances[0], "dash")]
    else:
        shown = [
            (f"smallest tolerance {plain_text(tolerances[0])}", tolerances[0], "dot"),
            (f"largest tolerance {plain_text(tolerances[-1])}", tolerances[-1], "dash"),
        ]
    return [reference_line(text, [low, high], [value, value], dash) for text, value, dash in shown]


def _rms_error(line: Line, point: Point) -> float | None:
    return point.rms_error


def _dense_error(line: Line, point: Point) -> float | None:
    return point.dense_error


def _error_text(line: Line, point: Point) -> str:
    return f"error {error_cell(line, point)}"


def _distance_text(line: Line, point: Point) -> str:
    return f"distance {number_text(point.dense_error)}"
