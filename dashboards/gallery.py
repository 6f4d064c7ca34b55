"""Pictures of a report for the docs, made anew from rows by one command.

    python -m dynbench.dashboards.gallery results/h200 results/cpu-quality docs/images/report

It writes the page's first screen (light, dark, narrow), a case's drawer and the figures of the
comparison with most to say, and the first screen of the trainings with most rows, if there are any.
It needs the extra ``figures`` and Chrome or Chromium.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from dynbench.dashboards.compare import best_by_lists
from dynbench.dashboards.errors import ReportError
from dynbench.dashboards.export import alone, export_figures
from dynbench.dashboards.figures.answer import answer_figure
from dynbench.dashboards.frame import prepare
from dynbench.dashboards.model import Facet, facets_of
from dynbench.dashboards.quality.curves import read_curves_below
from dynbench.dashboards.quality.model import quality_groups
from dynbench.dashboards.report import write_report
from dynbench.dashboards.summary import importance
from dynbench.dashboards.views import views
from dynbench.harness.store import read_runs

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "chrome")
FIGURES = (
    "latency",
    "speedup",
    "heatmap",
    "stages",
    "dense-equivalent",
    "roofline",
    "memory",
    "samples",
)
WAIT_MS = 20_000  # of the page's own time, which passes as fast as its work allows


@dataclass(frozen=True)
class Picture:
    """A screenshot: what of the page, and how wide and tall the window is."""

    name: str
    width_px: int
    height_px: int
    dark: bool = False
    anchor: str = ""


def make_gallery(runs: Sequence[Path], folder: Path) -> list[Path]:
    """Write the pictures of the runs in and below ``runs`` into ``folder``; return them.

    Raises ReportError where there is no browser, no kaleido, or no comparison to show.
    """
    frame, _ = read_runs(runs)
    plain = prepare(frame)
    facets = facets_of(plain, None)
    if not facets:
        told = ", ".join(map(str, runs))
        raise ReportError(f"no rows of speed in {told}: name a run or a folder of runs")
    facet = max(facets, key=importance)
    pictures = _pictures(facet)
    groups = quality_groups(plain)
    if groups:
        most = max(groups, key=lambda group: len(group.facet.rows))
        pictures.append(Picture("quality", 1280, 720, anchor=f"q{most.number}"))
    curves, _ = read_curves_below(runs)
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as place:
        page = write_report(frame, Path(place) / "report.html", curves=curves)
        files = [_screenshot(page, folder, picture) for picture in pictures]
    return files + _figures(facet, folder)


def _pictures(facet: Facet) -> list[Picture]:
    best = [held for panel in facet.panels for held in best_by_lists(panel)]
    line = best[0].line if best else facet.panels[0].lines[0]
    key = f"f{facet.number}"
    case = f"{key}-case-{line.points[-1].case}" if line.points else key
    return [
        Picture("first-screen", 1280, 720, anchor=key),
        Picture("dark", 1280, 720, dark=True, anchor=key),
        Picture("case", 1280, 900, anchor=case),
        Picture("narrow", 500, 1100, anchor=key),
    ]


def _screenshot(page: Path, folder: Path, picture: Picture) -> Path:
    program = next((found for name in BROWSERS if (found := shutil.which(name))), None)
    if program is None:
        raise ReportError("pictures need Chrome or Chromium on PATH: install it")
    file = (folder / f"{picture.name}.png").absolute()
    command = [
        *(program, "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars"),
        f"--window-size={picture.width_px},{picture.height_px}",
        f"--virtual-time-budget={WAIT_MS}",
        *(["--blink-settings=preferredColorScheme=0"] if picture.dark else []),
        f"--screenshot={file}",
        f"{page.as_uri()}#{picture.anchor}",
    ]
    subprocess.run(command, check=True, capture_output=True, timeout=120)
    return file


def _figures(facet: Facet, folder: Path) -> list[Path]:
    panel = facet.panels[0]
    drawn = {view.key: view.draw(facet, panel) for view in views(facet.baseline, facet.suite)}
    wanted = [("answer", answer_figure(facet)), *((key, drawn.get(key)) for key in FIGURES)]
    named = [(name, alone(figure)) for name, figure in wanted if figure is not None]
    return export_figures(named, folder, formats=("svg",))


if __name__ == "__main__":
    if len(sys.argv) < 3:
        sys.exit("usage: python -m dynbench.dashboards.gallery RUNS [RUNS...] FOLDER")
    *given, target = map(Path, sys.argv[1:])
    for written in make_gallery(given, target):
        print(written, f"{written.stat().st_size / 1000:.0f} kB")
