"""A running sweep in the browser: rows appear as they land (Dash)."""

from __future__ import annotations

import logging
import socket
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

from dynbench.dashboards import frame as frames
from dynbench.dashboards.errors import ReportError
from dynbench.dashboards.export import alone
from dynbench.dashboards.figures.latency import latency_figure
from dynbench.dashboards.figures.memory import memory_figure
from dynbench.dashboards.figures.speedup import speedup_figure
from dynbench.dashboards.labels import facet_titles
from dynbench.dashboards.model import Facet, facets_of
from dynbench.dashboards.quality.figures import share_figure
from dynbench.dashboards.quality.model import QualityGroup, drawn_configs, quality_groups
from dynbench.dashboards.quality.summary import first_screen as quality_screen
from dynbench.dashboards.selection import MAX_LINES, drawn
from dynbench.dashboards.summary import first_screen, status_counts
from dynbench.dashboards.text import (
    cell_text,
    count_text,
    label_text,
    length_text,
    time_text,
)

POLL_MS = 2000
NEWEST_ROWS = 25

_FIGURES = (
    ("Latency", "Lower is better.", latency_figure),
    ("Speed-up", "Higher is better.", speedup_figure),
    ("Peak memory", "Lower is better.", memory_figure),
)
_COLUMNS = ("began (UTC)", "provider", "pass", "length", "status", "median", "reason")
_CELL = {"padding": "0.3rem 0.7rem", "textAlign": "left", "borderBottom": "1px solid #dfe3e8"}


@dataclass(frozen=True)
class LiveRows:
    """What there is at a moment: the run's name, its rows, and how many cases are planned.

    ``planned`` is None where that is not known; ``name`` is empty where there is no run yet.
    """

    name: str
    frame: pd.DataFrame
    planned: int | None = None
    finished: bool = False


@dataclass(frozen=True)
class LiveState:
    """What the page shows of the rows; Dash turns it into components."""

    headline: str
    progress: str
    titles: Sequence[str]
    chosen: int
    figures: Sequence[tuple[str, Any]]
    rows: Sequence[Sequence[str]]


def live_state(rows: LiveRows, chosen: int | None = None, baseline: str | None = None) -> LiveState:
    """The view of the rows; ``chosen`` is the comparison to draw, None for that of the newest."""
    if not rows.name:
        waiting = "Waiting for a run: dynbench run starts one"
        return LiveState(waiting, "", (), 0, (), ())
    plain = frames.prepare(rows.frame)
    of_speed, groups = facets_of(plain, baseline), quality_groups(plain, baseline)
    facets = [*of_speed, *(group.facet for group in groups)]
    firsts = [{str(k): v for k, v in facet.rows.iloc[0].items()} for facet in facets]
    if not facets:
        return LiveState("No row yet", _progress(rows, {}), (), 0, (), ())
    newest = next(at for at, facet in enumerate(facets) if plain.index[-1] in facet.rows.index)
    place = chosen if chosen is not None and 0 <= chosen < len(facets) else newest
    counts: dict[str, int] = {}
    for facet in facets:
        for status, count in status_counts(facet).items():
            counts[status] = counts.get(status, 0) + count
    group = groups[place - len(of_speed)] if place >= len(of_speed) else None
    return LiveState(
        headline=(quality_screen(group) if group else first_screen(facets[place])).headline,
        progress=_progress(rows, counts),
        titles=facet_titles(firsts),
        chosen=place,
        figures=_quality_figures(group) if group else _figures(facets[place]),
        rows=[_row(row) for row in plain.tail(NEWEST_ROWS)[::-1].to_dict("records")],
    )


