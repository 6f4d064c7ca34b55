"""The views of the report: what each shows, in words, and how it is drawn and tabulated."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from dynbench.dashboards.figures import (
    error,
    heatmap,
    latency,
    memory,
    models,
    roofline,
    samples,
    speedup,
    stages,
    throughput,
)
from dynbench.dashboards.figures.common import Figure
from dynbench.dashboards.model import Facet, Failure, Line, Panel, Point
from dynbench.dashboards.tables import (
    Table,
    figure_table,
    latency_cell,
    samples_table,
    stages_table,
    status_text,
)
from dynbench.dashboards.text import label_text


@dataclass(frozen=True)
class View:
    """One kind of figure. ``direction`` says which way is better; ``note`` how to read it."""

    key: str
    title: str
    direction: str
    note: str
    unit: str  # of the cells of the table, for its caption
    draw: Callable[[Facet, Panel], Figure | None]
    cell: Callable[[Panel, Line, Point], str]
    failure: Callable[[Failure], str] = status_text
    only_sparse: bool = False  # whether dense lines have no place here
    tabulate: Callable[[Facet, Panel], Table | None] | None = None  # instead of a table of cells
    optional: bool = False  # left out of the page where no row has these numbers

    def table(self, facet: Facet, panel: Panel) -> Table | None:
        """The numbers of the figure."""
        if self.tabulate is not None:
            return self.tabulate(facet, panel)
        caption = f"{self.title}, {panel.title.lower()}: {self.unit}"
        lines = [line for line in panel.lines if line.is_sparse or not self.only_sparse]
        return figure_table(
            lines, caption, lambda line, point: self.cell(panel, line, point), self.failure
        )


MODEL_SUITES = ("generation", "training")
"""Suites whose rows are of a step of a whole language model."""


def views(baseline: str, suite: str = "attention") -> tuple[View, ...]:
    """The views of a suite, in the order of the page.

    Layers and models have no dense-equivalent rate: their dense work includes the provider's own
    projections, so that it is another number for each provider.
    """
    apart = suite == "layer" or suite in MODEL_SUITES
    work = [view for view in _work_views() if not (apart and view.key == "dense-equivalent")]
    of_model = _model_views() if suite in MODEL_SUITES else ()
    speed = _speed_views(label_text(baseline))
    return (*speed, *of_model, _stages_view(), *work, *_quality_views(), _samples_view())


def _speed_views(name: str) -> tuple[View, ...]:
    """``name`` is the baseline's, as text."""
    return (
        View(
            "latency",
            "Latency",
            "Lower is better.",
            "Median of the samples, the band from first to third quartile; both axes logarithmic.",
            "median and quartiles in ms",
            lambda facet, panel: latency.latency_figure(panel),
            lambda panel, line, point: latency_cell(line, point),
        ),
        View(
            "speedup",
            f"Speed-up over {name}",
            "Higher is better.",
            f"Latency of {name} in the same run (of all runs, where that one has none) over that "
            "of the line: above 1 it pays, but faster or slower only where the quartile ranges do "
            "not overlap. A ring marks where a line crosses 1.",
            "times as fast",
            lambda facet, panel: speedup.speedup_figure(panel),
            speedup.speedup_cell,
        ),
        View(
            "heatmap",
            f"Sparsity by length, speed-up over {name}",
            "Higher, that is bluer, is better.",
            f"Blue is faster than {name}, orange slower. Exact and hybrid lists have rows of their "
            "own.",
            "times as fast",
            lambda facet, panel: heatmap.heatmap_figure(panel),
            speedup.speedup_cell,
            only_sparse=True,
        ),
    )


def _model_views() -> tuple[View, ...]:
    """What only rows of whole models have."""
    return (
        _measure_view(
            *("tokens", "Tokens a second", "Higher is better."),
            "Of the whole batch: those that a step generates, or those that it learns from.",
            models.TOKENS,
        ),
        _measure_view(
            *("first-token", "Time to the first token", "Lower is better."),
            "From a prompt of that length and an empty cache to the logits of the token after it.",
            models.FIRST_TOKEN,
        ),
        _measure_view(
            *("cache", "Size of the cache", "Lower is better."),
            "Keys, values, summaries and block lists of all layers and sequences at that length.",
            models.CACHE,
        ),
    )


