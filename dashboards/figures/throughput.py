"""Rates: the work a provider does per second, and the dense work that it stands for."""

from __future__ import annotations

from dynbench.dashboards.figures.common import (
    Figure,
    ValueOf,
    finished,
    line_trace,
    path_of,
    series_of,
)
from dynbench.dashboards.model import Line, Panel, Point
from dynbench.dashboards.text import number_text, percent_text


def effective_figure(panel: Panel) -> Figure | None:
    """TFLOP/s of the operations the provider must do; None where none is known."""
    return _rate_figure(panel, _effective, "effective TFLOP/s")


def dense_equivalent_figure(panel: Panel) -> Figure | None:
    """TFLOP/s of the dense attention that the result stands for; None where none is known."""
    return _rate_figure(panel, _dense_equivalent, "dense-equivalent TFLOP/s")


def effective_cell(line: Line, point: Point) -> str:
    """Effective TFLOP/s and the share of the roofline."""
    if point.effective_tflops is None:
        return ""
    share = f" ({percent_text(point.roofline_share)})" if point.roofline_share is not None else ""
    return f"{number_text(point.effective_tflops)}{share}"


def dense_equivalent_cell(line: Line, point: Point) -> str:
    """Dense-equivalent TFLOP/s."""
    return number_text(point.dense_equivalent_tflops)


def _effective(line: Line, point: Point) -> float | None:
    return point.effective_tflops


def _dense_equivalent(line: Line, point: Point) -> float | None:
    return point.dense_equivalent_tflops


def _rate_figure(panel: Panel, value: ValueOf, title: str) -> Figure | None:
    lines = [line for line in panel.lines if any(value(line, point) for point in line.points)]
    if not lines:
        return None

    def text(line: Line, point: Point) -> str:
        return f"{number_text(value(line, point))} TFLOP/s"

    traces = [line_trace(series, path_of(series, value, text)) for series in series_of(lines)]
    return finished(
        traces, x_title="sequence length (tokens)", y_title=title, lengths=panel.lengths
    )
