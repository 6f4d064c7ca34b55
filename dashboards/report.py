"""The report: one HTML file that opens from disk and asks nobody for anything."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pandas as pd

    from dynbench.dashboards.change import Changes
    from dynbench.dashboards.quality.curves import Curves


def write_report(
    frame: pd.DataFrame,
    path: Path,
    *,
    baseline: str | None = None,
    problems: Sequence[str] = (),
    history: bool = False,
    changes: Changes | None = None,
    profiles: Sequence[Mapping[str, Any]] = (),
    curves: Curves | None = None,
) -> Path:
    """Write the rows of ``frame`` as a self-contained page to ``path`` and return ``path``.

    Args:
        frame: rows with columns of the schema; absent columns count as empty. No row is fine.
        path: the HTML file; missing folders are made, an old file is replaced in one step.
        baseline: the provider that speed-ups are over, variant included (``sdpa:cudnn``); None
            takes ``sdpa`` where it was measured, else ``flash`` or another dense provider.
        problems: lines about files that could not be read; they lead the page.
        history: whether the page has the latencies over commits, too.
        changes: two runs to compare, which then lead the page.
        profiles: rows of profiles; those of cases in the frame are shown.
        curves: training curves of rows of suite ``quality``, by ``run_id`` and ``case_id``.

    Raises:
        OSError: the file cannot be written.
    """
    from dynbench.dashboards import frame as frames
    from dynbench.dashboards.model import facets_of
    from dynbench.dashboards.page import render, shown_of

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
    write_text(Path(path), render(facets_of(plain, baseline), shown))
    return Path(path)


def write_text(path: Path, text: str) -> None:
    """Write a file in one step; missing folders are made. Raises OSError."""
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        unfinished.write_text(text, encoding="utf-8")
        unfinished.replace(path)
    finally:
        unfinished.unlink(missing_ok=True)
