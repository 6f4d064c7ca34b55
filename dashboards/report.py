"""The report: one HTML file that opens from disk and asks nobody for anything."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pandas as pd


def write_report(
    frame: pd.DataFrame,
    path: Path,
    *,
    baseline: str = "sdpa",
    problems: Sequence[str] = (),
    profiles: Sequence[Mapping[str, Any]] = (),
) -> Path:
    """Write the rows of ``frame`` as a self-contained page to ``path`` and return ``path``.

    Args:
        frame: rows with columns of the schema; absent columns count as empty. No row is fine.
        path: the HTML file; missing folders are made, an old file is replaced in one step.
        baseline: the provider that speed-ups are over, variant included (``sdpa:cudnn``).
        problems: lines about files that could not be read; they lead the page.
        profiles: rows of profiles; those of cases in the frame are shown.

    Raises:
        OSError: the file cannot be written.
    """
    from dynbench.dashboards.model import build_facets
    from dynbench.dashboards.page import render
    from dynbench.dashboards.profiles import profile_views

    path = Path(path)
    created = datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC")
    html = render(
        build_facets(frame, baseline),
        baseline=baseline,
        problems=problems,
        created=created,
        profiles=profile_views(profiles, frame.get("case_id", ())),
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        unfinished.write_text(html, encoding="utf-8")
        unfinished.replace(path)
    finally:
        unfinished.unlink(missing_ok=True)
    return path
