"""Figures as PNG and SVG files, for papers and pages."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import plotly.graph_objects as go

from dynbench.dashboards import theme
from dynbench.dashboards.change import Changes
from dynbench.dashboards.errors import ReportError
from dynbench.dashboards.figures.answer import answer_figure
from dynbench.dashboards.figures.change import change_figure
from dynbench.dashboards.figures.common import Figure
from dynbench.dashboards.figures.history import history_figure
from dynbench.dashboards.history import HistoryGroup
from dynbench.dashboards.labels import facet_titles
from dynbench.dashboards.model import Facet
from dynbench.dashboards.quality.curves import Curves
from dynbench.dashboards.quality.model import QualityGroup
from dynbench.dashboards.quality.part import quality_figures
from dynbench.dashboards.selection import drawn
from dynbench.dashboards.views import views

FORMATS = ("svg", "png")
WIDTH_PX = 900
PNG_SCALE = 2


def export_figures(
    named: Sequence[tuple[str, go.Figure]], folder: Path, formats: Sequence[str] = FORMATS
) -> list[Path]:
    """Write each figure as ``NAME.svg`` and ``NAME.png`` into ``folder``; return the files.

    Raises ReportError where kaleido or its browser is missing, OSError where a file cannot be
    written.
    """
    try:
        import kaleido
    except ImportError:
        raise ReportError(
            "--figures needs kaleido: pip install 'dynbench[figures]', and a Chrome or Chromium"
        ) from None
    folder.mkdir(parents=True, exist_ok=True)
    jobs: list[dict[str, Any]] = []
    for name, figure in named:
        for format_ in formats:
            scale = PNG_SCALE if format_ == "png" else 1
            opts = {"format": format_, "width": WIDTH_PX, "scale": scale}
            opts["height"] = figure.layout.height
            jobs.append({"fig": figure, "path": folder / f"{name}.{format_}", "opts": opts})
    try:
        kaleido.write_fig_from_object_sync(jobs)
    except Exception as error:  # kaleido's own classes differ between versions
        if type(error).__name__ == "ChromeNotFoundError":
            raise ReportError(
                "--figures needs Chrome or Chromium, which kaleido draws with: install it, or name "
                "its program in BROWSER_PATH"
            ) from None
        raise
    return [job["path"] for job in jobs]


def figures_of(
    facets: Sequence[Facet],
    history: Sequence[HistoryGroup] | None = None,
    changes: Changes | None = None,
) -> Iterator[tuple[str, go.Figure]]:
    """Every figure of a report with a file name (without its end), ready to be drawn alone."""
    firsts = [{str(k): v for k, v in facet.rows.iloc[0].items()} for facet in facets]
    names: set[str] = set()
    for facet, title in zip(facets, facet_titles(firsts), strict=True):
        figure = answer_figure(facet)
        if figure is not None:
            yield _name(names, title, "answer"), alone(figure)
        for panel in map(drawn, facet.panels):
            for view in views(facet.baseline, facet.suite):
                figure = view.draw(facet, panel)
                if figure is not None:
                    yield _name(names, title, view.key, panel.title), alone(figure)
    for group in history or ():
        for history_panel in group.panels:
            figure = history_figure(history_panel)
            yield _name(names, group.title, "history", history_panel.title), alone(figure)
    changed = None if changes is None else change_figure(changes)
    if changed is not None:
        yield _name(names, "two-runs", "change"), alone(changed)


def quality_figures_of(
    groups: Sequence[QualityGroup], plain: pd.DataFrame, curves: Curves
) -> Iterator[tuple[str, go.Figure]]:
    """The same of the groups of suite ``quality``."""
    firsts = [{str(k): v for k, v in group.facet.rows.iloc[0].items()} for group in groups]
    names: set[str] = set()
    for group, title in zip(groups, facet_titles(firsts), strict=True):
        for view, heading, figure in quality_figures(group, plain, curves):
            yield _name(names, title, view, heading), alone(figure)


def alone(figure: Figure) -> go.Figure:
    """The figure on white, with room for its legend, which the page's script gives it else."""
    layout = figure.layout
    rows = _legend_rows(layout.get("meta", {}).get("entries", ()))
    swapped = Figure(_swapped(figure.data, theme.SWAPS["light"]), layout)
    return swapped.plotly(
        template=theme.template("light"),
        paper_bgcolor="#ffffff",
        width=WIDTH_PX,
        height=layout["height"] + 20 * rows,
        margin={**layout["margin"], "b": layout["margin"]["b"] + 20 * rows},
    )


def _legend_rows(entries: Sequence[int]) -> int:
    rows, used_px = min(1, len(entries)), 0.0
    for characters in entries:
        entry_px = 74 + 6.8 * characters
        if used_px and used_px + entry_px > WIDTH_PX - 24:
            rows, used_px = rows + 1, 0.0
        used_px += entry_px
    return rows


def _swapped(value: Any, swaps: dict[str, str]) -> Any:
    if isinstance(value, str):
        return swaps.get(value, value)
    if isinstance(value, dict):
        return {name: _swapped(held, swaps) for name, held in value.items()}
    return [_swapped(held, swaps) for held in value] if isinstance(value, (list, tuple)) else value


def _name(taken: set[str], *parts: str) -> str:
    """A file name of letters, digits and hyphens that is not taken yet."""
    slugs = [re.sub(r"[^a-z0-9]+", "-", part.lower()).strip("-") for part in parts]
    stem = "_".join(slug[:80] for slug in slugs if slug)
    name, count = stem, 2
    while name in taken:
        name, count = f"{stem}_{count}", count + 1
    taken.add(name)
    return name
