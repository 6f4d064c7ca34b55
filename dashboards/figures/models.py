"""What rows of a whole language model have alone: tokens a second, first token, cache."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from dynbench.dashboards.figures.common import Figure, finished, line_trace, path_of, series_of
from dynbench.dashboards.model import Line, Panel, Point
from dynbench.dashboards.text import bytes_text, number_text, time_text


@dataclass(frozen=True)
class Measure:
    """A number of a point: its axis, and how it is written."""

    axis: str
    value: Callable[[Point], float | None]
    show: Callable[[float | None], str]

    def lines(self, panel: Panel) -> list[Line]:
        """The lines that have it."""
        return [line for line in panel.lines if any(self.value(point) for point in line.points)]

    def figure(self, panel: Panel) -> Figure | None:
        """It over length; None where no line has it."""
        lines = self.lines(panel)
        if not lines:
            return None
        traces = [
            line_trace(
                series,
                path_of(
                    series,
                    lambda line, point: self.value(point),
                    lambda line, point: self.show(self.value(point)),
                ),
            )
            for series in series_of(lines)
        ]
        return finished(
            traces, x_title="sequence length (tokens)", y_title=self.axis, lengths=panel.lengths
        )

    def cell(self, line: Line, point: Point) -> str:
        """It in the table below the figure."""
        return self.show(self.value(point))


TOKENS = Measure(
    "tokens a second",
    lambda point: point.tokens_per_s,
    lambda value: f"{number_text(value)} tokens/s" if value is not None else "",
)
FIRST_TOKEN = Measure("first token after (ms)", lambda point: point.first_token_ms, time_text)
CACHE = Measure("cache (bytes)", lambda point: point.cache_bytes, bytes_text)
