"""The samples of a row: lists in the order taken, and what they say of drift."""

from __future__ import annotations

import statistics
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dynbench.dashboards.model import Facet, Line, Panel, Point
from dynbench.dashboards.text import number_text, whole_text

SAMPLE_COLUMNS = ("samples_ms", "samples_at_s", "samples_sm_clock_mhz", "samples_power_w")
"""Lists of a row, in the order in which the page has them."""

_DIGITS = 6


def sampled(facet: Facet, panel: Panel) -> list[tuple[Line, Point, list[list[float] | None]]]:
    """Each line with the newest row of its longest length, and that row's lists; with samples."""
    found = []
    for line in panel.lines:
        for point in reversed(line.points):
            row = facet.rows.loc[point.case]
            lists = [numbers_of(row[name]) for name in SAMPLE_COLUMNS]
            if lists[0] and lists[1] and len(lists[0]) == len(lists[1]):
                found.append((line, point, lists))
                break
    return found


def numbers_of(values: Any) -> list[float] | None:
    """A list of a row as finite numbers of six digits; None where it has none."""
    if not is_list(values):
        return None
    numbers = np.asarray(values, dtype=np.float64)  # None becomes NaN
    held: list[float] = shortened(numbers[~np.isnan(numbers)]).tolist()
    return held


def is_list(values: Any) -> bool:
    """Whether a column of lists holds one in this row, and something in it."""
    return not (values is None or isinstance(values, (str, float)) or len(values) == 0)


def short(value: float) -> float:
    """A number with six significant digits: a page of many numbers stays small."""
    return float(f"{value:.{_DIGITS}g}")


def shortened(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """``short`` of each; NaN and infinities stay."""
    with np.errstate(divide="ignore", invalid="ignore"):
        decimals = _DIGITS - 1 - np.floor(np.log10(np.abs(values)))
    # Up to 22 a power of ten is exact, so the one rounding of product or quotient is the last one.
    plain = np.abs(decimals) <= 22
    power = 10.0 ** np.abs(np.where(plain, decimals, 0.0))
    up = decimals >= 0
    whole = np.rint(np.where(up, values * power, values / power))
    result = np.where(plain, np.where(up, whole / power, whole * power), values)
    far = ~plain & np.isfinite(values) & (values != 0)
    result[far] = [short(value) for value in values[far].tolist()]
    return result


def drift(samples_ms: list[float]) -> float | None:
    """How much slower the last quarter of the samples is than the first; None below 8 samples."""
    if len(samples_ms) < 8:
        return None
    quarter = len(samples_ms) // 4
    return statistics.median(samples_ms[-quarter:]) / statistics.median(samples_ms[:quarter]) - 1


def samples_cells(lists: list[list[float] | None]) -> tuple[str, ...]:
    """Count, duration, drift, and spans of clock and power, as a table has them."""
    samples_ms, at_s = lists[0] or [], lists[1] or []
    change = drift(samples_ms)
    return (
        str(len(samples_ms)),
        f"{number_text(max(at_s, default=0.0) + samples_ms[-1] / 1000)} s",
        f"{number_text(min(samples_ms), 4)}–{number_text(max(samples_ms), 4)}",
        "" if change is None else f"{100 * change:+.1f} %",
        _span(lists[2]),
        _span(lists[3]),
    )


def _span(values: list[float] | None) -> str:
    if not values:
        return ""
    low, high = whole_text(min(values)), whole_text(max(values))
    return low if low == high else f"{low}–{high}"