def _measure_view(key: str, title: str, direction: str, note: str, measure: models.Measure) -> View:
    def table(facet: Facet, panel: Panel) -> Table | None:
        if not measure.lines(panel):
            return None
        caption = f"{title}, {panel.title.lower()}"
        return figure_table(panel.lines, caption, measure.cell, status_text)

    return View(
        *(key, title, direction, note, ""),
        lambda facet, panel: measure.figure(panel),
        lambda panel, line, point: measure.cell(line, point),
        tabulate=table,
        optional=True,
    )


def _stages_view() -> View:
    return View(
        "stages",
        "Where the time goes",
        "A longer part costs more.",
        "Stages of a call, recorded in further calls after the samples (--stages), as shares of "
        "the whole call's median. What they leave of it is named other; beyond 100 % is what "
        "recording adds where a call waits for the host.",
        "ms and share of the median",
        lambda facet, panel: stages.stages_figure(panel),
        lambda panel, line, point: "",
        tabulate=lambda facet, panel: stages_table(panel),
        optional=True,
    )


def _work_views() -> tuple[View, ...]:
    return (
        View(
            "effective",
            "Effective rate",
            "Higher is better.",
            "Operations that the provider itself must do, over its median latency.",
            "effective TFLOP/s and share of the roofline",
            lambda facet, panel: throughput.effective_figure(panel),
            lambda panel, line, point: throughput.effective_cell(line, point),
        ),
        View(
            "dense-equivalent",
            "Dense-equivalent rate",
            "Higher is better.",
            "Operations of causal dense attention at the same shape, over the median latency: "
            "a sparse provider may pass the machine's ceiling here.",
            "dense-equivalent TFLOP/s",
            lambda facet, panel: throughput.dense_equivalent_figure(panel),
            lambda panel, line, point: throughput.dense_equivalent_cell(line, point),
        ),
        View(
            "roofline",
            "Roofline",
            "Closer to the roof is better.",
            "Every point is one length. The roof is what this machine reached in these runs, no "
            "data sheet's.",
            "effective TFLOP/s at FLOP/byte, and share of the roofline",
            lambda facet, panel: roofline.roofline_figure(panel, ceilings(facet)),
            lambda panel, line, point: roofline.roofline_cell(line, point),
        ),
    )


def _quality_views() -> tuple[View, ...]:
    return (
        View(
            "memory",
            "Peak memory",
            "Lower is better.",
            "Allocated above the inputs during one call; on a CPU it is resident memory. Crosses "
            "are cases that ran out of memory.",
            "peak memory above the inputs",
            lambda facet, panel: memory.memory_figure(panel),
            lambda panel, line, point: memory.memory_cell(line, point),
        ),
        View(
            "error",
            "Error",
            "Lower is better; beyond the tolerance a row is incorrect.",
            "Worst output against the provider's own reference, as a share of that output's RMS.",
            "RMS error and tolerance",
            lambda facet, panel: error.error_figure(panel),
            lambda panel, line, point: error.error_cell(line, point),
            failure=error.failure_cell,
        ),
        View(
            "distance",
            "Distance to dense attention",
            "Lower is closer to dense attention, which sparse attention does not aim to equal.",
            "How far the output is from dense attention on the same inputs.",
            "RMS distance",
            lambda facet, panel: error.distance_figure(panel),
            lambda panel, line, point: error.distance_cell(line, point),
        ),
    )


def _samples_view() -> View:
    return View(
        "samples",
        "Samples in the order taken",
        "Flat is better: a slope is drift, a step another clock.",
        "Every sample of each line's longest length, over its median, with the clock and the power "
        "nearest to it. A point opens the case, which has the same figure for any other row.",
        "samples",
        samples.samples_figure,
        lambda panel, line, point: "",
        tabulate=samples_table,
        optional=True,
    )


def ceilings(facet: Facet) -> tuple[float, float] | None:
    """Copy bandwidth (GB/s) and matrix product rate (TFLOP/s): medians over the facet's rows."""
    copy_gb_s = facet.rows["ceiling_copy_gb_s"].median()
    matmul_tflops = facet.rows["ceiling_matmul_tflops"].median()
    if copy_gb_s > 0 and matmul_tflops > 0:
        return float(copy_gb_s), float(matmul_tflops)
    return None
