"""Where the time goes: one bar a case, its stages stacked as shares of the whole call."""

from __future__ import annotations

import math

from dynbench.dashboards.figures.common import LEGEND_BELOW, Figure, Trace, figure_of, hover_text
from dynbench.dashboards.model import Line, Panel, Point, runs_text
from dynbench.dashboards.stages import OTHER, Breakdown
from dynbench.dashboards.text import length_text, plot_text, time_text
from dynbench.dashboards.theme import MUTED, OKABE_ITO

ROW_HEIGHT_PX = 46  # a bar and its name above it, which would take the room beside it
MAX_NAMED_BARS = 40
"""With more bars than this the figure grows no taller and names every second, third ... bar."""

_COLOURS = [colour for name, colour in OKABE_ITO.items() if name != "black"]
_BAR_SHARE = 0.45  # of a row
_PATTERNS = ("", "/", "x", ".")  # one round of colours each


def stages_figure(panel: Panel) -> Figure | None:
    """Stacked bars, 100 % being the whole call's median; None where no row has stages.

    What the stages leave of the median is ``other``. They come from calls of their own, so a bar
    may end a little beyond 100 %.
    """
    found = [(line, p, p.stages) for line in panel.lines for p in line.points]
    bars = [(line, point, stages) for line, point, stages in found if stages is not None]
    if not bars:
        return None
    names = dict.fromkeys(name for *_, stages in bars for name, _ in stages.parts)
    traces = [_trace(name, place, bars) for place, name in enumerate(names)]
    traces.append(_trace(OTHER, None, bars))
    named = list(range(0, len(bars), math.ceil(len(bars) / MAX_NAMED_BARS)))
    return figure_of(
        traces,
        height=80 + ROW_HEIGHT_PX * min(max(2, len(bars)), MAX_NAMED_BARS),
        margin={"l": 16, "r": 16, "t": 12, "b": 56},
        barmode="stack",
        bargap=1 - _BAR_SHARE,
        hovermode="closest",
        showlegend=True,
        legend={**LEGEND_BELOW, "traceorder": "normal"},
        meta={
            "entries": [len(trace["name"]) for trace in traces],
            "rows": [line.number for line, *_ in bars],
        },
        xaxis={
            "title": {"text": "share of the whole call's median"},
            "tickformat": ".0%",
            "rangemode": "tozero",
        },
        yaxis={
            "range": [len(bars) - 1 + _BAR_SHARE, -1 + _BAR_SHARE / 2],
            "showticklabels": False,
            "ticks": "",
            "showgrid": False,
        },
        annotations=[_bar_name(place, *bars[place][:2]) for place in named],
    )


def _trace(name: str, place: int | None, bars: list[tuple[Line, Point, Breakdown]]) -> Trace:
    """One stage of all bars that have it; ``place`` among the stages, None for what they leave."""
    x, y, hover, cases = [], [], [], []
    for at, (line, point, stages) in enumerate(bars):
        ms = dict(stages.with_other).get(name)
        if ms is None:
            continue
        x.append(float(f"{stages.share(ms):.4g}"))
        y.append(at)
        cases.append(point.case)
        text = f"{name} {time_text(ms)}, {stages.share_text(ms)}"
        sums = f"stages {time_text(stages.sum_ms)} of {time_text(stages.whole_ms)}"
        hover.append(hover_text(line.label, point.seq_len, f"{text}; {sums}{runs_text(point)}"))
    return {
        "type": "bar",
        "orientation": "h",
        "x": x,
        "y": y,
        "name": plot_text(name),
        "hovertext": hover,
        "hoverinfo": "text",
        "customdata": cases,
        "marker": _marker(place),
    }


def _marker(place: int | None) -> Trace:
    if place is None:
        return {"color": MUTED}
    turn, colour = divmod(place, len(_COLOURS))
    return {
        "color": _COLOURS[colour],
        "pattern": {"shape": _PATTERNS[turn % len(_PATTERNS)]},
    }


def _bar_name(place: int, line: Line, point: Point) -> Trace:
    """The case's name, just above its bar."""
    return {
        "x": 0,
        "xanchor": "left",
        "y": place - _BAR_SHARE / 2,
        "yanchor": "bottom",
        "text": plot_text(f"{line.label}, {length_text(point.seq_len)}"),
        "showarrow": False,
    }
