"""What the figures share: series, axes, hover texts and the size of the legend."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import plotly.graph_objects as go

from dynbench.dashboards.labels import lists_text
from dynbench.dashboards.model import Failure, Line, Panel, Point, runs_text
from dynbench.dashboards.samples import short
from dynbench.dashboards.text import label_text, length_text, plain_text, plot_text
from dynbench.dashboards.theme import MUTED, Style

MAX_LEGEND = 32
"""With more lines, those of one provider and list kind share a legend entry (never a line)."""

MAX_BANDS = 12
"""With more lines quartile bands would hide one another: they are left to hover and table."""

PLOT_HEIGHT_PX = 340

LEGEND_BELOW: dict[str, Any] = {
    "orientation": "h",
    "x": 0,
    "xanchor": "left",
    "xref": "container",
    "yref": "container",
    "y": 0,
    "yanchor": "bottom",
}
"""A legend at the foot of the figure."""

LEGEND_OF_LINES = {
    **LEGEND_BELOW,
    "tracegroupgap": 0,
    "itemwidth": 52,  # wide enough to tell the dashes apart
}

Trace = dict[str, Any]
"""A trace as plotly's JSON has it."""


@dataclass(frozen=True)
class Figure:
    """A figure as plotly's JSON has it, without a template: the page brings its own.

    Not plotly's class: a report of many comparisons has thousands of figures, and building and
    copying plotly's took a fifth of a large page's time. The tests have plotly check every kind.
    """

    data: Sequence[Trace]
    layout: Mapping[str, Any]

    @property
    def json(self) -> dict[str, Any]:
        """Both, as the page's script takes them."""
        return {"data": self.data, "layout": self.layout}

    def plotly(self, **layout: Any) -> go.Figure:
        """The same as plotly's class; ``layout`` overrides. Raises ValueError for what is unknown.

        Shares nothing with this figure.
        """
        return go.Figure(data=self.data, layout={**self.layout, **layout})


ValueOf = Callable[[Line, Point], float | None]
TextOf = Callable[[Line, Point], str]


@dataclass(frozen=True)
class Series:
    """One legend entry: a line, or lines of one provider and list kind where there are too many."""

    label: str
    style: Style
    lines: tuple[Line, ...]


def series_of(lines: Sequence[Line]) -> list[Series]:
    """A series per line, or merged ones beyond ``MAX_LEGEND`` lines.

    Merged lines stay apart in the figure (a gap between them) and in the table; exact and hybrid
    lists are never merged.
    """
    if len(lines) <= MAX_LEGEND:
        return [Series(line.label, line.style, (line,)) for line in lines]
    merged: dict[tuple[str, str], list[Line]] = {}
    for line in lines:
        merged.setdefault((line.provider, lists_text(line.settings)), []).append(line)
    return [
        Series(
            held[0].label
            if len(held) == 1
            else f"{label_text(provider)} · {kind or 'any'} ({len(held)} lines)",
            held[0].style,
            tuple(held),
        )
        for (provider, kind), held in merged.items()
    ]


@dataclass
class Path:
    """Coordinates of a series: None separates its lines."""

    x: list[float | None]
    y: list[float | None]
    hover: list[str]
    cases: list[int | None]  # the row that a click opens


def path_of(series: Series, value: ValueOf, text: TextOf, x: ValueOf | None = None) -> Path:
    """Points of a series on logarithmic axes: values missing or not positive are left out."""
    path = Path([], [], [], [])
    for line in series.lines:
        drawn = [(point, _positive(value(line, point))) for point in line.points]
        shown = [(point, y) for point, y in drawn if y is not None]
        if path.x and shown:
            path.x.append(None)
            path.y.append(None)
            path.hover.append("")
            path.cases.append(None)
        for point, y in shown:
            path.x.append(point.seq_len if x is None else _positive(x(line, point)))
            path.y.append(y)
            shown_text = f"{text(line, point)}{runs_text(point)}"
            path.hover.append(hover_text(line.label, point.seq_len, shown_text))
            path.cases.append(point.case)
    return path


def hover_text(label: str, seq_len: float, text: str) -> str:
    """Hover text: the line in bold, the length, the numbers; strings of data are escaped."""
    return f"<b>{plot_text(label)}</b><br>{length_text(seq_len)} tokens: {plot_text(text)}"


def line_trace(series: Series, path: Path) -> Trace:
    """The trace of a series: line, dash and marker of its style."""
    style = series.style
    return {
        "type": "scatter",
        "x": path.x,
        "y": path.y,
        "hovertext": path.hover,
        "hoverinfo": "text",
        "customdata": path.cases,
        "meta": line_meta(series),
        "mode": "lines+markers",
        "name": plot_text(series.label),
        "legendgroup": series_key(series),
        "line": {"color": style.colour, "dash": style.dash, "width": 2.25},
        "marker": {"color": style.colour, "symbol": style.symbol, "size": 8},
    }


def mark_trace(series: Series, marks: Path, *, in_legend: bool) -> Trace:
    """Crosses in a series' colour: rows that failed. ``in_legend`` where it has nothing else."""
    colour = series.style.colour
    return {
        "type": "scatter",
        "x": marks.x,
        "y": marks.y,
        "hovertext": marks.hover,
        "hoverinfo": "text",
        "customdata": marks.cases,
        "meta": line_meta(series),
        "mode": "markers",
        "name": plot_text(series.label),
        "legendgroup": series_key(series),
        "showlegend": in_legend,
        "marker": {
            "color": colour,
            "symbol": "x",
            "size": 10,
            "line": {"width": 1.5, "color": MUTED},
        },
    }


