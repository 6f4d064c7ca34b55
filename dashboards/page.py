"""From facets to one self-contained page.

Plotly's script stands in the page once, compressed, and so do the figures and rows of each part:
the page draws the part that is chosen, so that a large report opens as quickly as a small one. A
content security policy allows the page's own two scripts by their hashes and no request at all.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

import pandas as pd
from markupsafe import Markup
from plotly.offline import get_plotlyjs

from dynbench.dashboards.bundle import (
    environment,
    licence,
    packed_plotly,
    page_script,
    policy,
    settings_json,
    template_source,
)
from dynbench.dashboards.cases import facts_of
from dynbench.dashboards.change import Changes, placed
from dynbench.dashboards.history import HistoryGroup, build_history
from dynbench.dashboards.labels import facet_titles, machine_names
from dynbench.dashboards.model import Facet
from dynbench.dashboards.parts import Block, Part, change_part, facet_part, history_part
from dynbench.dashboards.profiles import ProfileView, profile_views
from dynbench.dashboards.quality.curves import Curves
from dynbench.dashboards.quality.model import QualityGroup, quality_groups
from dynbench.dashboards.quality.part import quality_part
from dynbench.dashboards.quality.views import PAGE
from dynbench.dashboards.selection import SAMPLED_ROWS, rows_that_matter
from dynbench.dashboards.summary import importance
from dynbench.dashboards.text import cell_text

PLAIN_BYTES = 6_000_000
"""A page that would be larger has parts packed like the figures (see ``_fit``), until it fits."""

WHOLE_ROWS = 10_000
"""With more rows than this only those that matter most keep all of their columns."""

FIGURES_BYTES = 2_000_000
"""Packed figures of a page; comparisons beyond, those that matter least, come without them."""

QUALITY_FIGURES_BYTES = 1_500_000
"""The same of the groups of suite ``quality``, whose curves are thinned to begin with."""


@dataclass(frozen=True)
class Quality:
    """The trainings of a report: their groups, their curves, and all rows, for latencies."""

    groups: Sequence[QualityGroup] = ()
    curves: Curves = field(default_factory=dict)
    plain: pd.DataFrame = field(default_factory=pd.DataFrame)


@dataclass(frozen=True)
class Shown:
    """What a page says beside its parts."""

    created: str
    problems: Sequence[str] = ()
    history: Sequence[HistoryGroup] | None = None
    changes: Changes | None = None
    profiles: Sequence[ProfileView] = ()
    quality: Quality = field(default_factory=Quality)


def shown_of(
    plain: pd.DataFrame,
    *,
    problems: Sequence[str],
    history: bool,
    changes: Changes | None,
    profiles: Sequence[Mapping[str, Any]] = (),
    baseline: str | None = None,
    curves: Curves | None = None,
) -> Shown:
    """What a page of these prepared rows says beside its comparisons."""
    return Shown(
        created=datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        problems=problems,
        history=build_history(plain) if history else None,
        changes=None if changes is None else placed(changes, plain),
        profiles=profile_views(profiles, plain.get("case_id", ())),
        quality=Quality(quality_groups(plain, baseline), curves or {}, plain),
    )


def render(facets: Sequence[Facet], shown: Shown) -> str:
    """The page's HTML."""
    parts = page_parts(facets, shown)
    return filled(
        parts,
        shown,
        _fit(parts, chosen_part(parts)),
        rows=sum(part.rows for part in parts),
        licence=licence(),
        bundle=packed_plotly(),
        plotly_file="",
        home="",
        policy=policy(page_script(), get_plotlyjs()),
    )


def filled(
    parts: Sequence[Part], shown: Shown, bodies: Mapping[str, Block | None], **where: Any
) -> str:
    """The template of a page, filled.

    ``bodies`` are the parts' own HTML, None for what a site has in files; ``where`` is how many
    rows the page is of, and where plotly, the way home and the permitted scripts lie.
    """
    chosen = chosen_part(parts)
    return (
        environment()
        .get_template("report.html.j2")
        .render(
            parts=parts,
            bodies=bodies,
            chosen=chosen.key if chosen else "",
            problems=[cell_text(problem) for problem in shown.problems],
            profiles=shown.profiles,
            created=shown.created,
            script=Markup(page_script()),  # the package's own files: no data in them
            style=Markup(template_source("style.css")),
            settings=settings_json(),
            **where,
        )
    )


