"""Speed-up over the baseline, with the lengths marked at which a line crosses it."""

from __future__ import annotations

import math

import plotly.graph_objects as go

from dynbench.dashboards.compare import best_by_lists, compare
from dynbench.dashboards.figures.common import (
    Series,
    finished,
    length_ticks,
    line_trace,
    path_of,
    reference_line,
    series_key,
    series_of,
)
from dynbench.dashboards.model import Line, Panel, Point
from dynbench.dashboards.text import label_text, near_length_text, plot_text, time_text, times_text
from dynbench.dashboards.theme import MUTED


def speedup_figure(panel: Panel) -> go.Figure | None:
    """Speed-up over length, both logarithmic; None where nothing can be compared."""
    lines = [
        line for line in panel.lines if line.provider != panel.baseline and compare(panel, line).gains
    ]
    if not lines:
        return None
    baseline = label_text(panel.baseline)
    lengths = [seq_len for seq_len in panel.lengths if seq_len in panel.baseline_points]
    low, high = (10**power for power in length_ticks(lengths)["range"])
    traces: list[go.Scatter] = [reference_line(f"{baseline} = 1", [low, high], [1.0, 1.0], "solid")]
    for series in series_of(lines):
        path = path_of(
            series,
            lambda line, point: speedup_at(panel, point),
            lambda line, point: speedup_text(panel, point),
        )
        traces.append(line_trace(series, path))
        crossing = _crossing_trace(panel, series)
        if crossing is not None:
            traces.append(crossing)
    figure = finished(
        traces,
        x_title="sequence length (tokens)",
        y_title=f"speed-up over {plot_text(baseline)} (times)",
        lengths=lengths,
    )
    if any(trace.name == "crossover" for trace in traces):
        figure.add_trace(_crossing_legend())
        figure.layout.meta["entries"].append(24)
        _label_crossings(figure, panel)
    return figure


def speedup_at(panel: Panel, point: Point) -> float | None:
    """How many times as fast as the baseline; None where the baseline has no number."""
    reference = panel.baseline_points.get(point.seq_len)
    return reference.latency_ms / point.latency_ms if reference else None


def speedup_text(panel: Panel, point: Point) -> str:
    """The speed-up with both times."""
    reference = panel.baseline_points.get(point.seq_len)
    if reference is None:
        return ""
    ratio = times_text(reference.latency_ms / point.latency_ms)
    return f"{ratio} ({time_text(point.latency_ms)} against {time_text(reference.latency_ms)})"


def speedup_cell(panel: Panel, line: Line, point: Point) -> str:
    """The speed-up of a line other than the baseline."""
    return "" if line.provider == panel.baseline else times_text(speedup_at(panel, point))


def _crossing_trace(panel: Panel, series: Series) -> go.Scatter | None:
    """Rings where the lines of a series cross the baseline; None where none does."""
    found = [
        (line, crossing) for line in series.lines for crossing in compare(panel, line).crossings
    ]
    if not found:
        return None
    baseline = plot_text(label_text(panel.baseline))
    return go.Scatter(
        x=[crossing for _, crossing in found],
        y=[1.0] * len(found),
        hovertext=[
            f"<b>{plot_text(line.label)}</b><br>crosses {baseline} near {near_length_text(crossing)} tokens"
            for line, crossing in found
        ],
        hoverinfo="text",
        mode="markers",
        name="crossover",
        legendgroup=series_key(series),
        showlegend=False,
        marker={
            "symbol": "circle-open",
            "size": 14,
            "color": series.style.colour,
            "line": {"width": 2.5, "color": series.style.colour},
        },
    )


def _label_crossings(figure: go.Figure, panel: Panel) -> None:
    """Writes the last crossing of the focus provider's best line of each list kind, sides in turn."""
    last = [(best.crossings[-1], best.line) for best in best_by_lists(panel) if best.crossings]
    for place, (crossing, line) in enumerate(sorted(last, key=lambda item: item[0])):
        to_the_left = place % 2 == 0 and len(last) > 1
        figure.add_annotation(
            x=math.log10(crossing),
            y=0,
            text=near_length_text(crossing),
            font={"color": line.style.colour, "size": 13},
            ax=-34 if to_the_left else 34,
            ay=30 + 18 * (place // 2),
            arrowhead=0,
            arrowwidth=1.2,
            arrowcolor=line.style.colour,
        )


def _crossing_legend() -> go.Scatter:
    return go.Scatter(
        x=[None],
        y=[None],
        mode="markers",
        name="crossover (interpolated)",
        hoverinfo="skip",
        marker={"symbol": "circle-open", "size": 13, "color": MUTED, "line": {"width": 2.5}},
    )
