"""The parts of a report: one per comparison, one for the history, one for two runs.

A part is what the page shows at a time: its HTML, its figures, its rows. The page and the site
differ in where the parts lie, not in what they are.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from markupsafe import Markup

from dynbench.dashboards.bundle import environment, packed, packed_json
from dynbench.dashboards.cases import cases_json, lines_json, samples_json
from dynbench.dashboards.change import Changes, change_table
from dynbench.dashboards.figures.answer import answer_figure
from dynbench.dashboards.figures.change import MAX_CASES, change_figure
from dynbench.dashboards.figures.common import Figure
from dynbench.dashboards.figures.history import history_figure, history_table
from dynbench.dashboards.history import HistoryGroup, homes_of
from dynbench.dashboards.history import headline as history_headline
from dynbench.dashboards.machine import FactGroup, machine_card
from dynbench.dashboards.model import Facet
from dynbench.dashboards.selection import drawn
from dynbench.dashboards.summary import (
    FirstScreen,
    baselines_offered,
    first_screen,
    status_counts,
)
from dynbench.dashboards.tables import (
    Detail,
    Table,
    failure_details,
    failures_table,
    overview_table,
)
from dynbench.dashboards.text import cell_text, count_text, label_text
from dynbench.dashboards.views import View, views


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

    def pack(self) -> None:
        """Put the HTML into its packed form."""
        self.packed = packed(self.html)


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
    """A view: its figures, one per pass."""

    key: str
    title: str
    direction: str
    note: str
    slots: tuple[Slot, ...]

    @property
    def has_numbers(self) -> bool:
        """Whether any pass has something to show here."""
        return any(slot.number is not None or slot.table is not None for slot in self.slots)


@dataclass(frozen=True)
class Part:
    """One part of a report.

    ``render`` makes its HTML anew, after ``blocks`` (its tables) were packed. ``data`` holds what
    the page's script unpacks, by name: ``figures``, ``cases``, ``samples``.
    """

    key: str
    title: str
    facts: Mapping[str, str]  # what the filters ask; empty where no filter applies
    rows: int
    counts: Mapping[str, int]
    headline: str
    answered: bool
    render: Callable[[], str]
    data: Mapping[str, str]
    blocks: Sequence[Block] = ()
    complete: bool = True  # whether its figures are here
    leads: bool = False  # whether it shows at first: it was asked for, and has something to say
    folder: str = ""  # of its data in a site, where its key alone is not unique

    @property
    def data_bytes(self) -> int:
        """Bytes of its data."""
        return sum(map(len, self.data.values()))


@dataclass
class Drawn:
    """The figures of a part, in the order in which its slots count them."""

    key: str
    figures: list[Figure] = field(default_factory=list)

    def slot(
        self, view: str, place: int, heading: str, aria: str, figure: Any, table: Table | None
    ) -> Slot:
        """A slot for the figure (which may be None) and its table."""
        id_ = f"{self.key}-{view}-{place}"
        number = None
        if figure is not None:
            number = len(self.figures)
            self.figures.append(figure)
        height_px = int(figure.layout["height"]) if figure is not None else 0
        return Slot(id_, heading, aria, number, height_px, block_of(table, f"{id_}-table"))

    def packed(
        self, lines: Mapping[int, Sequence[str]], homes: Mapping[int, int] | None = None
    ) -> str:
        """All figures, the lines that the filters know, and where rows of other parts are."""
        figures = [figure.json for figure in self.figures]
        return packed_json({"figures": figures, "lines": lines, "homes": homes or {}})


@dataclass(frozen=True)
class Body:
    """What the templates of all parts with a facet show."""

    key: str
    title: str
    counts: Mapping[str, int]
    first: FirstScreen
    answer: Slot
    overview: Block | None
    sections: Sequence[Section]
    card: Sequence[FactGroup]
    failures: Block | None
    failures_left_out: int
    details: Sequence[Detail]
    details_left_out: int
    rows: int


@dataclass(frozen=True)
class FacetBody(Body):
    """Everything that the template of a comparison shows."""

    baseline: str
    offered: Sequence[str]
    left_out: str
    complete: bool


def facet_part(
    facet: Facet,
    title: str,
    facts: Mapping[str, str],
    *,
    whole: Collection[int] | None,
    sampled: Collection[int],
    complete: bool = True,
) -> Part:
    """The part of one comparison.

    ``whole`` are the rows that keep all columns (None: all), ``sampled`` those that keep their
    samples; without ``complete`` it has its words and its cases alone, neither figures nor tables.
    """
    key = f"f{facet.number}"
    made = Drawn(key)
    first = first_screen(facet)
    answer = made.slot(
        "answer",
        0,
        "",
        f"Chart: {first.headline}. Its numbers stand in the tables below.",
        answer_figure(facet) if complete else None,
        None,
    )
    shown = [drawn(panel) for panel in facet.panels]
    small = Facet(facet.number, facet.rows, tuple(shown), facet.baseline)
    sections: tuple[Section, ...] = ()
    if complete:
        found = views(facet.baseline, facet.suite)
        filled = [(view, _section(small, view, made)) for view in found]
        sections = tuple(one for view, one in filled if one.has_numbers or not view.optional)
    details, left_out = failure_details(facet) if complete else ([], 0)
    failures, failures_left_out = failures_table(facet) if complete else (None, 0)
    counts = {label_text(status): count for status, count in status_counts(facet).items()}
    body = FacetBody(
        key=key,
        title=title,
        baseline=label_text(facet.baseline),
        counts=counts,
        first=first,
        answer=answer,
        offered=[label_text(name) for name in baselines_offered(facet)],
        overview=block_of(overview_table(small) if complete else None, f"{key}-overview-table"),
        sections=sections,
        left_out=_left_out(facet, shown),
        card=machine_card(facet),
        failures=block_of(failures, f"{key}-failures-table"),
        failures_left_out=failures_left_out,
        details=details,
        details_left_out=left_out,
        rows=len(facet.rows),
        complete=complete,
    )
    return part_of(
        facet,
        body,
        facts,
        made,
        "facet.html.j2",
        answered=first.best is not None,
        whole=whole,
        sampled=sampled,
        complete=complete,
    )


def part_of(
    facet: Facet,
    body: Body,
    facts: Mapping[str, str],
    made: Drawn,
    template: str,
    *,
    answered: bool,
    whole: Collection[int] | None,
    sampled: Collection[int],
    complete: bool,
) -> Part:
    """The part that shows ``body`` by the template of this name, with the facet's rows."""
    tables = [slot.table for section in body.sections for slot in section.slots]
    return Part(
        key=body.key,
        title=body.title,
        facts=facts,
        rows=len(facet.rows),
        counts=body.counts,
        headline=body.first.headline,
        answered=answered,
        render=lambda: environment().get_template(template).render(part=body),
        data={
            "figures": made.packed(lines_json(facet)),
            "cases": packed_json(cases_json(facet, whole)),
            "samples": packed_json(samples_json(facet.rows, sampled)),
        },
        blocks=[block for block in (body.overview, *tables, body.failures) if block is not None],
        complete=complete,
    )