def page_parts(facets: Sequence[Facet], shown: Shown) -> list[Part]:
    """All parts, with what fits into one page: see ``WHOLE_ROWS`` and ``FIGURES_BYTES``."""
    groups = shown.quality.groups
    titled = titled_facets([*facets, *(group.facet for group in groups)])
    of_speed, of_quality = titled[: len(facets)], titled[len(facets) :]
    of_speed.sort(key=lambda held: importance(held[0]), reverse=True)
    rows = sum(len(facet.rows) for facet, *_ in titled)
    sampled = rows_that_matter([facet for facet, *_ in of_speed], SAMPLED_ROWS)
    newest = [case for group in groups for config in group.configs for case in config.cases[-1:]]
    sampled |= set(newest[: SAMPLED_ROWS - len(sampled)])
    whole = None if rows <= WHOLE_ROWS else sampled
    parts: dict[int, Part] = {}
    figures_bytes = 0
    for facet, title, facts in of_speed:
        complete = figures_bytes < FIGURES_BYTES
        part = facet_part(facet, title, facts, whole=whole, sampled=sampled, complete=complete)
        figures_bytes += len(part.data["figures"])
        parts[facet.number] = part
    quality: list[Part] = []
    figures_bytes = 0
    for group, (_, title, facts) in zip(groups, of_quality, strict=True):
        part = quality_part(
            group,
            title,
            facts,
            shown.quality.plain,
            shown.quality.curves,
            whole=whole,
            sampled=sampled,
            detail=PAGE,
            complete=figures_bytes < QUALITY_FIGURES_BYTES,
        )
        figures_bytes += len(part.data["figures"])
        quality.append(part)
    return [*extra_parts(shown), *(parts[facet.number] for facet in facets), *quality]


def extra_parts(shown: Shown) -> list[Part]:
    """The parts that are about no single comparison."""
    parts = [change_part(shown.changes)] if shown.changes is not None else []
    return parts + ([history_part(shown.history)] if shown.history is not None else [])


def titled_facets(facets: Sequence[Facet]) -> list[tuple[Facet, str, Mapping[str, str]]]:
    """Each facet with its title and what the filters ask of it."""
    firsts = [{str(k): v for k, v in facet.rows.iloc[0].items()} for facet in facets]
    named = zip(facets, facet_titles(firsts), machine_names(firsts), strict=True)
    return [(facet, title, facts_of(facet, machine)) for facet, title, machine in named]


def chosen_part(parts: Sequence[Part]) -> Part | None:
    """What shows at first: two runs or a history that were asked for, else the richest answer.

    Of answers, one about speed comes before one about quality.
    """
    leading = next((part for part in parts if part.leads), None)
    return leading or max(
        parts,
        key=lambda part: (
            part.complete,
            part.answered,
            "task" not in part.facts,
            part.counts.get("ok", 0),
        ),
        default=None,
    )


def _fit(parts: Sequence[Part], chosen: Part | None) -> dict[str, Block]:
    """The parts' HTML, packed where it does not show at first until ``PLAIN_BYTES`` are enough.

    That is the parts that are not chosen, then the tables of the one that is.
    """
    bodies = {part.key: Block(part.render()) for part in parts}
    if chosen is None:
        return bodies
    size_bytes = len(packed_plotly()) + sum(part.data_bytes for part in parts)
    size_bytes += sum(body.size_bytes for body in bodies.values())
    others = [body for key, body in bodies.items() if key != chosen.key]
    for blocks in (others, list(chosen.blocks)):
        for block in sorted(blocks, key=lambda block: -block.size_bytes):
            if size_bytes > PLAIN_BYTES:
                plain_bytes = block.size_bytes
                block.pack()
                size_bytes += block.size_bytes - plain_bytes
    return {**bodies, chosen.key: Block(chosen.render())}
