"""The report as a folder: an index over all runs and machines, and a page for each machine.

Plotly's script is one file that all pages share. What a page shows of a comparison lies in script
files of its own, read when it is chosen: a page opened from disk may load a script, but fetch
nothing. So a site has no limit: every comparison has its figures, every row its samples.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pandas as pd
from markupsafe import Markup
from plotly.offline import get_plotlyjs

from dynbench.dashboards import frame as frames
from dynbench.dashboards.bundle import (
    environment,
    packed,
    packed_json,
    page_script,
    policy,
    template_source,
)
from dynbench.dashboards.cases import samples_json
from dynbench.dashboards.change import Changes
from dynbench.dashboards.labels import commit_text
from dynbench.dashboards.model import Facet, facets_of
from dynbench.dashboards.page import Shown, extra_parts, filled, shown_of, titled_facets
from dynbench.dashboards.parts import Part, facet_part
from dynbench.dashboards.quality.curves import Curves
from dynbench.dashboards.quality.model import QualityGroup
from dynbench.dashboards.quality.part import quality_part
from dynbench.dashboards.report import write_text
from dynbench.dashboards.text import cell_text, command_text, count_text, label_text

INDEX_FILE = "index.html"
PLOTLY_FILE = "plotly.js"
DATA_FOLDER = "data"
ROWS_A_FILE = 2000
"""Rows whose samples share a script file."""


@dataclass(frozen=True)
class Page:
    """A page of the site: a machine's comparisons, or what is about no single one."""

    file: str
    title: str
    parts: Sequence[Part]
    rows: int
    runs: int
    cases: Collection[tuple[str, str]]  # machine_id and case_id of its rows


@dataclass(frozen=True)
class RunLine:
    """A run as the index lists it."""

    run_id: str
    machines: str
    rows: int
    ok: int
    began: str
    commit: str
    command: str


def write_site(
    frame: pd.DataFrame,
    folder: Path,
    *,
    baseline: str | None = None,
    problems: Sequence[str] = (),
    history: bool = False,
    changes: Changes | None = None,
    commands: Mapping[str, str] | None = None,
    profiles: Sequence[Mapping[str, Any]] = (),
    curves: Curves | None = None,
) -> Path:
    """Write the rows of ``frame`` as a site into ``folder`` and return its index.

    ``commands`` are those of the runs by ``run_id``; for the others see ``write_report``. Files of
    an earlier site are replaced, others in the folder stay. Raises OSError where a file cannot be
    written.
    """
    plain = frames.prepare(frame)
    shown = shown_of(
        plain,
        problems=problems,
        history=history,
        changes=changes,
        profiles=profiles,
        baseline=baseline,
        curves=curves,
    )
    folder = Path(folder)
    write_text(folder / PLOTLY_FILE, get_plotlyjs())
    facets, groups = facets_of(plain, baseline), shown.quality.groups
    group_of = {id(group.facet): group for group in groups}
    by_machine: dict[str, list[tuple[Facet, str, Mapping[str, str]]]] = {}
    for titled in titled_facets([*facets, *(group.facet for group in groups)]):
        by_machine.setdefault(titled[2]["machine"], []).append(titled)
    pages: list[Page] = []
    for machine, held in by_machine.items():
        file = _file_name(machine, pages)
        parts = _extra_parts(folder, file.removesuffix(".html"), held, shown)
        for facet, title, facts in held:  # one by one: memory holds the data of one at a time
            group = group_of.get(id(facet))
            part = (
                facet_part(facet, title, facts, whole=None, sampled=())
                if group is None
                else _quality_part(group, title, facts, shown)
            )
            parts.append(_written(folder, part, _write_samples(folder, facet, part.key)))
        rows = sum(len(facet.rows) for facet, _, _ in held)
        runs = {run for facet, _, _ in held for run in facet.rows["run_id"]}
        cases = {
            case
            for f, *_ in held
            for case in zip(f.rows["machine_id"], f.rows["case_id"], strict=True)
        }
        pages.append(Page(file, machine, parts, rows, len(runs), cases))
        write_text(folder / file, _page_html(pages[-1], shown))
    index = folder / INDEX_FILE
    write_text(index, _index(pages, _run_lines(plain, commands or {}), shown))
    return index


def _quality_part(group: QualityGroup, title: str, facts: Mapping[str, str], shown: Shown) -> Part:
    """The part of a group, its curves whole."""
    of = shown.quality
    return quality_part(group, title, facts, of.plain, of.curves, whole=None, sampled=())


