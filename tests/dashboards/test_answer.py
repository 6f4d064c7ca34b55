"""The figure of the first screen: each line has a name, and nothing lies over it.

Places are computed anew from the figure's own JSON, for windows of many widths.
"""

import itertools
import random
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from dynbench.dashboards.figures.answer import answer_figure
from dynbench.dashboards.figures.common import Figure
from dynbench.dashboards.figures.placing import Box, Segment, crosses, overlap
from dynbench.dashboards.frame import prepare
from dynbench.dashboards.model import Facet, build_facets, facets_of
from dynbench.harness.store import read_runs

Build = Callable[..., dict]
Rectangle = tuple[float, float, float, float]  # left, top, right, bottom in px
ROOT = Path(__file__).parents[2]
WIDTHS_PX = range(300, 901, 15)
KINDS = {
    "exact": {},
    "hybrid": {"query_tile": 16, "private_blocks": 2},
    "shared": {"query_tile": 16, "private_blocks": 0},
}


class Drawing:
    """A figure in a window: what stands where, in px from the top left of its plotting area."""

    def __init__(self, figure: Figure, width_px: int) -> None:
        self.traces = figure.data
        layout = figure.layout
        narrow = layout["meta"]["narrow"] if width_px < layout["meta"]["narrow_px"] else {}
        self.layout = layout | narrow
        margin = self.layout["margin"]
        self.width = width_px - margin["l"] - margin["r"]
        self.height = self.layout["height"] - margin["t"] - margin["b"]

    def place(self, ref: str, log10: float) -> float:
        """The px of a number on the axis that a trace calls ``ref``, such as ``x2``."""
        axis = self.layout[f"{ref[0]}axis{ref[1:]}"]
        (low, high), (start, end) = axis["range"], axis["domain"]
        share = start + (end - start) * (log10 - low) / (high - low)
        return share * self.width if ref[0] == "x" else (1 - share) * self.height

    def strokes(self) -> Iterator[np.ndarray]:
        """Points (N, 2) along each line with its bars, one trace after the other."""
        for trace in self.traces:
            x = [self.place(trace["xaxis"], value) for value in np.log10(trace["x"])]
            y = np.array(trace["y"])
            bars = trace["error_y"]
            tops = np.log10(y + bars["array"])
            bottoms = np.log10(y - bars["arrayminus"])
            ends = list(zip(x, (self.place(trace["yaxis"], v) for v in np.log10(y)), strict=True))
            pairs = [*itertools.pairwise(ends), *zip(ends, ends, strict=True)]
            for at, top, bottom in zip(x, tops, bottoms, strict=True):
                high, low = (self.place(trace["yaxis"], value) for value in (top, bottom))
                pairs.append(((at, high), (at, low)))
            yield np.concatenate([np.linspace(start, end, 900) for start, end in pairs])

    def names(self) -> dict[str, Rectangle]:
        """What each annotation covers, with 7.6 px a character and 15 px a line of text."""
        found = {}
        for note in self.layout["annotations"]:
            lines = [re.sub("<[^>]*>", "", line) for line in note["text"].split("<br>")]
            wide, high = 7.6 * max(map(len, lines)), 15 * len(lines)
            if note["xref"] == "paper":
                x, y = note["x"] * self.width, (1 - note["y"]) * self.height
            else:
                x, y = self.place(note["xref"], note["x"]), self.place(note["yref"], note["y"])
            x, y = x + note.get("xshift", 0), y - note.get("yshift", 0)
            left = x - {"left": 0, "center": wide / 2, "right": wide}[note["xanchor"]]
            top = y - {"middle": high / 2, "bottom": high}[note.get("yanchor", "middle")]
            found[note.get("name", note["text"])] = (left, top, left + wide, top + high)
        return found


def facet_of(
    row: Build, lines: dict[tuple[str, str], dict[int, float]], baseline_ms: float = 1.0
) -> Facet:
    """``lines``: for a pass and a kind of lists the speed-up at each length (in k tokens)."""
    rows = []
    for pass_ in dict.fromkeys(pass_ for pass_, _ in lines):
        held = [points for (other, _), points in lines.items() if other == pass_]
        rows += [
            row("gpu", "sdpa", 1024 * length, latency_ms=baseline_ms, **{"pass": pass_})
            for length in sorted(set().union(*held))
        ]
    for (pass_, kind), points in lines.items():
        for length, speedup in points.items():
            more: dict[str, Any] = {"pass": pass_, "latency_ms": baseline_ms / speedup}
            rows.append(row("gpu", "dynnsiha", 1024 * length, **more, **KINDS[kind]))
    return build_facets(pd.DataFrame(rows), "sdpa")[0]


