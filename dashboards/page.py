"""From facets to one self-contained page.

Plotly's script stands in the page once, compressed, and so do the figures of each facet: the page
draws the facet that is chosen, so that a large report opens as quickly as a small one. A content
security policy allows the page's own two scripts by their hashes and no request at all.
"""

from __future__ import annotations

import base64
import gzip
import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import jinja2
import plotly.graph_objects as go
from markupsafe import Markup
from plotly.offline import get_plotlyjs

from dynbench.dashboards import theme
from dynbench.dashboards.labels import facet_titles
from dynbench.dashboards.machine import FactGroup, machine_card
from dynbench.dashboards.model import Facet
from dynbench.dashboards.summary import (
    FirstScreen,
    baselines_offered,
    first_screen,
    status_counts,
)
from dynbench.dashboards.tables import (
    Detail,
    Table,
    cases_table,
    failure_details,
    failures_table,
    overview_table,
)
from dynbench.dashboards.text import cell_text, label_text
from dynbench.dashboards.views import View, views

_FIGURE_DIGITS = 6


@dataclass(frozen=True)
class Slot:
    """A place for a figure and its table. ``number`` counts the figures drawn; None where there is none."""

    id: str
    heading: str  # the pass
    aria: str
    number: int | None
    height_px: int
    table: Table | None


@dataclass(frozen=True)
class Section:
    """A view of a facet: its figures, one per pass."""

    view: View
    slots: tuple[Slot, ...]


@dataclass(frozen=True)
class FacetPage:
    """Everything that the templates show of a facet."""

    number: int
    title: str
    rows: int
    counts: dict[str, int]
    first: FirstScreen
    offered: list[str]
    overview: Table | None
    sections: tuple[Section, ...]
    card: list[FactGroup]
    cases: Table | None
    failures: Table | None
    details: list[Detail]
    details_left_out: int
    figures: str  # compressed JSON, base64


def render(facets: Sequence[Facet], *, baseline: str, problems: Sequence[str], created: str) -> str:
    """The page's HTML. ``created`` is when, in words; ``problems`` are lines about what was not read."""
    firsts = [facet.rows.iloc[0].to_dict() for facet in facets]
    pages = [
        _facet_page(facet, title, baseline)
        for facet, title in zip(facets, facet_titles(firsts), strict=True)
    ]
    chosen = max(pages, key=lambda page: (page.first.best is not None, page.counts.get("ok", 0)), default=None)
    script, bundle = _template_source("page.js"), get_plotlyjs()
    return _environment().get_template("report.html.j2").render(
        pages=pages,
        chosen=chosen.number if chosen else 0,
        baseline=label_text(baseline),
        problems=[cell_text(problem) for problem in problems],
        created=created,
        rows=sum(page.rows for page in pages),
        licence=_licence(bundle),
        bundle=_bundle(),
        policy=_policy(script, bundle),
        script=Markup(script),  # both files are the package's own: no data in them
        style=Markup(_template_source("style.css")),
        themes=_script_json(
            {
                name: {"template": theme.template(name).to_plotly_json(), "swaps": theme.SWAPS[name]}
                for name in ("light", "dark")
            }
        ),
    )


def _facet_page(facet: Facet, title: str, baseline: str) -> FacetPage:
    drawn: list[go.Figure] = []
    sections = tuple(_section(facet, title, view, drawn) for view in views(baseline))
    details, left_out = failure_details(facet)
    return FacetPage(
        number=facet.number,
        title=title,
        rows=len(facet.rows),
        counts={label_text(status): count for status, count in status_counts(facet).items()},
        first=first_screen(facet),
        offered=[label_text(name) for name in baselines_offered(facet)],
        overview=overview_table(facet),
        sections=sections,
        card=machine_card(facet),
        cases=cases_table(facet),
        failures=failures_table(facet),
        details=details,
        details_left_out=left_out,
        figures=_packed(json.dumps([_figure_json(figure) for figure in drawn], separators=(",", ":"))),
    )


def _section(facet: Facet, title: str, view: View, drawn: list[go.Figure]) -> Section:
    slots = []
    for place, panel in enumerate(facet.panels):
        figure, table = view.draw(facet, panel), view.table(panel)
        number = None
        if figure is not None:
            number = len(drawn)
            drawn.append(figure)
        slots.append(
            Slot(
                id=f"f{facet.number}-{view.key}-{place}",
                heading=label_text(panel.title),
                aria=f"Chart: {view.title}, {label_text(panel.title.lower())}, {title}. "
                f"{view.direction} The table below holds its numbers.",
                number=number,
                height_px=int(figure.layout.height) if figure is not None else 0,
                table=table,
            )
        )
    return Section(view, tuple(slots))


def _figure_json(figure: go.Figure) -> dict[str, Any]:
    """Data and layout without plotly's default template, floats rounded: the page adds its theme."""
    content = figure.to_plotly_json()
    content["layout"].pop("template", None)
    return {"data": _rounded(content["data"]), "layout": _rounded(content["layout"])}


def _rounded(value: Any) -> Any:
    if isinstance(value, float):
        return float(f"{value:.{_FIGURE_DIGITS}g}")
    if isinstance(value, dict):
        return {key: _rounded(held) for key, held in value.items()}
    if isinstance(value, (list, tuple)):
        return [_rounded(held) for held in value]
    return value


def _packed(text: str) -> str:
    """Text as gzip in base64; the same text gives the same bytes."""
    return base64.b64encode(gzip.compress(text.encode(), 9, mtime=0)).decode()


@cache
def _bundle() -> str:
    return _packed(get_plotlyjs())


def _licence(bundle: str) -> str:
    """The first comment of plotly's script: its version, copyright and licence."""
    comment = bundle.partition("/*")[2].partition("*/")[0]
    words = (line.strip(" *") for line in comment.splitlines())
    return ". ".join(word for word in words if word).replace("--", "-")


def _policy(script: str, bundle: str) -> str:
    """Only the page's two scripts run, and they may compile code (plotly does); nothing is requested."""
    hashes = " ".join(
        f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"
        for text in (script, bundle)
    )
    scripts = f"script-src {hashes} 'unsafe-eval'"
    return f"default-src 'none'; {scripts}; style-src 'unsafe-inline'; img-src data: blob:"


def _script_json(value: Any) -> Markup:
    """JSON that cannot end the script element it stands in."""
    text = json.dumps(value, separators=(",", ":"))
    return Markup(text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026"))


@cache
def _environment() -> jinja2.Environment:
    return jinja2.Environment(
        loader=jinja2.PackageLoader("dynbench.dashboards", "templates"),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )


def _template_source(name: str) -> str:
    environment = _environment()
    assert environment.loader is not None
    return environment.loader.get_source(environment, name)[0]
