"""Speed-up over the baseline as a map: sparsity setting by sequence length."""

from __future__ import annotations

import math
from typing import Any

from dynbench.dashboards.figures.common import Figure, Trace, figure_of, hover_text
from dynbench.dashboards.figures.speedup import speedup_text
from dynbench.dashboards.labels import settings_text
from dynbench.dashboards.model import Line, Panel, runs_text
from dynbench.dashboards.tables import NOT_MEASURED
from dynbench.dashboards.text import (
    label_text,
    length_text,
    percent_text,
    plain_text,
    plot_text,
    times_text,
)

ROW_HEIGHT_PX = 34
MAX_NAMED_ROWS = 40
"""With more rows than this the map grows no taller and names every second, third ... row."""

MAX_TEXTS = 400
"""Beyond this many cells the numbers are left to hover and table."""

_NARROW = {
    "out_of_memory": "no<br>memory",
    "unsupported": "un-<br>supported",
    "unavailable": "un-<br>available",
    NOT_MEASURED: "not<br>measured",
}


def heatmap_lines(panel: Panel) -> list[Line]:
    """Sparse lines with a speed-up, and those that failed at every length: the table's."""
    return [
        line
        for line in panel.lines
        if line.is_sparse and (not line.points or any(p.speedup for p in line.points))
    ]


def heatmap_figure(panel: Panel) -> Figure | None:
    """A row per provider, list kind and sparsity setting, a column per length; None without any
    speed-up.

    The colour is the logarithm of the speed-up, centred on 1; the setting stands at the row, the
    sparsity measured in the hover text.
    """
    lines = heatmap_lines(panel)
    if not any(line.points for line in lines):
        return None
    lengths = sorted({seq_len for line in lines for seq_len in line.lengths})
    rows = [_row(line, lengths) for line in lines]
    written = len(rows) * len(lengths) <= MAX_TEXTS
    extent = max((abs(z) for row in rows for z in row[0] if z is not None), default=1.0) or 1.0
    heat = {
        "type": "heatmap",
        "x": [length_text(seq_len) for seq_len in lengths],
        "y": list(range(len(lines))),
        "z": [row[0] for row in rows],
        "hovertext": [row[2] for row in rows],
        "customdata": [_cases(line, lengths) for line in lines],
        "hoverinfo": "text",
        "zmid": 0,
        "zmin": -extent,
        "zmax": extent,
        "xgap": 2,
        "ygap": 2,
        "colorbar": _colorbar(extent),
    }
    if written:
        heat |= {"text": [row[1] for row in rows], "texttemplate": "%{text}"}
    named = list(range(0, len(lines), math.ceil(len(lines) / MAX_NAMED_ROWS)))
    return figure_of(
        [heat, _empty_cells(heat, lines, lengths)] if written else [heat],
        height=130 + ROW_HEIGHT_PX * min(max(3, len(lines)), MAX_NAMED_ROWS),
        margin={"l": 16, "r": 16, "t": 12, "b": 56},
        meta={"entries": [], "rows": [line.number for line in lines]},
        xaxis={"type": "category", "title": {"text": "sequence length (tokens)"}},
        yaxis={
            "tickvals": named,
            "ticktext": [_row_name(lines[row]) for row in named],
            "autorange": "reversed",
            "showgrid": False,
        },
    )


def _empty_cells(heat: Trace, lines: list[Line], lengths: list[int]) -> Trace:
    """Why a cell has no colour: how the case failed, or that there was none.

    A map without colour of its own, since plotly fits the text of a map to its cells.
    """
    words = []
    for line in lines:
        in_row = dict.fromkeys(set(lengths) - line.lengths, _short(NOT_MEASURED))
        in_row |= {s: _short(failure.status) for s, failure in line.failed_lengths.items()}
        words.append([in_row.get(seq_len, "") for seq_len in lengths])
    return {
        **{name: heat[name] for name in ("type", "x", "y", "xgap", "ygap")},
        "z": [[0 if word else None for word in in_row] for in_row in words],
        "text": words,
        "texttemplate": "%{text}",
        "hoverinfo": "skip",
        "colorscale": [[0, "rgba(0,0,0,0)"], [1, "rgba(0,0,0,0)"]],
        "showscale": False,
    }


def _row(line: Line, lengths: list[int]) -> tuple[list[float | None], list[str], list[str]]:
    at = {point.seq_len: point for point in line.points}
    z: list[float | None] = []
    texts, hovers = [], []
    for seq_len in lengths:
        point = at.get(seq_len)
        if point is None or point.speedup is None:
            z.append(None)
            texts.append("")
            hovers.append("")
            continue
        z.append(round(math.log2(point.speedup), 4))
        texts.append(times_text(point.speedup))
        measured = percent_text(point.sparsity)
        left_out = f"; {measured} of the pairs left out" if measured else ""
        text = f"{speedup_text(point)}{left_out}{runs_text(point)}"
        hovers.append(hover_text(line.label, seq_len, text))
    return z, texts, hovers


def _cases(line: Line, lengths: list[int]) -> list[int | None]:
    """The row that a click on each cell opens."""
    at = {s: failure.case for s, failure in line.failed_lengths.items()}
    at |= {point.seq_len: point.case for point in line.points}
    return [at.get(seq_len) for seq_len in lengths]


def _row_name(line: Line) -> str:
    setting = settings_text(line.settings)
    short = setting.split(" blocks")[0].split(", window")[0].replace("asked ", "")
    name = line.label if not short or short in line.label else f"{line.label} · {short}"
    return plot_text(label_text(name)).replace(" · ", "<br>", 1)


def _short(status: str) -> str:
    """A status as text for a narrow cell."""
    return _NARROW.get(status, plot_text(label_text(status)))


def _colorbar(extent: float) -> dict[str, Any]:
    powers = range(-math.floor(extent), math.floor(extent) + 1)
    step = max(1, math.ceil(len(powers) / 7))
    ticks = sorted(
        {sign * power for power in range(0, math.floor(extent) + 1, step) for sign in (1, -1)}
    )
    return {
        "title": {"text": "speed-up", "font": {"size": 12}},
        "tickvals": ticks,
        "ticktext": [f"{plain_text(2.0**power)}×" for power in ticks],
        "thickness": 12,
    }