def committed(folder: str) -> list[Facet]:
    frame, _ = read_runs([ROOT / "results" / folder])
    return facets_of(prepare(frame), None)


def assert_free(figure: Figure) -> None:
    """Each line is named, by a note or in the legend, and no stroke or name lies over a name."""
    for width_px in WIDTHS_PX:
        drawing = Drawing(figure, width_px)
        names = drawing.names()
        for trace, points in zip(drawing.traces, drawing.strokes(), strict=True):
            own = f"line {trace['meta']['lines'][0]}"
            assert own in names or trace.get("showlegend"), f"{own} has no name at {width_px} px"
            for name, (left, top, right, bottom) in names.items():
                if name.startswith("line"):
                    x, y = points.T
                    inside = (left < x) & (x < right) & (top < y) & (y < bottom)
                    assert not inside.any(), f"{own} crosses the name of {name} at {width_px} px"
        for (name, box), (other, beside) in itertools.combinations(names.items(), 2):
            apart = box[2] <= beside[0] or beside[2] <= box[0]
            apart = apart or box[3] <= beside[1] or beside[3] <= box[1]
            assert apart, f"{name} lies over {other} at {width_px} px"


def in_legend(figure: Figure) -> list[str]:
    return [trace["name"] for trace in figure.data if trace.get("showlegend")]


@pytest.mark.parametrize("folder", ["h200", "h100", "cpu"])
def test_names_are_free_in_committed_results(folder: str) -> None:
    figures = [answer_figure(facet) for facet in committed(folder)]
    drawn = [figure for figure in figures if figure is not None]
    assert drawn
    for figure in drawn:
        assert_free(figure)
        assert in_legend(figure) == []


def test_an_early_end_is_named_above_the_line_that_goes_on() -> None:
    """R=4 shared ends at 64k, just above R=4 m=2, which rises to 128k."""
    early = 0
    for figure in map(answer_figure, committed("h200")):
        for note in figure.layout["annotations"] if figure is not None else ():
            furthest = max(max(trace["x"]) for trace in figure.data)
            if note["xref"] != "paper" and 10 ** note["x"] < 0.99 * furthest:
                early += 1
                assert "shared" in note["text"]
                assert note["yshift"] > 15
    assert early == 2


RISING = {8: 1.1, 16: 2.0, 32: 4.0, 64: 7.0, 128: 12.0}
SHAPES = {  # the speed-ups of exact, shared and hybrid lists by length (k tokens)
    "an end below": ({8: 0.6, 16: 1.2}, {}, RISING),
    "an end on the line": ({8: 1.2, 16: 2.01}, {}, RISING),
    "ends at three lengths": ({8: 0.9, 16: 1.8}, {8: 1.4, 64: 8.0}, RISING),
    "all at one": ({8: 1.0, 16: 1.01}, {8: 1.0, 16: 0.99}, {8: 1.0, 16: 1.0}),
    "all slow": ({8: 0.1, 16: 0.1}, {8: 0.2, 16: 0.1}, {8: 0.1, 16: 0.1}),
    "a fall": ({8: 9.0, 16: 6.0}, {}, {8: 10.0, 16: 5.0, 32: 1.0}),
    "single points": ({8: 1.5}, {16: 1.6}, {32: 1.7}),
}


@pytest.mark.parametrize("passes", [1, 2, 3])
@pytest.mark.parametrize("shape", SHAPES)
def test_names_are_free(row: Build, shape: str, passes: int) -> None:
    names = ("forward", "backward", "decode")[:passes]
    held = zip(("exact", "shared", "hybrid"), SHAPES[shape], strict=True)
    kinds = {kind: points for kind, points in held if points}
    lines = {(pass_, kind): points for pass_ in names for kind, points in kinds.items()}
    assert_free(answer_figure(facet_of(row, lines)))


