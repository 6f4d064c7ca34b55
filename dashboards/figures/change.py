"""Changes between two runs: a point per case with the interval that the change lies in."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from dynbench.dashboards.change import ORDER, Changes
from dynbench.dashboards.figures.common import LEGEND_BELOW, Figure, Trace, figure_of
from dynbench.dashboards.text import label_text, plot_text, time_text
from dynbench.dashboards.theme import MUTED, OKABE_ITO

MAX_CASES = 60
ROW_HEIGHT_PX = 34
_MARKS = {  # verdict: colour and symbol, so that neither is needed to read the other
    "regressed": ("vermillion", "triangle-right"),
    "improved": ("blue", "triangle-left"),
    "unchanged": ("green", "circle"),
    "ambiguous": ("purple", "diamond"),
    "invalid": ("orange", "x"),
}


def change_figure(changes: Changes) -> Figure | None:
    """The change of each case in per cent, the largest first; None where none has two latencies.

    Of more than MAX_CASES those that ask for attention first are drawn, as they are ordered.
    """
    shown = changes.with_change[:MAX_CASES]
    shown.sort(key=lambda record: -record["change"])
    if not shown:
        return None
    traces = [
        trace
        for verdict in ORDER
        if (trace := _trace(changes, verdict, shown)) is not None  # in one trace, for the legend
    ]
    threshold = max(float(record["threshold"]) for record in shown)
    band = {
        "type": "rect",
        "yref": "paper",
        "y0": 0,
        "y1": 1,
        "x0": -100 * threshold,
        "x1": 100 * threshold,
        "fillcolor": MUTED,
        "opacity": 0.15,
        "line": {"width": 0},
        "layer": "below",
    }
    return figure_of(
        traces,
        height=120 + ROW_HEIGHT_PX * max(2, len(shown)),
        margin={"l": 16, "r": 16, "t": 12, "b": 56},
        hovermode="closest",
        showlegend=True,
        legend=LEGEND_BELOW,
        meta={"entries": [len(trace["name"]) for trace in traces]},
        shapes=[band],
        xaxis={"title": {"text": "change of the median latency (%)"}, "zeroline": True},
        yaxis={
            "range": [len(shown) - 0.5, -0.9],
            "showticklabels": False,
            "ticks": "",
            "showgrid": False,
        },
        annotations=[_name(place, record) for place, record in enumerate(shown)],
    )


def _trace(changes: Changes, verdict: str, shown: list[Mapping[str, Any]]) -> Trace | None:
    held = [(place, r) for place, r in enumerate(shown) if str(r["verdict"]) == verdict]
    if not held:
        return None
    colour, symbol = _MARKS.get(verdict, ("black", "cross"))
    bounds = [
        tuple(record["change"] if value is None else value for value in _bounds(record))
        for _, record in held
    ]
    return {
        "type": "scatter",
        "x": [round(100 * middle, 3) for _, middle, _ in bounds],
        "y": [place for place, _ in held],
        "mode": "markers",
        "name": verdict,
        "hovertext": [_text(record) for _, record in held],
        "hoverinfo": "text",
        "customdata": [changes.places.get(str(r["case_id"]), (None,))[0] for _, r in held],
        "error_x": {
            "type": "data",
            "symmetric": False,
            "array": [round(100 * (high - middle), 3) for _, middle, high in bounds],
            "arrayminus": [round(100 * (middle - low), 3) for low, middle, _ in bounds],
            "thickness": 1.5,
            "color": OKABE_ITO[colour],
        },
        "marker": {"color": OKABE_ITO[colour], "symbol": symbol, "size": 11},
    }


def _bounds(record: Mapping[str, Any]) -> tuple[Any, Any, Any]:
    return record["low"], record["change"], record["high"]


def _text(record: Mapping[str, Any]) -> str:
    label = plot_text(label_text(str(record["label"])))
    low, high = record["low"], record["high"]
    span = "" if low is None or high is None else f" ({100 * low:+.1f} to {100 * high:+.1f} %)"
    return (
        f"<b>{label}</b><br>{record['verdict']}: {100 * record['change']:+.1f} %{span}<br>"
        f"{time_text(record['baseline_ms'])} before, {time_text(record['candidate_ms'])} after"
    )


def _name(place: int, record: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "xref": "paper",
        "x": 0,
        "xanchor": "left",
        "y": place - 0.16,
        "yanchor": "bottom",
        "showarrow": False,
        "text": plot_text(label_text(str(record["label"]))),
    }
