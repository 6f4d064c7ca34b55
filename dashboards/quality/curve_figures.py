"""Training curves, and activation and gates layer by layer: means over seeds with their bands."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from dynbench.dashboards.figures.common import (
    LEGEND_OF_LINES,
    MAX_BANDS,
    Figure,
    Trace,
    entries_of,
    figure_of,
    plot_of_lines,
)
from dynbench.dashboards.quality.curves import MeanCurve, MeanCurves, spread
from dynbench.dashboards.quality.model import Config
from dynbench.dashboards.samples import short
from dynbench.dashboards.tables import Group, Table
from dynbench.dashboards.text import label_text, number_text, percent_text, plot_text
from dynbench.dashboards.theme import translucent

TABLE_STEPS = 8
"""Steps of a curve that its table has."""

GATES = {
    "gate_compressed": "compressed",
    "gate_selected": "selected",
    "gate_sliding": "sliding",
}
_GATE_TRACKS = ((0.7, 1.0), (0.35, 0.65), (0.0, 0.3))


@dataclass(frozen=True)
class Kind:
    """One column of the curves: how its axis and its cells are written."""

    column: str
    title: str
    axis: str
    scale: float = 1.0
    is_share: bool = False

    def show(self, value: float) -> str:
        """A value in the table."""
        return percent_text(value) if self.is_share else number_text(value, 4)


TRAIN_LOSS = Kind("train_loss", "Training loss", "loss of the batch (nats)")
EVAL_LOSS = Kind("eval_loss", "Held-out loss", "held-out loss (nats)")
EVAL_ACCURACY = Kind("eval_accuracy", "Held-out accuracy", "held-out accuracy (%)", 100.0, True)
ACTIVATION = Kind("activation_rate", "Activation", "open neurons (%)", 100.0, True)
STEP_KINDS = (TRAIN_LOSS, EVAL_LOSS, EVAL_ACCURACY)


@dataclass(frozen=True)
class Curve:
    """A configuration with its mean curve."""

    config: Config
    held: MeanCurve


def curves_with(
    all_curves: Mapping[int, MeanCurves], configs: Sequence[Config], layer: str, column: str
) -> list[Curve]:
    """The configurations that have this column of this layer (empty: of the step)."""
    found = ((config, all_curves.get(config.number, {}).get((layer, column))) for config in configs)
    return [Curve(config, held) for config, held in found if held is not None]


def curve_figure(curves: Sequence[Curve], kind: Kind, limit: int | None) -> Figure | None:
    """Curves over steps, of at most ``limit`` points each; None without any.

    A loss has its axis from the steps after the first tenth: what comes before dwarfs the rest.
    """
    if not curves:
        return None
    traces = _traces(curves, kind.scale, limit, "")
    y_axis: dict[str, Any] = {"title": {"text": kind.axis}, "range": _range(curves, kind)}
    return plot_of_lines(
        traces,
        xaxis={"title": {"text": "optimizer step"}, "rangemode": "tozero"},
        yaxis=y_axis,
    )


def gates_figure(by_gate: Mapping[str, Sequence[Curve]], limit: int | None) -> Figure | None:
    """The mean gate of each branch over steps, one plot below the other; None without any."""
    if not any(by_gate.values()):
        return None
    traces: list[Trace] = []
    axes: dict[str, Any] = {}
    named: set[int] = set()
    for place, (column, branch) in enumerate(GATES.items()):
        suffix = "" if place == 0 else str(place + 1)
        of_gate = _traces(by_gate.get(column, ()), 1.0, limit, suffix)
        for trace in of_gate:  # one entry in the legend for a configuration's three gates
            (number,) = trace["meta"]["lines"]
            if trace.get("showlegend", True):
                trace["showlegend"] = number not in named
                named.add(number)
        traces += of_gate
        axes[f"yaxis{suffix}"] = {
            "title": {"text": branch},
            "domain": list(_GATE_TRACKS[place]),
            "range": [-0.02, 1.02],
            "tickvals": [0, 0.5, 1],
            "anchor": "x",
        }
    return figure_of(
        traces,
        height=460,
        margin={"l": 64, "r": 16, "t": 12, "b": 56},
        hovermode="closest",
        showlegend=True,
        legend=LEGEND_OF_LINES,
        meta={"entries": entries_of(traces)},
        xaxis={"title": {"text": "optimizer step"}, "anchor": "y3", "rangemode": "tozero"},
        **axes,
    )


def curve_table(curves: Sequence[Curve], kind: Kind, caption: str) -> Table | None:
    """A row per configuration, at steps spread over the training; None without any."""
    steps = _table_steps([curve.held for curve in curves])
    if not steps:
        return None
    groups = tuple(
        Group(curve.config.label, (_cells(curve.held, steps, kind),), curve.config.number)
        for curve in curves
    )
    return Table(f"{caption}: {_WHAT}", _columns("configuration", steps), groups)


def gates_table(by_gate: Mapping[str, Sequence[Curve]], caption: str) -> Table | None:
    """Of each configuration a row per branch; None without any."""
    steps = _table_steps([curve.held for held in by_gate.values() for curve in held])
    if not steps:
        return None
    rows: dict[int, list[tuple[str, ...]]] = {}
    labels: dict[int, str] = {}
    for column, branch in GATES.items():
        kind = Kind(column, branch, branch)
        for curve in by_gate.get(column, ()):
            place = curve.config.number
            labels[place] = curve.config.label
            rows.setdefault(place, []).append((branch, *_cells(curve.held, steps, kind)))
    groups = tuple(Group(labels[place], tuple(held), place) for place, held in rows.items())
    columns = _columns("configuration", steps)
    return Table(
        f"{caption}: {_WHAT}", (columns[0], "branch", *columns[1:]), groups, text=("branch",)
    )


_MOST_MARKERS = 8  # on a curve: they tell its dash from another's without hiding it
_WHAT = "mean over seeds and its 95 % interval, by optimizer step"


def _columns(first: str, steps: Sequence[int]) -> tuple[str, ...]:
    return (first, "seeds", *(f"step {step}" for step in steps))


def _cells(held: MeanCurve, steps: Sequence[int], kind: Kind) -> tuple[str, ...]:
    places = {int(step): place for place, step in enumerate(held.steps)}
    cells = []
    for step in steps:
        place = places.get(step)
        if place is None:
            cells.append("")
            continue
        text = kind.show(float(held.mean[place]))
        if held.low is not None and held.high is not None:
            low = kind.show(float(held.low[place])).removesuffix(" %")
            text += f" ({low}–{kind.show(float(held.high[place]))})"
        cells.append(text)
    return (str(held.seeds), *cells)


def _table_steps(curves: Sequence[MeanCurve]) -> list[int]:
    """Steps that all curves have, or where there is none that any has; spread."""
    if not curves:
        return []
    sets = [{int(step) for step in held.steps} for held in curves]
    common = set.intersection(*sets) or set.union(*sets)
    kept = spread([str(step) for step in sorted(common)], TABLE_STEPS)
    return [int(step) for step in kept]


def _traces(curves: Sequence[Curve], scale: float, limit: int | None, suffix: str) -> list[Trace]:
    bands = len(curves) <= MAX_BANDS
    traces: list[Trace] = []
    for curve in curves:
        if bands and (band := _band(curve, scale, limit, suffix)) is not None:
            traces.append(band)
    return traces + [_line(curve, scale, limit, suffix) for curve in curves]


def _line(curve: Curve, scale: float, limit: int | None, suffix: str) -> Trace:
    held, config = curve.held.thinned(limit), curve.config
    name = config.label if held.seeds > 1 else f"{config.label} (one seed)"
    return {
        **_place(curve, suffix),
        "x": [int(step) for step in held.steps],
        "y": [short(scale * float(value)) for value in held.mean],
        "hovertext": f"<b>{plot_text(label_text(name))}</b>",
        "hoverinfo": "x+y+text",
        "customdata": [config.cases[-1]] * len(held.steps),
        "mode": "lines+markers",
        "name": plot_text(label_text(name)),
        "line": {"color": config.line.style.colour, "dash": config.line.style.dash, "width": 2},
        "marker": {
            "color": config.line.style.colour,
            "symbol": config.line.style.symbol,
            "size": 6,
            "maxdisplayed": _MOST_MARKERS,
        },
    }


def _band(curve: Curve, scale: float, limit: int | None, suffix: str) -> Trace | None:
    held = curve.held.thinned(limit)
    if held.low is None or held.high is None:
        return None
    steps = [int(step) for step in held.steps]
    low, high = ([short(scale * float(v)) for v in ends] for ends in (held.low, held.high))
    return {
        **_place(curve, suffix),
        "x": [*steps, *reversed(steps)],
        "y": [*high, *reversed(low)],
        "mode": "lines",
        "fill": "toself",
        "fillcolor": translucent(curve.config.line.style.colour, 0.14),
        "line": {"width": 0},
        "hoverinfo": "skip",
        "showlegend": False,
    }


def _place(curve: Curve, suffix: str) -> Trace:
    return {
        "type": "scatter",
        "xaxis": "x",
        "yaxis": f"y{suffix}",
        "meta": {"lines": [curve.config.number]},
        "legendgroup": str(curve.config.number),
    }


def _range(curves: Sequence[Curve], kind: Kind) -> list[float]:
    """The range of the means; of a loss those after the first tenth of the steps."""
    kept = []
    for curve in curves:
        late = curve.held.steps >= 0.1 * curve.held.steps.max()
        kept.append(curve.held.mean if kind.is_share else curve.held.mean[late])
    values = kind.scale * np.concatenate(kept)
    low, high = float(values.min()), float(values.max())
    room = 0.1 * ((high - low) or abs(high) or 1.0)
    low, high = low - room, high + room
    if kind.is_share:
        low, high = max(low, -1.0), min(high, 101.0)
    return [short(low), short(high)]
