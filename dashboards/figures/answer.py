"""The figure of the first screen: from which length the focus provider pays, pass by pass."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import plotly.graph_objects as go

from dynbench.dashboards.compare import Comparison, best_by_lists
from dynbench.dashboards.figures.common import (
    Series,
    Trace,
    figure_of,
    length_ticks,
    line_trace,
    log_ticks,
    path_of,
)
from dynbench.dashboards.figures.speedup import speedup_text
from dynbench.dashboards.labels import lists_text
from dynbench.dashboards.model import Facet, Panel
from dynbench.dashboards.text import label_text, plot_text, times_text
from dynbench.dashboards.theme import MUTED, OKABE_ITO, translucent

HEIGHT_PX = 330
MAX_PASSES = 3
_GAP = 0.05


def answer_figure(facet: Facet) -> go.Figure | None:
    """Speed-up of the best line of each list kind over length, a plot per pass; None without any.

    The bars span the quartiles; above 1, in the green field, the line is faster than the baseline.
    """
    found = [(panel, best_by_lists(panel)) for panel in facet.panels]
    found = [(panel, best) for panel, best in found if best][:MAX_PASSES]
    if not found:
        return None
    gains = [gain for _, best in found for held in best for gain in held.gains]
    y_axis = log_ticks([1.0, *(g.low for g in gains), *(g.high for g in gains)])
    low, high = y_axis["range"]
    traces: list[Trace] = []
    shapes: list[dict[str, Any]] = []
    for suffix, (_, best) in zip(_suffixes(found), found, strict=True):
        traces += [_trace(held, suffix) for held in best]
        shapes += _fields(suffix, high)
    title = f"speed-up over {plot_text(label_text(facet.baseline))} (times)"
    beside = _layout(found, y_axis, title, high - low, stacked=False)
    return figure_of(
        traces,
        margin={"l": 58, "r": 10, "t": 30, "b": 52},
        hovermode="closest",
        showlegend=False,
        shapes=shapes,
        meta={
            "entries": [],
            "narrow": _layout(found, y_axis, title, high - low, stacked=True),
        },
        **beside,
    )


def _suffixes(found: Sequence[Any]) -> list[str]:
    """What plotly calls the axes of each plot by."""
    return ["" if place == 0 else str(place + 1) for place in range(len(found))]


def _layout(
    found: list[tuple[Panel, list[Comparison]]],
    y_axis: dict[str, Any],
    title: str,
    decades: float,
    *,
    stacked: bool,
) -> dict[str, Any]:
    """Axes and names of the plots, side by side, or one below the other in a narrow window."""
    gap = _GAP * (3 if stacked else 1)
    share = (1 - gap * (len(found) - 1)) / len(found)
    axes: dict[str, Any] = {}
    notes: list[dict[str, Any]] = []
    for place, (suffix, (panel, best)) in enumerate(zip(_suffixes(found), found, strict=True)):
        start = place * (share + gap)
        x_domain = [0.0, 1.0] if stacked else [start, start + share]
        y_domain = [1 - start - share, 1 - start] if stacked else [0.0, 1.0]
        lengths = sorted({gain.seq_len for held in best for gain in held.gains})
        ticks = length_ticks(lengths)
        first, last = ticks["range"]
        ticks["range"] = [first, last + 0.3 * (last - first)]  # room for the names at the right
        axes[f"xaxis{suffix}"] = {
            "type": "log",
            "domain": x_domain,
            "anchor": f"y{suffix}",
            "title": {"text": "sequence length (tokens)"},
            **ticks,
        }
        if stacked and place < len(found) - 1:
            axes[f"xaxis{suffix}"]["title"] = {"text": ""}
        axes[f"yaxis{suffix}"] = {
            "type": "log",
            "domain": y_domain,
            "anchor": f"x{suffix}",
            **({"title": {"text": title}} if stacked or not place else {"showticklabels": False}),
            **y_axis,
        }
        notes += _names(best, suffix, decades)
        notes.append(_pass_name(panel, x_domain[0], y_domain[1]))
    height = HEIGHT_PX * (len(found) if stacked else 1)
    return {"height": height, "annotations": notes, **axes}


def _trace(comparison: Comparison, suffix: str) -> Trace:
    line = comparison.line
    series = Series(line.label, line.style, (line,))
    path = path_of(series, lambda _, point: point.speedup, lambda _, point: speedup_text(point))
    shown = {gain.seq_len: gain for gain in comparison.gains}
    held = [shown[int(x)] for x in path.x if x is not None]
    trace = line_trace(series, path)
    trace |= {"xaxis": f"x{suffix}", "yaxis": f"y{suffix}", "cliponaxis": False}
    trace["error_y"] = {
        "type": "data",
        "symmetric": False,
        "array": [max(0.0, gain.high - gain.speedup) for gain in held],
        "arrayminus": [max(0.0, gain.speedup - gain.low) for gain in held],
        "thickness": 2,
        "width": 0,
        "color": line.style.colour,
    }
    return trace


def _names(best: list[Comparison], suffix: str, decades: float) -> list[dict[str, Any]]:
    """List kind and speed-up at the end of each line, moved apart where they would overlap."""
    ends = sorted(best, key=lambda held: -held.gains[-1].speedup)
    apart = 0.17 * decades
    heights: list[float] = []
    for held in ends:
        height = math.log10(held.gains[-1].speedup)
        heights.append(min(height, heights[-1] - apart) if heights else height)
    return [
        {
            "name": f"line {held.line.number}",
            "xref": f"x{suffix}",
            "yref": f"y{suffix}",
            "x": math.log10(held.gains[-1].seq_len),
            "y": height,
            "xanchor": "left",
            "xshift": 10,
            "align": "left",
            "showarrow": False,
            "text": f"<b>{times_text(held.gains[-1].speedup)}</b><br>"
            + plot_text(lists_text(held.line.settings) or held.line.label),
            "font": {"size": 12},
        }
        for held, height in zip(ends, heights, strict=True)
    ]


def _pass_name(panel: Panel, left: float, top: float) -> dict[str, Any]:
    return {
        "xref": "paper",
        "yref": "paper",
        "x": left,
        "y": top,
        "xanchor": "left",
        "yanchor": "bottom",
        "showarrow": False,
        "text": f"<b>{plot_text(label_text(panel.title))}</b>: above 1 it pays",
    }


def _fields(suffix: str, high: float) -> list[dict[str, Any]]:
    """The green field above 1, and the line at 1."""
    where = {"xref": f"x{suffix} domain", "x0": 0, "x1": 1, "yref": f"y{suffix}", "layer": "below"}
    return [
        {
            **where,
            "type": "rect",
            "y0": 1,
            "y1": 10**high,
            "fillcolor": translucent(OKABE_ITO["green"], 0.1),
            "line": {"width": 0},
        },
        {**where, "type": "line", "y0": 1, "y1": 1, "line": {"color": MUTED, "width": 1.5}},
    ]
