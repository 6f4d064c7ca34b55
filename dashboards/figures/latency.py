"""Latency over sequence length, with the quartiles as a band."""

from __future__ import annotations

from dynbench.dashboards.figures.common import (
    MAX_BANDS,
    Figure,
    Series,
    Trace,
    finished,
    line_meta,
    line_trace,
    path_of,
    series_key,
    series_of,
)
from dynbench.dashboards.model import Line, Panel, Point
from dynbench.dashboards.text import count_text, number_text, time_text
from dynbench.dashboards.theme import translucent


def latency_figure(panel: Panel) -> Figure | None:
    """Median latency over length, both logarithmic; None where nothing was measured."""
    lines = [line for line in panel.lines if line.points]
    if not lines:
        return None
    all_series = series_of(lines)
    bands = [_band(series) for series in all_series] if len(lines) <= MAX_BANDS else []
    traces = [line_trace(s, path_of(s, _latency_ms, _latency_text)) for s in all_series]
    return finished(
        [band for band in bands if band is not None] + traces,
        x_title="sequence length (tokens)",
        y_title="latency (ms)",
        lengths=panel.lengths,
    )


def _latency_ms(line: Line, point: Point) -> float:
    return point.latency_ms


def _latency_text(line: Line, point: Point) -> str:
    quartiles = ""
    if point.q1_ms is not None and point.q3_ms is not None:
        quartiles = f" ({number_text(point.q1_ms, 4)} to {number_text(point.q3_ms, 4)} ms)"
    rows = f" of {point.rows} rows" if point.rows > 1 else ""
    return f"{time_text(point.latency_ms)}{quartiles}, {count_text(point.samples, 'sample')}{rows}"


def _band(series: Series) -> Trace | None:
    """The area between the quartiles of a series, line by line; None where none has quartiles."""
    x: list[float | None] = []
    y: list[float | None] = []
    for line in series.lines:
        known = [(p.seq_len, p.q1_ms, p.q3_ms) for p in line.points if p.q1_ms and p.q3_ms]
        if len(known) < 2:
            continue
        x += [None] * bool(x) + [seq_len for seq_len, _, _ in known]
        x += [seq_len for seq_len, _, _ in reversed(known)]
        y += [None] * bool(y) + [q3_ms for _, _, q3_ms in known]
        y += [q1_ms for _, q1_ms, _ in reversed(known)]
    if not x:
        return None
    return {
        "type": "scatter",
        "x": x,
        "y": y,
        "mode": "lines",
        "fill": "toself",
        "fillcolor": translucent(series.style.colour, 0.22),
        "line": {"width": 0},
        "hoverinfo": "skip",
        "meta": line_meta(series),
        "legendgroup": series_key(series),
        "showlegend": False,
    }