def history_part(groups: Sequence[HistoryGroup]) -> Part:
    """The part with every case over commits; without any it says so."""
    made = Drawn("history")
    sections = []
    for place, group in enumerate(groups):
        slots = tuple(
            made.slot(
                f"group{place}",
                number,
                label_text(panel.title),
                f"Chart: latency over commits, {label_text(panel.title.lower())}, {group.title}. "
                "Lower is better. Its numbers stand in the table below.",
                history_figure(panel),
                history_table(panel),
            )
            for number, panel in enumerate(group.panels)
        )
        sections.append(Section(f"group{place}", group.title, "Lower is better.", _OVER, slots))
    homes = homes_of(groups)
    headline = history_headline(groups)
    return _plain_part("history", "History over commits", headline, made, sections, homes)


def change_part(changes: Changes) -> Part:
    """The part with two runs against each other."""
    made, drawn_cases = Drawn("change"), _drawn_cases(changes)
    slot = made.slot(
        "cases",
        0,
        "All passes",
        f"Chart: change of each case. {changes.headline}. {drawn_cases}"
        "Its numbers stand in the table below.",
        change_figure(changes),
        change_table(changes),
    )
    section = Section(
        "cases",
        "Change of the median latency",
        "Left is faster.",
        f"{drawn_cases}{_BETWEEN}",
        (slot,),
    )
    title = f"Two runs: {label_text(changes.first)} and {label_text(changes.second)}"
    homes = dict(changes.places.values())
    return _plain_part(
        "change", title, changes.headline, made, [section], homes, notes=changes.notes
    )


def _drawn_cases(changes: Changes) -> str:
    """How many of the cases the figure has, where it has not all of them."""
    count = len(changes.with_change)
    if count <= MAX_CASES:
        return ""
    return f"Drawn are {MAX_CASES} of {count} cases: the first of the table's order. "


_OVER = (
    "Median latency over that of the case's first commit. A ring marks where a case became slower "
    "or faster than at the commit before: quartile ranges apart, and more than 3 %. Where torch, "
    "Triton or the driver changed, the curve has a gap. This advises; only the gate decides."
)
_BETWEEN = (
    "The bars are the bounds that the change lies between, as the gate judges it; the grey field "
    "is its threshold. With one process on each side, the noise between processes is assumed."
)


def _plain_part(
    key: str,
    title: str,
    headline: str,
    made: Drawn,
    sections: Sequence[Section],
    homes: Mapping[int, int],
    notes: Sequence[str] = (),
) -> Part:
    shown = [cell_text(note) for note in notes]
    tables = [slot.table for section in sections for slot in section.slots]
    return Part(
        key=key,
        title=title,
        facts={},
        rows=0,
        counts={},
        headline=headline,
        answered=False,
        render=lambda: (
            environment()
            .get_template("plain.html.j2")
            .render(key=key, title=title, headline=headline, sections=sections, notes=shown)
        ),
        data={"figures": made.packed({}, homes)},
        blocks=[table for table in tables if table is not None],
        leads=any(table is not None for table in tables),
    )


def _section(facet: Facet, view: View, made: Drawn) -> Section:
    slots = tuple(
        made.slot(
            view.key,
            place,
            label_text(panel.title),
            f"Chart: {view.title}, {label_text(panel.title.lower())}. {view.direction} "
            "Its numbers stand in the table below.",
            view.draw(facet, panel),
            view.table(facet, panel),
        )
        for place, panel in enumerate(facet.panels)
    )
    return Section(view.key, view.title, view.direction, view.note, slots)


def _left_out(facet: Facet, shown: Sequence[Any]) -> str:
    """A note where not every line is drawn."""
    all_lines = sum(len(panel.lines) for panel in facet.panels)
    kept = sum(len(panel.lines) for panel in shown)
    if kept == all_lines:
        return ""
    return (
        f"Figures and their tables have {kept} of {count_text(all_lines, 'line')}: the baseline, "
        "the best of each kind of lists, and the fastest of each setting. The first screen rests "
        "on all of them, and the table of cases has every row."
    )


def block_of(table: Table | None, id_: str) -> Block | None:
    """The HTML of a table; None for none."""
    if table is None:
        return None
    macros: Any = environment().get_template("macros.html.j2").module
    return Block(str(macros.data_table(table, id_)))