@pytest.mark.parametrize("seed", range(24))
def test_names_are_free_whatever_the_lines(row: Build, seed: int) -> None:
    chance = random.Random(seed)
    lengths = [8, 16, 32, 64, 128]
    lines = {}
    for pass_ in ("forward", "backward", "decode")[: chance.randint(1, 3)]:
        for kind in chance.sample(sorted(KINDS), chance.randint(1, 3)):
            chosen = sorted(chance.sample(lengths, chance.randint(1, 5)))
            lines[pass_, kind] = {length: 10 ** chance.uniform(-0.6, 1.2) for length in chosen}
    assert_free(answer_figure(facet_of(row, lines)))


def test_a_name_without_a_place_stands_in_the_legend(row: Build) -> None:
    """Zigzags around the end of the exact line leave no room beside it."""
    zigzag = {length: 12.0 if at % 2 else 0.4 for at, length in enumerate(range(8, 41, 2))}
    lines = {
        ("forward", "exact"): {22: 2.0, 24: 2.2},
        ("forward", "hybrid"): zigzag,
    }
    figure = answer_figure(facet_of(row, lines))
    assert_free(figure)
    assert in_legend(figure) == ["exact: 2.20× at 24k, forward"]
    assert figure.layout["showlegend"]
    assert figure.layout["meta"]["entries"] == [len("exact: 2.20× at 24k, forward")]


def test_names_at_the_right_keep_the_order_of_the_lines(row: Build) -> None:
    points = {"exact": {8: 1, 16: 3.0}, "shared": {8: 1, 16: 3.1}, "hybrid": {8: 1, 16: 3.05}}
    lines = {("forward", kind): held for kind, held in points.items()}
    figure = answer_figure(facet_of(row, lines))
    boxes = Drawing(figure, 700).names()
    numbers = {trace["meta"]["lines"][0]: max(trace["y"]) for trace in figure.data}
    tops = [boxes[f"line {line}"][1] for line in sorted(numbers, key=lambda n: -numbers[n])]
    assert tops == sorted(tops)


def test_what_meets_at_one_width_meets() -> None:
    """A stroke that rises beside a name: far away in a wide window, through it in a narrow one."""
    box = Box(x=0.2, left=10, right=60, top=0, bottom=20)
    stroke = Segment(0.2, 60, 0.7, 0, half_px=1)
    assert crosses(box, stroke, (50, 500))
    assert not crosses(box, stroke, (200, 500))
    assert crosses(box, Segment(0, 10, 1, 10), (200, 500))
    assert not crosses(box, Segment(0, 30, 1, 30), (50, 500))
    other = Box(x=0.5, left=-40, right=0, top=10, bottom=30)
    assert overlap(box, other, (200, 500))
    assert not overlap(box, other, (340, 500))


OVER_NAMES = """() => {
    const plot = document.querySelector('.part:not([hidden]) .answer .plot');
    const frame = plot.getBoundingClientRect();
    const names = [...plot.querySelectorAll('.annotation-text')]
        .map((text) => text.getBoundingClientRect());
    const within = ({ x, y }) => names.some((name) =>
        name.left < x && x < name.right && name.top < y && y < name.bottom);
    const overlap = (a, b) =>
        a.left < b.right && b.left < a.right && a.top < b.bottom && b.top < a.bottom;
    const drawn = [...plot.querySelectorAll('.scatterlayer :is(.js-line, .yerror, .points path)')];
    const over = drawn.filter((path) => {
        const toWindow = path.getScreenCTM();
        const step = path.getTotalLength() / 500;
        return Array.from({ length: 501 }, (_, at) => path.getPointAtLength(at * step))
            .some((point) => within(point.matrixTransform(toWindow)));
    });
    return {
        drawn: drawn.length,
        names: names.length,
        crossed: over.length,
        outside: names.filter((name) => name.left < frame.left || name.right > frame.right).length,
        overlapping: names.filter((name, at) =>
            names.slice(0, at).some((other) => overlap(name, other))).length,
    };
}"""


@pytest.mark.browser
@pytest.mark.parametrize("width", [360, 500, 700, 1280, 1600])
def test_names_are_free_in_a_browser(show, width: int) -> None:
    frame, _ = read_runs([ROOT / "results" / "h200"])
    page = show(frame, width=width)
    found = page.evaluate(OVER_NAMES)
    assert found == {"drawn": 16, "names": 6, "crossed": 0, "outside": 0, "overlapping": 0}