def live_app(read: Callable[[], LiveRows], baseline: str | None = None) -> Any:
    """The Dash app; ``read`` is called every ``POLL_MS``. Raises ReportError without Dash."""
    try:
        import dash
        from dash import Input, Output, State, dcc, html
    except ImportError:
        raise ReportError("dynbench serve needs Dash: pip install 'dynbench[serve]'") from None

    app = dash.Dash(
        __name__,
        title="dynbench live",
        update_title="",
        assets_folder="templates",
        assets_ignore=r".*\.(js|j2)$",  # of the report's files only its style
    )
    # Light for dark readers too: figures come drawn, on white.
    app.index_string = app.index_string.replace("<html>", '<html lang="en" data-theme="light">')
    app.layout = html.Main(
        [
            html.P(id="progress", role="status"),
            html.H1(id="headline"),
            html.Label(
                ["Comparison ", dcc.Dropdown(id="comparison", placeholder="that of the newest row")]
            ),
            html.Div(id="figures"),
            html.H2("Newest rows"),
            html.Div(id="rows", style={"overflowX": "auto"}),
            dcc.Interval(id="poll", interval=POLL_MS),
            dcc.Store(id="seen"),
        ],
        style={"paddingTop": "1rem", "paddingBottom": "2rem"},
    )

    @app.callback(
        Output("progress", "children"),
        Output("headline", "children"),
        Output("comparison", "options"),
        Output("figures", "children"),
        Output("rows", "children"),
        Output("seen", "data"),
        Input("poll", "n_intervals"),
        Input("comparison", "value"),
        State("seen", "data"),
    )
    def update(_: int | None, chosen: int | None, seen: list[Any] | None) -> Any:
        rows = read()
        now = [rows.name, len(rows.frame), rows.planned, rows.finished, chosen]
        if now == seen:  # nothing landed: zoom and scroll stay
            return (dash.no_update,) * 6
        state = live_state(rows, chosen, baseline)
        options = [{"label": title, "value": at} for at, title in enumerate(state.titles)]
        graphs = [
            html.Section([html.H2(title), dcc.Graph(figure=figure, config={"displaylogo": False})])
            for title, figure in state.figures
        ]
        head = html.Thead(html.Tr([html.Th(name, scope="col", style=_CELL) for name in _COLUMNS]))
        body = html.Tbody(
            [html.Tr([html.Td(cell, style=_CELL) for cell in row]) for row in state.rows]
        )
        table = html.Table([head, body], style={"borderCollapse": "collapse"})
        return state.progress, state.headline, options, graphs, table, now

    return app


def check_address(host: str, port: int) -> None:
    """Raise ReportError where nothing can listen there: before the page is named."""
    if not 1 <= port <= 65535:
        raise ReportError(f"--port {port}: must be from 1 to 65535")
    try:
        family, *_, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, socket.SOCK_STREAM) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as the server does
            probe.bind(address)
    except OSError as error:
        raise ReportError(
            f"--host {host} --port {port}: {error.strerror}; name another --port or --host"
        ) from None


def serve_forever(app: Any, host: str, port: int) -> None:
    """Serve the Dash app until Ctrl-C, without a line for every poll of every page."""
    from werkzeug.serving import run_simple

    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    run_simple(host, port, app.server, threaded=True)


def _progress(rows: LiveRows, counts: dict[str, int]) -> str:
    done = len(rows.frame)
    of = f" of {rows.planned}" if rows.planned is not None else ""
    told = ", ".join(f"{count} {label_text(status)}" for status, count in counts.items())
    state = "finished" if rows.finished else "running"
    name = label_text(rows.name)
    return f"Run {name}, {state}: {done}{of} {'case' if of == ' of 1' else 'cases'}" + (
        f" ({told})" if told else ""
    )


def _figures(facet: Facet) -> list[tuple[str, Any]]:
    found = []
    for panel in map(drawn, facet.panels):
        for title, direction, draw in _FIGURES:
            figure = draw(panel)
            if figure is not None:
                wide = alone(figure).update_layout(width=None)
                found.append((f"{title}, {panel.title.lower()}. {direction}", wide))
    return found


def _quality_figures(group: QualityGroup) -> list[tuple[str, Any]]:
    found = []
    for measure in group.measures:
        figure = share_figure(group, drawn_configs(group, MAX_LINES), measure)
        if figure is not None:
            title = f"{measure.title} over the attended share. {measure.direction}"
            found.append((title, alone(figure).update_layout(width=None)))
    return found


def _row(row: dict[Any, Any]) -> tuple[str, ...]:
    latency_ms = frames.number(row["latency_ms"])
    samples = frames.number(row["sample_count"])
    told = f" ({count_text(round(samples), 'sample')})" if samples else ""
    return (
        label_text(row["started_at"]),
        label_text(row["provider"]),
        label_text(row["pass"]),
        length_text(frames.number(row["seq_len"])),
        label_text(row["status"]),
        f"{time_text(latency_ms)}{told}" if latency_ms is not None else "",
        cell_text(row["reason"]),
    )
