"""The part of a report about one group of trainings: its words, figures, tables and rows."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass

import pandas as pd

from dynbench.dashboards.figures.common import Figure
from dynbench.dashboards.machine import machine_card
from dynbench.dashboards.parts import Body, Drawn, Part, Section, Slot, block_of, part_of
from dynbench.dashboards.quality.curves import Curves
from dynbench.dashboards.quality.figures import share_figure
from dynbench.dashboards.quality.model import QualityGroup, drawn_configs
from dynbench.dashboards.quality.summary import first_screen
from dynbench.dashboards.quality.tables import overview_table
from dynbench.dashboards.quality.views import WHOLE, Detail, QualityView, ViewFigure, quality_views
from dynbench.dashboards.summary import status_counts
from dynbench.dashboards.tables import failure_details, failures_table
from dynbench.dashboards.text import count_text, label_text


@dataclass(frozen=True)
class QualityBody(Body):
    """Everything that the template of a group shows."""

    close: str
    reference: str
    notes: Sequence[str]


def quality_part(
    group: QualityGroup,
    title: str,
    facts: Mapping[str, str],
    plain: pd.DataFrame,
    curves: Curves,
    *,
    whole: Collection[int] | None,
    sampled: Collection[int],
    detail: Detail = WHOLE,
    complete: bool = True,
) -> Part:
    """The part of one group.

    ``plain`` are all prepared rows of the report, among which latencies are looked for. ``whole``
    are the rows that keep all columns (None: all), ``sampled`` those that keep their samples;
    ``detail`` limits the curves, and without ``complete`` there is neither figure nor table.
    """
    key = f"q{group.number}"
    made = Drawn(key)
    facet = group.facet
    first = first_screen(group)
    configs = drawn_configs(group, detail.configs)
    answer = made.slot(
        "answer",
        0,
        f"{group.measure.title} over the attended share. {group.measure.direction}",
        f"Chart: {first.headline}. Its numbers stand in the tables below.",
        share_figure(group, configs, group.measure) if complete else None,
        None,
    )
    found = quality_views(group, plain, curves, detail) if complete else []
    sections = tuple(_section(view, made) for view in found)
    details, left_out = failure_details(facet) if complete else ([], 0)
    failures, failures_left_out = failures_table(facet) if complete else (None, 0)
    counts = {label_text(status): count for status, count in status_counts(facet).items()}
    overview = overview_table(group, configs) if complete else None
    body = QualityBody(
        key=key,
        title=title,
        counts=counts,
        first=first,
        answer=answer,
        close=group.measure.close_text,
        reference=f"the {group.measure.noun} of "
        + ("dense attention" if group.dense else "exact lists of the same settings"),
        overview=block_of(overview, f"{key}-overview-table"),
        sections=sections,
        notes=_notes(group, len(configs), complete),
        card=machine_card(facet),
        failures=block_of(failures, f"{key}-failures-table"),
        failures_left_out=failures_left_out,
        details=details,
        details_left_out=left_out,
        rows=len(facet.rows),
    )
    return part_of(
        facet,
        body,
        facts,
        made,
        "quality.html.j2",
        answered=bool(first.answers),
        whole=whole,
        sampled=sampled,
        complete=complete,
    )


def quality_figures(
    group: QualityGroup, plain: pd.DataFrame, curves: Curves
) -> Iterator[tuple[str, str, Figure]]:
    """View, heading and figure of everything that the part draws, its curves whole."""
    for view in quality_views(group, plain, curves, WHOLE):
        for drawn in view.figures:
            yield view.key, drawn.heading, drawn.figure


def _section(view: QualityView, made: Drawn) -> Section:
    slots = tuple(_slot(view, place, drawn, made) for place, drawn in enumerate(view.figures))
    return Section(view.key, view.title, view.direction, view.note, slots)


def _slot(view: QualityView, place: int, drawn: ViewFigure, made: Drawn) -> Slot:
    aria = (
        f"Chart: {view.title}, {drawn.heading}. {view.direction} "
        "Its numbers stand in the table below."
    )
    return made.slot(view.key, place, drawn.heading, aria, drawn.figure, drawn.table)


def _notes(group: QualityGroup, drawn: int, complete: bool) -> list[str]:
    if not complete:
        return [
            "This report has more than one page can draw: this part has its words and its rows. A "
            "report of fewer runs, or dynbench report --site, draws it."
        ]
    total = len(group.configs)
    if drawn == total:
        return []
    return [
        f"Figures and tables have {drawn} of {count_text(total, 'configuration')}: dense "
        "attention, those of the verdicts, and the best of each kind. The first screen rests on "
        "all of them, and the table of cases has every row."
    ]
