"""Where the names of lines stand in a plot whose width is not known yet.

The page is as wide as its window, so a horizontal place is a share of the plotting area's width
plus pixels, and a vertical one pixels below that area's top. What two things share is asked for
every width of a range at once: a name that is free is free in each of these windows.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

LINE_PX = 16
"""Height of a line of text in a name."""

CHARACTER_PX = 8.4
"""Width of a character of 12 px: that of the widest of the page's fonts, since any may be used."""

BESIDE_PX = 10
"""From the end of a line to a name at its right or left."""

MARKER_PX = 6
"""From the centre of a marker to its rim, and a little."""

STROKE_PX = 2
"""Half of what a line or a bar takes up, and a little."""

_BETWEEN_PX = 8  # two names below each other: else they read as one
_STEP_PX = 6
_STEPS = 7  # up to which a name is moved away from its line

Widths = tuple[float, float]
"""The least and the largest width of the plotting area (px)."""


@dataclass(frozen=True)
class Segment:
    """A straight stroke from (``x0``, ``y0``) to (``x1``, ``y1``): x in shares, y in px.

    A marker is one without length. ``half_px`` is half of the stroke's width.
    """

    x0: float
    y0: float
    x1: float
    y1: float
    half_px: float = STROKE_PX


@dataclass(frozen=True)
class Box:
    """A rectangle at the share ``x``: its sides in px, left and right of there and below the top.

    ``anchor`` is the side (or ``center``) of it that a text narrower than the box keeps to.
    """

    x: float
    left: float
    right: float
    top: float
    bottom: float
    anchor: str = "left"


@dataclass(frozen=True)
class Area:
    """The plot that a name has to stay in: its sides in shares and in px below the top.

    ``spare_px`` is what a name may reach beyond its right side.
    """

    left: float
    right: float
    top: float
    bottom: float
    spare_px: float = 0.0


@dataclass(frozen=True)
class End:
    """Where a line ends: at ``x`` (share) and ``y`` (px), its bar from ``top`` to ``bottom``.

    ``width_px`` and ``height_px`` are those of its name; ``above`` says which side of the line is
    the better place for it.
    """

    x: float
    y: float
    top: float
    bottom: float
    width_px: float
    height_px: float
    above: bool = True


def text_width_px(lines: Iterable[str]) -> float:
    """What lines of text, the longest of them, take up at most."""
    return CHARACTER_PX * max(map(len, lines), default=0)


def column(ends: Sequence[End], area: Area, avoid: float, widths: Widths) -> list[Box | None]:
    """Names of lines that end at the right: beside their ends, apart, in the order of the lines.

    ``ends`` are sorted downwards. A name leaves the height ``avoid`` free where there is room. None
    for one that is too wide or for which the area is not high enough.
    """
    placed: list[Box | None] = []
    floor = area.top
    below_px = sum(end.height_px + _BETWEEN_PX for end in ends) - _BETWEEN_PX
    for end in ends:
        middle = end.y
        if abs(middle - avoid) < end.height_px / 2:
            middle = avoid + (-1 if end.y <= avoid else 1) * end.height_px / 2
        top = max(floor, min(middle - end.height_px / 2, area.bottom - below_px))
        below_px -= end.height_px + _BETWEEN_PX
        box = Box(end.x, BESIDE_PX, BESIDE_PX + end.width_px, top, top + end.height_px)
        fits = _inside(box, area, widths)
        placed.append(box if fits else None)
        floor = box.bottom + _BETWEEN_PX if fits else floor
    return placed


def free_place(
    end: End, area: Area, drawn: Sequence[Segment], names: Sequence[Box], widths: Widths
) -> Box | None:
    """The nearest place of a name within the area that nothing crosses; None where there is none.

    At the right of the line's end if that is free; else above and below it, else at the left.
    """
    for box in _candidates(end):
        if not _inside(box, area, widths):
            continue
        if any(crosses(box, stroke, widths) for stroke in drawn):
            continue
        if not any(overlap(box, name, widths) for name in names):
            return box
    return None


def crosses(box: Box, stroke: Segment, widths: Widths) -> bool:
    """Whether the stroke enters the box at any width."""
    half = stroke.half_px
    ends = sorted(((stroke.y0, stroke.x0), (stroke.y1, stroke.x1)))
    (high, x_high), (low, x_low) = ends
    top, bottom = max(high, box.top - half), min(low, box.bottom + half)
    if top > bottom:
        return False
    if low > high:  # the part of it that is as high as the box, whatever the width
        per_px = (x_low - x_high) / (low - high)
        x_low, x_high = x_high + per_px * (bottom - high), x_high + per_px * (top - high)
    first, last = min(x_high, x_low) - box.x, max(x_high, x_low) - box.x
    return _meet(first, last, box.left - half, box.right + half, widths)


def overlap(box: Box, other: Box, widths: Widths) -> bool:
    """Whether two boxes share a place at any width."""
    if box.top >= other.bottom or other.top >= box.bottom:
        return False
    apart = other.x - box.x
    return _meet(apart, apart, box.left - other.right, box.right - other.left, widths)


def _meet(first: float, last: float, left: float, right: float, widths: Widths) -> bool:
    """Whether shares ``first`` to ``last`` of some width have a place between two px."""
    least, most = widths
    for share, limit in ((first, right), (-last, -left)):  # share * width < limit
        if share > 0:
            most = min(most, limit / share)
        elif share < 0:
            least = max(least, limit / share)
        elif limit <= 0:
            return False
    return least < most


def _inside(box: Box, area: Area, widths: Widths) -> bool:
    if box.top < area.top or box.bottom > area.bottom:
        return False
    return all(
        box.x * width + box.left >= area.left * width
        and box.x * width + box.right <= area.right * width + area.spare_px
        for width in widths
    )


def _candidates(end: End) -> Iterator[Box]:
    """Boxes around the end of a line, the better ones first."""
    wide, middle = end.width_px, end.y - end.height_px / 2
    yield Box(end.x, BESIDE_PX, BESIDE_PX + wide, middle, middle + end.height_px)
    spans = (
        (-wide / 2, wide / 2, "center"),
        (-BESIDE_PX, wide - BESIDE_PX, "left"),
        (BESIDE_PX - wide, BESIDE_PX, "right"),
    )
    for above in (end.above, not end.above):
        for step in range(_STEPS):
            away = MARKER_PX + STROKE_PX + step * _STEP_PX
            top = end.top - away - end.height_px if above else end.bottom + away
            for left, right, anchor in spans:
                yield Box(end.x, left, right, top, top + end.height_px, anchor)
    yield Box(end.x, -BESIDE_PX - wide, -BESIDE_PX, middle, middle + end.height_px, "right")
