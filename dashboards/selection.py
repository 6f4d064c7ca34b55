"""What of a large report is drawn, and which rows keep all that is known of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from operator import itemgetter
from typing import Any

from dynbench.dashboards.compare import FOCUS, best_by_lists
from dynbench.dashboards.frame import PASS_ORDER
from dynbench.dashboards.labels import lists_text
from dynbench.dashboards.model import Facet, Line, Panel
from dynbench.dashboards.samples import is_list
from dynbench.dashboards.theme import base_name

MAX_LINES = 64
"""Lines of a panel in figures and their tables; the table of cases has all."""

SAMPLED_ROWS = 2000
"""Rows of a page that come with their samples."""


def drawn(panel: Panel, limit: int = MAX_LINES) -> Panel:
    """The panel with at most ``limit`` lines, in the order they had.

    Kept are the baseline, the best line of each kind of lists, then from each provider, list kind
    and asked sparsity in turn the line that reaches furthest and is fastest there.
    """
    if len(panel.lines) <= limit:
        return panel
    kinds: dict[tuple[str, str, str], list[Line]] = {}
    for line in sorted(panel.lines, key=_reach, reverse=True):
        kind = (line.provider, lists_text(line.settings), str(line.settings["target_sparsity"]))
        kinds.setdefault(kind, []).append(line)
    turns = [
        (turn, place, line)
        for place, held in enumerate(kinds.values())
        for turn, line in enumerate(held)
    ]
    first = [line for line in panel.lines if line.provider == panel.baseline]
    first += [comparison.line for comparison in best_by_lists(panel)]
    in_turn = [line for *_, line in sorted(turns, key=lambda held: held[:2])]
    chosen = list(dict.fromkeys(line.number for line in [*first, *in_turn]))[:limit]
    kept = set(chosen)
    return replace(panel, lines=tuple(line for line in panel.lines if line.number in kept))


def _reach(line: Line) -> tuple[int, float]:
    if not line.points:
        return (0, 0.0)
    return line.points[-1].seq_len, line.points[-1].speedup or 0.0


def rows_that_matter(facets: Sequence[Facet], limit: int = SAMPLED_ROWS) -> set[int]:
    """Places of the rows whose samples a page keeps where it cannot keep all.

    The newest row of every point comes first, of the focus provider and the baseline before others,
    of the first facets before later ones and of the forward pass before others; then older
    repetitions, the newest first. Only rows with samples count.
    """
    ranked: list[tuple[str, tuple[Any, ...], int]] = []
    for order, facet in enumerate(facets):
        newest = {point.case for p in facet.panels for line in p.lines for point in line.points}
        names = ("provider", "pass", "samples_ms", "started_at")
        columns = [facet.rows[name].tolist() for name in names]
        rows = zip(facet.rows.index.tolist(), *columns, strict=True)
        for place, provider, pass_, samples, started_at in rows:
            if not is_list(samples):
                continue
            compared = base_name(provider) == FOCUS or provider == facet.baseline
            rank = PASS_ORDER.index(pass_) if pass_ in PASS_ORDER else len(PASS_ORDER)
            key = (place not in newest, order, not compared, rank)
            ranked.append((started_at, key, place))
    ranked.sort(key=itemgetter(0), reverse=True)
    ranked.sort(key=itemgetter(1))  # stable: equal ones stay with the newest first
    return {place for *_, place in ranked[:limit]}
