"""What ``dynbench report`` writes and ``dynbench serve`` shows, from the paths of runs."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dynbench.dashboards.errors import ReportError
from dynbench.harness.profile.schema import read_profiles
from dynbench.harness.store import check_output_root, list_runs, read_runs

if TYPE_CHECKING:
    import pandas as pd

    from dynbench.dashboards.change import Changes
    from dynbench.dashboards.live import LiveRows
    from dynbench.dashboards.quality.curves import Curves

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


def check(paths: Sequence[Path], options: ReportOptions) -> None:
    """Raise OutputError or ReportError where the options name a place that cannot be written."""
    place = target(paths, options)
    check_output_root(place if options.site else place.parent)
    if place.is_dir() and not options.site:
        raise ReportError(f"--out {place}: is a folder; name a file in it, such as report.html")


def write(
    frame: pd.DataFrame,
    paths: Sequence[Path],
    options: ReportOptions,
    *,
    problems: Sequence[str] = (),
    changes: Changes | None = None,
) -> list[Path]:
    """Write the report of the rows; return what to look at: the page or index, the figures' folder.

    Raises ReportError where a file or the figures cannot be written.
    """
    from dynbench.dashboards.quality.curves import read_curves_below
    from dynbench.dashboards.report import write_report
    from dynbench.dashboards.site import write_site

    place = target(paths, options)
    profiles, unread = read_profiles(paths)
    curves, torn = read_curves_below(paths)
    asked: dict[str, Any] = {
        "baseline": options.baseline,
        "problems": [*problems, *unread, *torn],
        "history": options.history,
        "changes": changes,
        "profiles": profiles,
        "curves": curves,
    }
    try:
        if options.site:
            written = write_site(frame, place, commands=_commands(paths), **asked)
        else:
            written = write_report(frame, place, **asked)
        if not options.figures:
            return [written]
        return [written, _figures(frame, written.parent, options, changes, curves)]
    except OSError as error:
        raise ReportError(f"--out {place}: {error.strerror}; name another file") from None


def changes_between(first: Path, second: Path) -> Changes:
    """What the gate says of the second run's rows against the first's. Raises GateError."""
    from dynbench.dashboards.change import Changes
    from dynbench.harness.gate import gating
    from dynbench.harness.gate.baselines import Baseline
    from dynbench.harness.gate.settings import Settings

    outcome = gating.gate_stored(Baseline(first.name, first, {}), second, Settings())
    return Changes(first.name, second.name, outcome.records(), outcome.notes)


def live_rows(path: Path) -> LiveRows:
    """What the run at ``path``, or the newest one below it, has by now."""
    from dynbench.dashboards.live import LiveRows

    runs = list_runs(path)
    frame, _ = read_runs([runs[-1].path] if runs else [])
    if not runs:
        return LiveRows("", frame)
    return LiveRows(runs[-1].run_id, frame, runs[-1].planned_cases, runs[-1].finished)


def _figures(
    frame: pd.DataFrame,
    beside: Path,
    options: ReportOptions,
    changes: Changes | None,
    curves: Curves,
) -> Path:
    from dynbench.dashboards import frame as frames
    from dynbench.dashboards.export import export_figures, figures_of, quality_figures_of
    from dynbench.dashboards.history import build_history
    from dynbench.dashboards.model import facets_of
    from dynbench.dashboards.quality.model import quality_groups

    plain = frames.prepare(frame)
    history = build_history(plain) if options.history else None
    named = list(figures_of(facets_of(plain, options.baseline), history, changes))
    groups = quality_groups(plain, options.baseline)
    named += quality_figures_of(groups, plain, curves)
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
