"""Peak memory over sequence length, with the cases that ran out of it."""

from __future__ import annotations

import math
from typing import Any

from dynbench.dashboards.figures.common import (
    Figure,
    Path,
    Trace,
    failures,
    finished,
    hover_text,
    line_trace,
    mark_trace,
    path_of,
    series_of,
)
from dynbench.dashboards.model import Line, Panel, Point
from dynbench.dashboards.text import bytes_text, cell_text, plain_text
from dynbench.dashboards.theme import MUTED


def memory_figure(panel: Panel) -> Figure | None:
    """Peak bytes above the inputs over length; None where none is known and nothing ran out.

    Cases that ran out of memory are crosses above the plot's largest value, one height per line, so
    that none covers another: their height says nothing.
    """
    out = list(failures(panel, "out_of_memory"))
    known = [line for line in panel.lines if any(p.peak_memory_bytes for p in line.points)]
    if not known and not out:
        return None
    drawn = {line.number for line, _ in out} | {line.number for line in known}
    lines = [line for line in panel.lines if line.number in drawn]
    peaks = [p.peak_memory_bytes for line in known for p in line.points if p.peak_memory_bytes]
    top, bottom = max(peaks, default=2.0**30), min(peaks, default=2.0**30)
    traces: list[Trace] = []
    height = first = top * 3
    for series in series_of(lines):
        path = path_of(series, _peak_bytes, _peak_text)
        traces.append(line_trace(series, path))
        numbers = {line.number for line in series.lines}
        marks = [(line, failure) for line, failure in out if line.number in numbers]
        if marks:
            hover = [
                hover_text(line.label, f.seq_len, f"out of memory. {cell_text(f.reason)[:160]}")
                for line, f in marks
            ]
            crosses = Path(
                [failure.seq_len for _, failure in marks],
                [height] * len(marks),
                hover,
                [failure.case for _, failure in marks],
            )
            traces.append(mark_trace(series, crosses, in_legend=not path.x))
            height *= 1.7
    y_axis: dict[str, Any] = _byte_ticks(bottom, top) if peaks else {"showticklabels": False}
    if out:
        y_axis["range"] = [math.log10(bottom / 2), math.log10(height * 1.3)]
    return finished(
        traces,
        x_title="sequence length (tokens)",
        y_title="peak memory above the inputs",
        lengths=panel.lengths,
        y_axis=y_axis,
        **(_region(top * 1.7, height * 1.3, first) if out else {}),
    )


def memory_cell(line: Line, point: Point) -> str:
    """Peak memory in the unit that fits."""
    return bytes_text(point.peak_memory_bytes)


def _peak_bytes(line: Line, point: Point) -> float | None:
    return point.peak_memory_bytes


def _peak_text(line: Line, point: Point) -> str:
    return bytes_text(point.peak_memory_bytes)


def _byte_ticks(bottom: float, top: float) -> dict[str, Any]:
    low, high = math.floor(math.log2(bottom)), math.ceil(math.log2(top))
    step = max(1, math.ceil((high - low + 1) / 7))
    ticks = [2.0**power for power in range(low - low % step, high + 1, step)]
    return {"tickvals": ticks, "ticktext": [bytes_text(tick, plain_text) for tick in ticks]}


def _region(low: float, high: float, label_at: float) -> dict[str, Any]:
    """The shaded region above the values, where the crosses stand."""
    shape = {
        "type": "rect",
        "xref": "paper",
        "x0": 0,
        "x1": 1,
        "y0": low,
        "y1": high,
        "fillcolor": MUTED,
        "opacity": 0.12,
        "line": {"width": 0},
        "layer": "below",
    }
    label = {
        "xref": "paper",
        "x": 0.01,
        "xanchor": "left",
        "y": math.log10(label_at),
        "text": "out of memory (✕)",
        "showarrow": False,
    }
    return {"shapes": [shape], "annotations": [label]}
