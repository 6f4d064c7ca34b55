"""Latency over commits, each case relative to its first commit."""

from __future__ import annotations

from typing import Any

from dynbench.dashboards.figures.common import LEGEND_OF_LINES, Figure, Trace, figure_of, log_ticks
from dynbench.dashboards.history import HistoryPanel, Step, Track
from dynbench.dashboards.tables import Group, Table
from dynbench.dashboards.text import count_text, length_text, number_text, plot_text, time_text
from dynbench.dashboards.theme import MUTED

MAX_TRACKS = 40
"""Cases drawn: those that changed most; the table has all."""


def history_figure(panel: HistoryPanel) -> Figure:
    """A line per case; rings where it became slower or faster than at the commit before."""
    drawn = sorted(panel.tracks, key=_largest_change, reverse=True)[:MAX_TRACKS]
    traces = [_trace(track) for track in panel.tracks if track in drawn]
    rings = [ring for track in drawn if (ring := _ring(track)) is not None]
    y_axis = log_ticks([1.0, *(y for trace in traces for y in trace["y"])])
    return figure_of(
        [*traces, *rings],
        height=380,
        margin={"l": 64, "r": 16, "t": 12, "b": 96},
        hovermode="closest",
        showlegend=True,
        legend=LEGEND_OF_LINES,
        meta={"entries": [len(trace["name"]) for trace in traces]},
        xaxis={
            "type": "category",
            "categoryorder": "array",
            "categoryarray": [plot_text(commit) for commit in panel.commits],
            "title": {"text": "commit, in the order measured"},
            "nticks": 12,
        },
        yaxis={"type": "log", "title": {"text": "latency over the first commit's"}, **y_axis},
    )


def history_table(panel: HistoryPanel) -> Table:
    """Every case at every commit: latency, and what it is of the commit before."""
    return Table(
        f"Latency over commits, {panel.title.lower()}: median in ms",
        ("case", "commit", "median (ms)", "quartiles (ms)", "of the one before", "verdict"),
        tuple(
            Group(
                f"{track.label}, {length_text(track.seq_len)}",
                tuple(map(_row, track.steps, (None, *track.steps))),
            )
            for track in sorted(panel.tracks, key=_largest_change, reverse=True)
        ),
        text=("commit", "verdict"),
    )


def _row(step: Step, before: Step | None) -> tuple[str, ...]:
    verdict = {1: "slower", -1: "faster", 0: "no clear change"}[step.change]
    if before is not None and before.software != step.software:
        verdict = "other software"
    return (
        step.commit,
        number_text(step.latency_ms, 4),
        f"{number_text(step.q1_ms, 4)}–{number_text(step.q3_ms, 4)}",
        "" if step.ratio is None else f"{number_text(step.ratio)}×",
        "first" if step.ratio is None else verdict,
    )


def _largest_change(track: Track) -> float:
    return max((abs((step.ratio or 1.0) - 1) for step in track.steps if step.change), default=0.0)


def _trace(track: Track) -> Trace:
    first_ms = track.steps[0].latency_ms
    x: list[Any] = []
    y: list[float | None] = []
    hover: list[str] = []
    cases: list[int | None] = []
    before: Step | None = None
    for step in track.steps:
        if before is not None and step.software != before.software:  # a gap, not a change
            x.append(plot_text(step.commit))
            y.append(None)
            hover.append("")
            cases.append(None)
        x.append(plot_text(step.commit))
        y.append(float(f"{step.latency_ms / first_ms:.5g}"))
        hover.append(_text(track, step))
        cases.append(step.case)
        before = step
    return {
        "type": "scatter",
        "x": x,
        "y": y,
        "hovertext": hover,
        "hoverinfo": "text",
        "customdata": cases,
        "mode": "lines+markers",
        "name": plot_text(f"{track.label}, {length_text(track.seq_len)}"),
        "legendgroup": str(track.number),
        "line": {"color": track.style.colour, "dash": track.style.dash, "width": 2},
        "marker": {"color": track.style.colour, "symbol": track.style.symbol, "size": 8},
    }


def _ring(track: Track) -> Trace | None:
    found = [step for step in track.steps if step.change]
    if not found:
        return None
    first_ms = track.steps[0].latency_ms
    return {
        "type": "scatter",
        "x": [plot_text(step.commit) for step in found],
        "y": [float(f"{step.latency_ms / first_ms:.5g}") for step in found],
        "mode": "markers",
        "hoverinfo": "skip",
        "showlegend": False,
        "legendgroup": str(track.number),
        "marker": {"symbol": "circle-open", "size": 16, "color": MUTED, "line": {"width": 2}},
    }


def _text(track: Track, step: Step) -> str:
    change = ""
    if step.ratio is not None:
        words = {1: ": slower", -1: ": faster", 0: ""}[step.change]
        change = f"<br>{number_text(step.ratio)}× the commit before{words}"
    label = plot_text(f"{track.label}, {length_text(track.seq_len)}")
    software = plot_text(", ".join(part for part in step.software if part))
    return (
        f"<b>{label}</b><br>{plot_text(step.commit)}: {time_text(step.latency_ms)}, "
        f"{count_text(step.samples, 'sample')}{change}<br>{software}"
    )
