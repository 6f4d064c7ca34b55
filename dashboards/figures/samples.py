"""Samples in the order taken, against time, with the clock and the power beside them."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import Any

from dynbench.dashboards.figures.common import (
    LEGEND_OF_LINES,
    Figure,
    Trace,
    figure_of,
    hover_text,
    line_meta,
    series_key,
    series_of,
)
from dynbench.dashboards.model import Facet, Panel
from dynbench.dashboards.samples import sampled
from dynbench.dashboards.text import (
    length_text,
    percent_text,
    plot_text,
    time_text,
    whole_text,
)
from dynbench.dashboards.theme import MUTED, Style

MAX_LINES = 10
"""Lines drawn: more would hide one another."""

_TRACKS = ("latency over its median", "clock (MHz)", "power (W)")  # titles of the axes
_DOMAINS = {  # of so many tracks, from above
    1: ((0.0, 1.0),),
    2: ((0.36, 1.0), (0.0, 0.26)),
    3: ((0.52, 1.0), (0.27, 0.45), (0.0, 0.18)),
}


def samples_figure(facet: Facet, panel: Panel) -> Figure | None:
    """Samples of each line's longest length over time; None where no row has any."""
    found = {line.number: (point, lists) for line, point, lists in sampled(facet, panel)}
    lines = [line for line in panel.lines if line.number in found][:MAX_LINES]
    if not lines:
        return None
    traces: list[Trace] = []
    known = {0}  # tracks with values: a CPU's power is not known
    for series in series_of(lines):
        line = series.lines[0]
        point, lists = found[line.number]
        samples_ms, at_s = lists[0] or [], lists[1] or []
        median_ms = statistics.median(samples_ms)
        ratios = [float(f"{value / median_ms:.5g}") for value in samples_ms]
        tracks = (ratios, lists[2], lists[3])
        for track, values in enumerate(tracks):
            if values is None or len(values) != len(at_s):
                continue
            known.add(track)
            texts = [
                hover_text(line.label, point.seq_len, _text(track, value, samples_ms[place], place))
                for place, value in enumerate(values)
            ]
            trace = _track_trace(track, at_s, values, texts, series.style)
            more = {"customdata": [point.case] * len(values), "meta": line_meta(series)}
            trace |= {**more, "legendgroup": series_key(series), "showlegend": track == 0}
            trace["name"] = plot_text(f"{series.label}, {length_text(point.seq_len)}")
            traces.append(trace)
    entries = [len(t["name"]) for t in traces if t["showlegend"]]
    return figure_of(traces, **_layout(entries, sorted(known)))


def case_figures() -> list[Figure]:
    """The figure of one case in the drawer, by the number of its tracks less one.

    The page fills in the samples: a case without power has two tracks, one without a clock one.
    """
    return [_case_figure(range(count)) for count in _DOMAINS]


def _case_figure(tracks: Sequence[int]) -> Figure:
    style = Style("#0072B2", "solid", "circle")
    traces = [_track_trace(track, [], [], [], style) for track in tracks]
    for trace in traces:
        trace |= {"showlegend": False, "hoverinfo": "x+y"}
    layout = _layout([], tracks)
    layout["yaxis"]["title"]["text"] = "latency (ms)"
    band = {"type": "rect", "xref": "paper", "x0": 0, "x1": 1, "yref": "y", "line": {"width": 0}}
    middle = {"type": "line", "xref": "paper", "x0": 0, "x1": 1, "yref": "y"}
    layout["shapes"] = [
        {**band, "fillcolor": MUTED, "opacity": 0.18, "layer": "below"},
        {**middle, "line": {"color": MUTED, "width": 1.5, "dash": "dash"}},
    ]
    return figure_of(traces, **layout)


def _text(track: int, value: float, sample_ms: float, place: int) -> str:
    shown = (
        f"{time_text(sample_ms)}, {percent_text(value)} of the median",
        f"{whole_text(value)} MHz",
        f"{whole_text(value)} W",
    )[track]
    return f"sample {place + 1}: {shown}"


def _track_trace(
    track: int, x: list[float], y: list[float], hover: list[str], style: Style
) -> Trace:
    mode = {"mode": "lines+markers"} if track == 0 else {"mode": "lines"}
    return {
        "type": "scatter",
        "x": x,
        "y": y,
        "hovertext": hover,
        "hoverinfo": "text",
        "xaxis": "x",
        "yaxis": f"y{_number(track)}",
        **mode,
        "line": {"color": style.colour, "dash": style.dash, "width": 1.5},
        "marker": {"color": style.colour, "symbol": style.symbol, "size": 5},
    }


def _layout(entries: list[int], tracks: Sequence[int]) -> dict[str, Any]:
    axes = {
        f"yaxis{_number(track)}": {
            "title": {"text": _TRACKS[track]},
            "domain": list(domain),
            "nticks": 5 if track == 0 else 3,
            "anchor": "x",
        }
        for track, domain in zip(tracks, _DOMAINS[len(tracks)], strict=True)
    }
    return {
        "height": 460,
        "margin": {"l": 64, "r": 16, "t": 12, "b": 56},
        "hovermode": "closest",
        "showlegend": bool(entries),
        "legend": LEGEND_OF_LINES,
        "meta": {"entries": entries},
        "xaxis": {
            "title": {"text": "seconds since the first sample"},
            "anchor": f"y{_number(tracks[-1])}",
        },
        **axes,
    }


def _number(track: int) -> str:
    """What plotly calls the axis of a track by, behind its letter."""
    return "" if track == 0 else str(track + 1)
