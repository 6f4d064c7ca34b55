"""The figure of the first screen: from which length the focus provider pays, pass by pass."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from dynbench.dashboards.compare import Comparison, best_by_lists
from dynbench.dashboards.figures.common import (
    LEGEND_OF_LINES,
    Figure,
    Series,
    Trace,
    figure_of,
    length_ticks,
    line_trace,
    log_ticks,
    path_of,
)
from dynbench.dashboards.figures.placing import (
    BESIDE_PX,
    LINE_PX,
    MARKER_PX,
    Area,
    Box,
    End,
    Segment,
    Widths,
    column,
    free_place,
    text_width_px,
)
from dynbench.dashboards.figures.speedup import speedup_text
from dynbench.dashboards.labels import lists_text
from dynbench.dashboards.model import Facet, Panel
from dynbench.dashboards.text import label_text, length_text, plot_text, times_text
from dynbench.dashboards.theme import MUTED, OKABE_ITO, translucent

HEIGHT_PX = 330
MAX_PASSES = 3
MARGIN = {"l": 58, "r": 10, "t": 30, "b": 52}
_GAP = 0.05
_STACKED_GAP = 0.15
_ROOM_ABOVE = 0.2  # of the y axis, where a line ends early: a name may stand above it

NARROWEST_PX = 300
"""Width of the figure in the narrowest window whose names are sure to be free."""

WIDEST_PX = 900
"""Width of the figure at most: that of its file; the page gives it less."""

_BESIDE_FROM_PX = 560
_PLOT_FROM_PX = 190  # of one plot, with others beside it


@dataclass(frozen=True)
class _Plot:
    """The plot of one pass: its axes (``suffix``) and where it stands.

    ``x_range`` and ``y_range`` are those of the axes: powers of ten.
    """

    suffix: str
    panel: Panel
    best: list[Comparison]
    area: Area
    x_range: tuple[float, float]
    y_range: tuple[float, float]

    def x(self, seq_len: float) -> float:
        """Where a length stands, as a share of the width of all plots."""
        first, last = self.x_range
        place = (math.log10(seq_len) - first) / (last - first)
        return self.area.left + place * (self.area.right - self.area.left)

    def y(self, ratio: float) -> float:
        """Where a speed-up stands, in px below the top of all plots."""
        low, high = self.y_range
        place = (high - math.log10(ratio)) / (high - low)
        return self.area.top + place * (self.area.bottom - self.area.top)


def answer_figure(facet: Facet) -> Figure | None:
    """Speed-up of the best line of each list kind over length, a plot per pass; None without any.

    The bars span the quartiles; above 1, in the green field, the line is faster than the baseline.
    Each line is named at its end, where no line and no other name lies; in the legend where there
    is no such place.
    """
    found = [(panel, best_by_lists(panel)) for panel in facet.panels]
    found = [(panel, best) for panel, best in found if best][:MAX_PASSES]
    if not found:
        return None
    y_axis = _y_axis(found)
    title = f"speed-up over {plot_text(label_text(facet.baseline))} (times)"
    narrow_px = max(_BESIDE_FROM_PX, _PLOT_FROM_PX * len(found) + MARGIN["l"] + MARGIN["r"])
    beside, unnamed = _layout(found, y_axis, title, (narrow_px, WIDEST_PX), stacked=False)
    stacked, more = _layout(found, y_axis, title, (NARROWEST_PX, narrow_px), stacked=True)
    unnamed |= more
    traces: list[Trace] = []
    shapes: list[dict[str, Any]] = []
    for suffix, (panel, best) in zip(_suffixes(found), found, strict=True):
        traces += [_trace(held, suffix) | _entry(panel, held, unnamed) for held in best]
        shapes += _fields(suffix, y_axis["range"][1])
    return figure_of(
        traces,
        margin=MARGIN,
        hovermode="closest",
        showlegend=bool(unnamed),
        legend=LEGEND_OF_LINES,
        shapes=shapes,
        meta={
            "entries": [len(trace["name"]) for trace in traces if trace["showlegend"]],
            "narrow": stacked,
            "narrow_px": narrow_px,
        },
        **beside,
    )


_Found = list[tuple[Panel, list[Comparison]]]


def _suffixes(found: Sequence[Any]) -> list[str]:
    """What plotly calls the axes of each plot by."""
    return ["" if place == 0 else str(place + 1) for place in range(len(found))]


def _y_axis(found: _Found) -> dict[str, Any]:
    """The axis of all plots, with room for a name above a line that ends early."""
    gains = [gain for _, best in found for held in best for gain in held.gains]
    axis = log_ticks([1.0, *(g.low for g in gains), *(g.high for g in gains)])
    if any(len({held.gains[-1].seq_len for held in best}) > 1 for _, best in found):
        low, high = axis["range"]
        axis["range"] = [low, high + _ROOM_ABOVE * (high - low)]
    return axis


def _layout(
    found: _Found,
    y_axis: dict[str, Any],
    title: str,
    figure_px: Widths,
    *,
    stacked: bool,
) -> tuple[dict[str, Any], set[int]]:
    """Axes and names of the plots, side by side, or one below the other in a narrow window.

    ``figure_px`` are the least and the largest width of the figure. The numbers are those of the
    lines for whose names there is no place.
    """
    height = HEIGHT_PX * (len(found) if stacked else 1)
    axes: dict[str, Any] = {}
    notes: list[dict[str, Any]] = []
    unnamed: set[int] = set()
    widths = (
        figure_px[0] - MARGIN["l"] - MARGIN["r"],
        figure_px[1] - MARGIN["l"] - MARGIN["r"],
    )
    domains = _domains(len(found), stacked=stacked)
    for place, (suffix, (panel, best)) in enumerate(zip(_suffixes(found), found, strict=True)):
        x_domain, y_domain = domains[place]
        lengths = sorted({gain.seq_len for held in best for gain in held.gains})
        ticks = length_ticks(lengths)
        area = _area(x_domain, y_domain, height)
        ticks["range"] = _x_range(best, ticks["range"], area, widths[0])
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
        plot = _Plot(suffix, panel, best, area, tuple(ticks["range"]), tuple(y_axis["range"]))
        for held, box in _placed(plot, widths):
            if box is None:
                unnamed.add(held.line.number)
            else:
                notes.append(_name(plot, held, box))
        notes.append(_pass_name(panel, x_domain[0], y_domain[1]))
    return {"height": height, "annotations": notes, **axes}, unnamed


def _domains(plots: int, *, stacked: bool) -> list[tuple[list[float], list[float]]]:
    """The shares of the width and of the height (upwards) that each plot takes."""
    gap = _STACKED_GAP if stacked else _GAP
    share = (1 - gap * (plots - 1)) / plots
    starts = [place * (share + gap) for place in range(plots)]
    if stacked:
        return [([0.0, 1.0], [1 - start - share, 1 - start]) for start in starts]
    return [([start, start + share], [0.0, 1.0]) for start in starts]


def _area(x_domain: Sequence[float], y_domain: Sequence[float], height_px: int) -> Area:
    plots_px = height_px - MARGIN["t"] - MARGIN["b"]
    top, bottom = ((1 - share) * plots_px for share in reversed(y_domain))
    return Area(x_domain[0], x_domain[1], top, bottom, spare_px=MARGIN["r"])


def _x_range(
    best: Sequence[Comparison], ticks_range: Sequence[float], area: Area, width_px: float
) -> list[float]:
    """The range of the x axis with room at the right for the names, where ``width_px`` is least."""
    first, last = ticks_range
    furthest = max(held.gains[-1].seq_len for held in best)
    names = [_name_lines(held) for held in best if held.gains[-1].seq_len == furthest]
    needed_px = BESIDE_PX + max(map(text_width_px, names)) - area.spare_px + 1
    share = min(0.5, max(0.0, needed_px / (width_px * (area.right - area.left))))
    return [first, max(last, first + (math.log10(furthest) - first) / (1 - share))]


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


def _entry(panel: Panel, comparison: Comparison, unnamed: set[int]) -> dict[str, Any]:
    """What the legend says of a line: all that its name would, if it has no place in the plot."""
    if comparison.line.number not in unnamed:
        return {"showlegend": False}
    at = f"{length_text(comparison.gains[-1].seq_len)}, {label_text(panel.title.lower())}"
    ratio, kind = _name_lines(comparison)
    return {"showlegend": True, "name": plot_text(f"{kind}: {ratio} at {at}")}


def _name_lines(comparison: Comparison) -> tuple[str, str]:
    """The speed-up at the end of a line, and its list kind."""
    line = comparison.line
    return times_text(comparison.gains[-1].speedup), lists_text(line.settings) or line.label


def _placed(plot: _Plot, widths: Widths) -> list[tuple[Comparison, Box | None]]:
    """Each line with the place of its name: first of those that reach furthest, then the others."""
    ends = sorted(plot.best, key=lambda held: -held.gains[-1].speedup)
    furthest = max(held.gains[-1].seq_len for held in ends)
    far = [held for held in ends if held.gains[-1].seq_len == furthest]
    boxes = column([_end(plot, held) for held in far], plot.area, plot.y(1.0), widths)
    placed = list(zip(far, boxes, strict=True))
    strokes = _strokes(plot)
    for held in ends:
        if held.gains[-1].seq_len < furthest:
            names = [box for _, box in placed if box is not None]
            placed.append((held, free_place(_end(plot, held), plot.area, strokes, names, widths)))
    return placed


def _end(plot: _Plot, comparison: Comparison) -> End:
    """Where the line ends; its name is better above it if most others are slower there."""
    last, name = comparison.gains[-1], _name_lines(comparison)
    others = [
        gain.speedup
        for held in plot.best
        for gain in held.gains
        if held is not comparison and gain.seq_len == last.seq_len
    ]
    faster = sum(speedup > last.speedup for speedup in others)
    return End(
        plot.x(last.seq_len),
        plot.y(last.speedup),
        plot.y(max(last.high, last.speedup)),
        plot.y(min(last.low, last.speedup)),
        text_width_px(name),
        LINE_PX * len(name),
        above=2 * faster <= len(others),
    )


def _strokes(plot: _Plot) -> list[Segment]:
    """Everything that is drawn in a plot: lines, markers, bars and the line at 1."""
    one = plot.y(1.0)
    strokes = [Segment(plot.area.left, one, plot.area.right, one)]
    for held in plot.best:
        points = [(plot.x(gain.seq_len), plot.y(gain.speedup)) for gain in held.gains]
        strokes += [Segment(*start, *end) for start, end in itertools.pairwise(points)]
        for gain, (x, y) in zip(held.gains, points, strict=True):
            strokes.append(Segment(x, y, x, y, MARKER_PX))
            strokes.append(Segment(x, plot.y(gain.high), x, plot.y(gain.low)))
    return strokes


def _name(plot: _Plot, comparison: Comparison, box: Box) -> dict[str, Any]:
    """List kind and speed-up, as a note in the box at the end of the line."""
    last = comparison.gains[-1]
    ratio, kind = _name_lines(comparison)
    beside = {"left": box.left, "center": (box.left + box.right) / 2, "right": box.right}
    return {
        "name": f"line {comparison.line.number}",
        "xref": f"x{plot.suffix}",
        "yref": f"y{plot.suffix}",
        "x": math.log10(last.seq_len),
        "y": math.log10(last.speedup),
        "xanchor": box.anchor,
        "xshift": round(beside[box.anchor], 1),
        "yanchor": "middle",
        "yshift": round(plot.y(last.speedup) - (box.top + box.bottom) / 2, 1),
        "align": box.anchor,
        "showarrow": False,
        "text": f"<b>{ratio}</b><br>{plot_text(kind)}",
        "font": {"size": 12},
    }


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
