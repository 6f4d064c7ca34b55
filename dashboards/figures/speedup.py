"""Speed-up over the baseline, with the lengths marked at which a line crosses it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from dynbench.dashboards.compare import best_by_lists, compare
from dynbench.dashboards.figures.common import (
    Figure,
    Series,
    Trace,
    finished,
    length_ticks,
    line_meta,
    line_trace,
    path_of,
    reference_line,
    series_key,
    series_of,
)
from dynbench.dashboards.model import Line, Panel, Point
from dynbench.dashboards.text import label_text, near_length_text, plot_text, time_text, times_text
from dynbench.dashboards.theme import MUTED


def speedup_figure(panel: Panel) -> Figure | None:
    """Speed-up over length, both logarithmic; None where nothing can be compared."""
    lines = [
        line for line in panel.lines if line.provider != panel.baseline and compare(line).gains
    ]
    if not lines:
        return None
    baseline = label_text(panel.baseline)
    lengths = [seq_len for seq_len in panel.lengths if seq_len in panel.baseline_lengths]
    low, high = (10**power for power in length_ticks(lengths)["range"])
    traces = [reference_line(f"{baseline} = 1", [low, high], [1.0, 1.0], "solid")]
    crossings = []
    for series in series_of(lines):
        path = path_of(
            series, lambda line, point: point.speedup, lambda line, point: speedup_text(point)
        )
        traces.append(line_trace(series, path))
        crossings += _crossing_traces(panel, series)
    if crossings:
        crossings.append(_crossing_legend())
    return finished(
        traces + crossings,
        x_title="sequence length (tokens)",
        y_title=f"speed-up over {plot_text(baseline)} (times)",
        lengths=lengths,
        annotations=_crossing_labels(panel),
    )


def speedup_text(point: Point) -> str:
    """The speed-up with both times and its range; empty where the baseline has no number."""
    if point.speedup is None:
        return ""
    times = f"{time_text(point.latency_ms)} against {time_text(point.baseline_ms)}"
    low, high = times_text(point.speedup_low), times_text(point.speedup_high)
    return f"{times_text(point.speedup)} ({times}; quartiles {low} to {high})"


def speedup_cell(panel: Panel, line: Line, point: Point) -> str:
    """The speed-up of a line other than the baseline."""
    return "" if line.provider == panel.baseline else times_text(point.speedup)


def _crossing_traces(panel: Panel, series: Series) -> list[Trace]:
    """Rings where the lines of a series cross the baseline, in one trace; none where none does."""
    found = [(line, crossing) for line in series.lines for crossing in compare(line).crossings]
    baseline = plot_text(label_text(panel.baseline))
    hover = [
        f"<b>{plot_text(line.label)}</b><br>"
        f"crosses {baseline} near {near_length_text(crossing)} tokens"
        for line, crossing in found
    ]
    ring = _ring([crossing for _, crossing in found], series.style.colour)
    more: Trace = {"hovertext": hover, "hoverinfo": "text", "meta": line_meta(series)}
    more["legendgroup"] = series_key(series)
    return [{**ring, **more, "showlegend": False}] if found else []


def _crossing_legend() -> Trace:
    return {**_ring([None], MUTED), "name": "crossover (interpolated)", "hoverinfo": "skip"}


def _ring(x: Sequence[float | None], colour: str) -> Trace:
    return {
        "type": "scatter",
        "x": x,
        "y": [None if crossing is None else 1.0 for crossing in x],
        "mode": "markers",
        "name": "crossover",
        "marker": {
            "symbol": "circle-open",
            "size": 14,
            "color": colour,
            "line": {"width": 2.5, "color": colour},
        },
    }


def _crossing_labels(panel: Panel) -> list[dict[str, Any]]:
    """Names the last crossing of the focus provider's best lines, left and right in turn."""
    last = [(best.crossings[-1], best.line) for best in best_by_lists(panel) if best.crossings]
    last.sort(key=lambda item: item[0])
    return [
        {
            "name": f"line {line.number}",  # which the page's filters ask
            "x": math.log10(crossing),
            "y": 0,
            "text": near_length_text(crossing),
            "font": {"color": line.style.colour, "size": 13},
            "ax": -34 if place % 2 == 0 and len(last) > 1 else 34,
            "ay": 30 + 18 * (place // 2),
            "arrowhead": 0,
            "arrowwidth": 1.2,
            "arrowcolor": line.style.colour,
        }
        for place, (crossing, line) in enumerate(last)
    ]