def _extra_parts(
    folder: Path, stem: str, held: Sequence[tuple[Facet, str, Any]], shown: Shown
) -> list[Part]:
    """The history of one machine, and the two runs where it has rows of them."""
    numbers = {facet.number for facet, _, facts in held if "task" not in facts}
    groups = [group for group in shown.history or () if numbers & set(group.facets)]
    changes = shown.changes
    if changes is not None and not any(home in numbers for _, home in changes.places.values()):
        changes = None
    own = replace(shown, history=groups or None, changes=changes)
    parts = [replace(part, folder=stem) for part in extra_parts(own)]
    return [_written(folder, part, {}) for part in parts]


def _written(folder: Path, part: Part, samples: Mapping[str, Any]) -> Part:
    """Write the part's data and HTML; return the part without them."""
    held = {**part.data, "body": packed(part.render())}
    if samples:
        held["samples"] = packed_json(samples)
    for name, data in held.items():
        _write_data(folder, f"{part.key}.{name}", data, part.folder)
    return replace(part, render=lambda: "", data={}, blocks=())


def _file_name(machine: str, pages: Sequence[Page]) -> str:
    """A short name of letters and digits that no other page has."""
    stem = re.sub(r"[^a-z0-9]+", "-", machine.lower()).strip("-")[:40].strip("-") or "machine"
    taken = {page.file for page in pages} | {INDEX_FILE}
    name, count = f"{stem}.html", 2
    while name in taken:
        name, count = f"{stem}-{count}.html", count + 1
    return name


def _page_html(page: Page, shown: Shown) -> str:
    own = [view for view in shown.profiles if (view.machine_id, view.case_id) in page.cases]
    return filled(
        page.parts,
        replace(shown, profiles=own),
        {part.key: None for part in page.parts},
        rows=page.rows,
        licence="",
        bundle="",
        plotly_file=PLOTLY_FILE,
        home=INDEX_FILE,
        policy=policy(page_script(), files=True),
    )


def _write_samples(folder: Path, facet: Facet, key: str) -> dict[str, Any]:
    """The samples of all rows in files of ``ROWS_A_FILE`` rows, and which file has which rows."""
    files = []
    for first in range(0, len(facet.rows), ROWS_A_FILE):
        rows = facet.rows.iloc[first : first + ROWS_A_FILE]
        name = f"{key}.samples{first // ROWS_A_FILE}"
        _write_data(folder, name, packed_json(samples_json(rows, rows.index)))
        files.append([int(rows.index[0]), int(rows.index[-1]), name])
    return {"files": files}


def _write_data(folder: Path, name: str, data: str, below: str = "") -> None:
    """A script that hands packed text (letters of base64 alone) to the page."""
    write_text(folder / DATA_FOLDER / below / f"{name}.js", f'dynbenchPart("{name}","{data}");\n')


def _run_lines(plain: pd.DataFrame, commands: Mapping[str, str]) -> list[RunLine]:
    lines = []
    for run_id, rows in plain.groupby("run_id", sort=True):
        first = rows.iloc[0]
        machines = Counter(
            label_text(g or c) for g, c in zip(rows["gpu_name"], rows["cpu_name"], strict=True)
        )
        began = sorted(text for text in rows["started_at"] if text)
        lines.append(
            RunLine(
                run_id=label_text(str(run_id)) or "no name",
                machines=", ".join(machines),
                rows=len(rows),
                ok=int((rows["status"] == "ok").sum()),
                began=label_text(began[0]) if began else "",
                commit=commit_text(first["git_commit"], first["git_dirty"]),
                command=command_text(commands.get(str(run_id), "")),
            )
        )
    return lines


def _index(pages: Sequence[Page], runs: Sequence[RunLine], shown: Shown) -> str:
    parts = [(page, part) for page in pages for part in page.parts]
    answered = [part for _, part in parts if part.answered]
    rows = sum(page.rows for page in pages)
    headline = (
        f"{count_text(rows, 'row')} of {count_text(len(runs), 'run')} on "
        f"{count_text(sum(1 for page in pages if page.rows), 'machine')}: "
        f"{len(answered)} of {count_text(len([p for _, p in parts if p.facts]), 'comparison')} "
        "with an answer"
    )
    script = template_source("js/index.js")
    return (
        environment()
        .get_template("index.html.j2")
        .render(
            headline=headline,
            pages=pages,
            runs=runs,
            problems=[cell_text(problem) for problem in shown.problems],
            created=shown.created,
            policy=policy(script),
            script=Markup(script),
            style=Markup(template_source("style.css")),
        )
    )
