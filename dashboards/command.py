"""What ``dynbench report`` writes: a page, a site, and figures."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pandas as pd

    from dynbench.dashboards.change import Changes

PAGE_FILE, SITE_FOLDER, FIGURES_FOLDER = "report.html", "site", "figures"


@dataclass(frozen=True)
class ReportOptions:
    """What is asked for: ``out`` is the page, or with ``site`` the folder (None: beside the runs).

    ``baseline`` is None where none was named.
    """

    out: Path | None = None
    baseline: str | None = None
    history: bool = False
    site: bool = False
    figures: bool = False


def target(paths: Sequence[Path], options: ReportOptions) -> Path:
    """The page, or the site's folder, that the options name for these runs."""
    first = paths[0] if paths[0].is_dir() else paths[0].parent
    return options.out or first / (SITE_FOLDER if options.site else PAGE_FILE)


def write(
    frame: pd.DataFrame,
    paths: Sequence[Path],
    options: ReportOptions,
    *,
    problems: Sequence[str] = (),
    changes: Changes | None = None,
) -> list[Path]:
    """Write the report of the rows; return what to look at: the page or index, the figures' folder.

    Raises OSError where a file cannot be written, ``export.ExportError`` where figures cannot be.
    """
    from dynbench.dashboards.report import write_report
    from dynbench.dashboards.site import write_site

    place = target(paths, options)
    if options.site:
        written = write_site(
            frame,
            place,
            baseline=options.baseline,
            problems=problems,
            history=options.history,
            changes=changes,
            commands=_commands(paths),
        )
    else:
        written = write_report(
            frame,
            place,
            baseline=options.baseline,
            problems=problems,
            history=options.history,
            changes=changes,
        )
    return [
        written,
        *(_figures(frame, written.parent, options, changes) if options.figures else []),
    ]


def _figures(
    frame: pd.DataFrame, beside: Path, options: ReportOptions, changes: Changes | None
) -> Path:
    from dynbench.dashboards import frame as frames
    from dynbench.dashboards.export import export_figures, figures_of
    from dynbench.dashboards.history import build_history
    from dynbench.dashboards.model import facets_of

    plain = frames.prepare(frame)
    history = build_history(plain) if options.history else None
    named = list(figures_of(facets_of(plain, options.baseline), history, changes))
    export_figures(named, beside / FIGURES_FOLDER)
    return beside / FIGURES_FOLDER


def _commands(paths: Sequence[Path]) -> Mapping[str, str]:
    """The command of each run under the paths that tells it."""
    found = {}
    for path in paths:
        for file in path.rglob("run.json") if path.is_dir() else ():
            try:
                facts = json.loads(file.read_text(encoding="utf-8"))
                found[str(facts["run_id"])] = str(facts["command"])
            except (OSError, ValueError, KeyError, TypeError):
                continue  # a run without its facts is still a run
    return found