def line_meta(series: Series) -> dict[str, Any]:
    """What the page's filters ask of a trace: the numbers of its lines."""
    return {"lines": [line.number for line in series.lines]}


def series_key(series: Series) -> str:
    """Groups the traces of one series, so that its legend entry switches them together."""
    return str(series.lines[0].number)


def finished(
    traces: list[Trace],
    *,
    x_title: str,
    y_title: str,
    lengths: Sequence[int] = (),
    y_axis: Mapping[str, Any] | None = None,
    **layout: Any,
) -> Figure:
    """The figure with logarithmic axes, their titles and a legend below the plot.

    ``lengths`` puts the ticks of the x axis at sequence lengths, ``y_axis`` overrides the other's.
    The page's script adds the height of the legend to ``PLOT_HEIGHT_PX`` once it knows how wide the
    figure is; it finds the characters of each entry in ``layout.meta``.
    """
    x_ticks = (
        length_ticks(lengths) if lengths else log_ticks([x for trace in traces for x in trace["x"]])
    )
    y_ticks = log_ticks([y for trace in traces for y in trace["y"]]) | dict(y_axis or {})
    return plot_of_lines(
        traces,
        xaxis={"type": "log", "title": {"text": x_title}, **x_ticks},
        yaxis={"type": "log", "title": {"text": y_title}, **y_ticks},
        **layout,
    )


def plot_of_lines(traces: list[Trace], **layout: Any) -> Figure:
    """One plot with any axes and a legend below it, whose height the page's script adds."""
    return figure_of(
        traces,
        height=PLOT_HEIGHT_PX,
        margin={"l": 64, "r": 16, "t": 12, "b": 56},
        hovermode="closest",
        showlegend=True,
        legend=LEGEND_OF_LINES,
        meta={"entries": entries_of(traces)},
        **layout,
    )


def entries_of(traces: Sequence[Trace]) -> list[int]:
    """Characters of each entry in the legend: the page makes room for them."""
    return [len(t["name"]) for t in traces if t.get("showlegend", True) and t["x"]]


def figure_of(traces: list[Trace], **layout: Any) -> Figure:
    """The figure of these traces and this layout."""
    return Figure(traces, layout)


def length_ticks(lengths: Sequence[int]) -> dict[str, Any]:
    """Ticks at the lengths themselves, thinned to powers of two where there are many."""
    if not lengths:
        return {}
    ticks = [float(seq_len) for seq_len in lengths]
    if len(ticks) > 8:
        low, high = math.ceil(math.log2(min(ticks))), math.floor(math.log2(max(ticks)))
        step = max(1, math.ceil((high - low + 1) / 8))
        ticks = [2.0**power for power in range(low, high + 1, step)] or ticks[::8]
    margin = 0.06 * max(1.0, math.log10(max(lengths) / min(lengths)))
    return {
        "tickvals": ticks,
        "ticktext": [length_text(tick) for tick in ticks],
        "range": [math.log10(min(lengths)) - margin, math.log10(max(lengths)) + margin],
    }


def log_ticks(values: Sequence[float | None]) -> dict[str, Any]:
    """Range and plainly written ticks (1, 2, 5 a decade, or fewer) of a logarithmic axis.

    The range spans at least two thirds of a decade: noise must not look like a trend.
    """
    known = [math.log10(value) for value in values if value is not None and value > 0]
    if not known:
        return {}
    low, high = min(known), max(known)
    room = max(0.06 * (high - low), (0.66 - (high - low)) / 2, 0.04)
    low, high = low - room, high + room
    decades = range(math.floor(low), math.ceil(high) + 1)
    steps: tuple[float, ...] = (1, 2, 5) if high - low <= 3.4 else (1,)
    if high - low < 1:
        steps = (1, 1.5, 2, 3, 4, 5, 6, 8)
    ticks = [step * 10.0**decade for decade in decades for step in steps]
    ticks = [tick for tick in ticks if low <= math.log10(tick) <= high]
    thin = math.ceil(len(ticks) / 10) if len(steps) == 1 and ticks else 1
    return {
        "range": [low, high],
        "tickvals": ticks[::thin],
        "ticktext": [plain_text(tick) for tick in ticks[::thin]],
    }


def failures(panel: Panel, *statuses: str) -> Iterator[tuple[Line, Failure]]:
    """Lines and failures with one of ``statuses`` at lengths without a number."""
    for line in panel.lines:
        for _, failure in sorted(line.failed_lengths.items()):
            if failure.status in statuses:
                yield line, failure


def reference_line(text: str, x: list[float], y: list[float], dash: str = "dash") -> Trace:
    """A muted line that is no provider's: a ceiling, a tolerance, the baseline."""
    return {
        "type": "scatter",
        "x": x,
        "y": y,
        "mode": "lines",
        "name": plot_text(text),
        "hovertext": [plot_text(text)] * len(x),
        "hoverinfo": "text",
        "line": {"color": MUTED, "dash": dash, "width": 1.5},
    }


def _positive(value: float | None) -> float | None:
    """The value with six significant digits (the page stays small), None unless above 0."""
    return short(value) if value is not None and value > 0 else None
