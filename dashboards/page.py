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
from dynbench.dashboards.profiles import ProfileView
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

PLAIN_BYTES = 7_000_000
"""A page that would be larger has parts packed like the figures (see ``_fit``), until it fits."""


@dataclass
class Block:
    """HTML: plain, or ``packed`` (gzip in base64) where the page would grow too large."""

    html: str
    packed: str = ""

    @property
    def size_bytes(self) -> int:
        """Bytes in the page."""
        return len(self.packed) or len(self.html.encode())

    @property
    def markup(self) -> Markup:
        """The HTML: a template made it, with every string of data escaped."""
        return Markup(self.html)


@dataclass(frozen=True)
class Slot:
    """A place for a figure and its table; ``number`` counts the figures drawn (None: nothing)."""

    id: str
    heading: str  # the pass
    aria: str
    number: int | None
    height_px: int
    table: Block | None


@dataclass(frozen=True)
class Section:
    """A view of a facet: its figures, one per pass."""

    view: View
    slots: tuple[Slot, ...]

    @property
    def has_numbers(self) -> bool:
        """Whether any pass has something to show here."""
        return any(slot.number is not None or slot.table is not None for slot in self.slots)


@dataclass(frozen=True)
class FacetPage:
    """Everything that the templates show of a facet."""

    number: int
    title: str
    rows: int
    counts: dict[str, int]
    first: FirstScreen
    offered: list[str]
    overview: Block | None
    sections: tuple[Section, ...]
    card: list[FactGroup]
    cases: Block | None
    failures: Block | None
    details: list[Detail]
    details_left_out: int
    figures: str  # compressed JSON, base64

    @property
    def blocks(self) -> list[Block]:
        """All tables."""
        found = [slot.table for section in self.sections for slot in section.slots]
        return [b for b in (self.overview, *found, self.cases, self.failures) if b is not None]


def render(
    facets: Sequence[Facet],
    *,
    baseline: str,
    problems: Sequence[str],
    created: str,
    profiles: Sequence[ProfileView] = (),
) -> str:
    """The page's HTML. ``created`` is when, in words; ``problems`` name what was not read."""
    firsts = [{str(k): v for k, v in facet.rows.iloc[0].items()} for facet in facets]
    pages = [
        _facet_page(facet, title, baseline)
        for facet, title in zip(facets, facet_titles(firsts), strict=True)
    ]
    chosen = max(
        pages,
        key=lambda page: (page.first.best is not None, page.counts.get("ok", 0)),
        default=None,
    )
    name = label_text(baseline)
    bodies = _fit({page.number: _body(page, name) for page in pages}, pages, chosen, name)
    script, bundle = _template_source("page.js"), get_plotlyjs()
    return (
        _environment()
        .get_template("report.html.j2")
        .render(
            pages=pages,
            bodies=bodies,
            chosen=chosen.number if chosen else 0,
            profiles=profiles,
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
                    name: {
                        "template": theme.template(name).to_plotly_json(),
                        "swaps": theme.SWAPS[name],
                    }
                    for name in ("light", "dark")
                }
            ),
        )
    )


def _facet_page(facet: Facet, title: str, baseline: str) -> FacetPage:
    key = f"f{facet.number}"
    drawn: list[go.Figure] = []
    made = [_section(facet, view, drawn) for view in views(baseline, facet.suite)]
    sections = tuple(one for one in made if one.has_numbers or not one.view.optional)
    details, left_out = failure_details(facet)
    return FacetPage(
        number=facet.number,
        title=title,
        rows=len(facet.rows),
        counts={label_text(status): count for status, count in status_counts(facet).items()},
        first=first_screen(facet),
        offered=[label_text(name) for name in baselines_offered(facet)],
        overview=_block(overview_table(facet), f"{key}-overview-table"),
        sections=sections,
        card=machine_card(facet),
        cases=_block(cases_table(facet), f"{key}-cases-table"),
        failures=_block(failures_table(facet), f"{key}-failures-table"),
        details=details,
        details_left_out=left_out,
        figures=_packed(json.dumps([_figure_json(f) for f in drawn], separators=(",", ":"))),
    )


def _section(facet: Facet, view: View, drawn: list[go.Figure]) -> Section:
    slots = []
    for place, panel in enumerate(facet.panels):
        key = f"f{facet.number}-{view.key}-{place}"
        figure = view.draw(facet, panel)
        number = None
        if figure is not None:
            number = len(drawn)
            drawn.append(figure)
        slots.append(
            Slot(
                id=key,
                heading=label_text(panel.title),
                aria=f"Chart: {view.title}, {label_text(panel.title.lower())}. {view.direction} "
                "Its numbers stand in the table below.",
                number=number,
                height_px=int(figure.layout.height) if figure is not None else 0,
                table=_block(view.table(panel), f"{key}-table"),
            )
        )
    return Section(view, tuple(slots))


def _block(table: Table | None, id_: str) -> Block | None:
    if table is None:
        return None
    macros: Any = _environment().get_template("macros.html.j2").module
    return Block(str(macros.data_table(table, id_)))


def _body(page: FacetPage, baseline: str) -> Block:
    template = _environment().get_template("facet.html.j2")
    return Block(template.render(page=page, baseline=baseline))


def _fit(
    bodies: dict[int, Block], pages: Sequence[FacetPage], chosen: FacetPage | None, baseline: str
) -> dict[int, Block]:
    """Packs what does not show at first, the largest first, until ``PLAIN_BYTES`` are enough.

    That is the facets that are not chosen, then the tables of the one that is.
    """
    if chosen is None:
        return bodies
    size_bytes = len(_bundle()) + sum(len(page.figures) for page in pages)
    size_bytes += sum(body.size_bytes for body in bodies.values())
    others = [body for number, body in bodies.items() if number != chosen.number]
    for blocks in (others, chosen.blocks):
        for block in sorted(blocks, key=lambda block: -block.size_bytes):
            if size_bytes > PLAIN_BYTES:
                plain_bytes = block.size_bytes
                block.packed = _packed(block.html)
                size_bytes += block.size_bytes - plain_bytes
    return {**bodies, chosen.number: _body(chosen, baseline)}


def _figure_json(figure: go.Figure) -> dict[str, Any]:
    """Data and layout; the page adds the template of its theme."""
    content = figure.to_plotly_json()
    content["layout"].pop("template", None)
    return {"data": content["data"], "layout": content["layout"]}


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
    """Only the page's two scripts run (plotly compiles code of its own); nothing is requested."""
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
