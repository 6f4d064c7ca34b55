"""The views of quality: what each shows, in words, and how it is drawn and tabulated."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import pandas as pd

from dynbench.dashboards.figures.common import Figure
from dynbench.dashboards.quality.cost import costs_of
from dynbench.dashboards.quality.curve_figures import (
    ACTIVATION,
    GATES,
    STEP_KINDS,
    curve_figure,
    curve_table,
    curves_with,
    gates_figure,
    gates_table,
)
from dynbench.dashboards.quality.curves import Curves, MeanCurves, layers_of, mean_curves, spread
from dynbench.dashboards.quality.figures import cost_figure, share_figure
from dynbench.dashboards.quality.model import Config, QualityGroup, drawn_configs
from dynbench.dashboards.quality.tables import cost_table, share_table
from dynbench.dashboards.tables import Table
from dynbench.dashboards.text import count_text, label_text


@dataclass(frozen=True)
class Detail:
    """How much of a group is drawn; None is no limit."""

    configs: int  # in figures of points, and in tables
    curves: int  # configurations with curves
    layers: int | None
    points: int | None  # of a curve


PAGE = Detail(configs=64, curves=12, layers=4, points=60)
"""In the single page, which holds everything at once."""

WHOLE = Detail(configs=64, curves=64, layers=None, points=None)
"""In a site, and in figures for papers."""


@dataclass(frozen=True)
class ViewFigure:
    """A figure with its heading and table."""

    heading: str
    figure: Figure
    table: Table | None


@dataclass(frozen=True)
class QualityView:
    """One kind of figure. ``direction`` says which way is better; ``note`` how to read it."""

    key: str
    title: str
    direction: str
    note: str
    figures: tuple[ViewFigure, ...]


def quality_views(
    group: QualityGroup, plain: pd.DataFrame, curves: Curves, detail: Detail
) -> list[QualityView]:
    """The views that have something to show, in the order of the page."""
    configs = drawn_configs(group, detail.configs)
    followed = drawn_configs(group, detail.curves)
    held = {config.number: mean_curves(config, curves) for config in followed}
    found = [
        _share_view(group, configs),
        _cost_view(group, configs, plain),
        _training_view(held, followed, detail),
        _activation_view(held, followed, detail),
        _gates_view(held, followed, detail),
    ]
    return [view for view in found if view.figures]


def _share_view(group: QualityGroup, configs: Sequence[Config]) -> QualityView:
    found = []
    for measure in group.measures:
        figure = share_figure(group, configs, measure)
        if figure is not None:
            heading = f"{measure.title}. {measure.direction}"
            found.append(ViewFigure(heading, figure, share_table(configs, measure)))
    return QualityView(
        "share",
        "Quality over attended share",
        "Lower loss and higher accuracy are better; further left attends to less.",
        "A point is the mean over seeds, small points are the seeds, bars the 95 % t interval of "
        "the mean: wide with two seeds, and cut by the axis where it would hide the rest. An open "
        "point is a single seed and has none. A line joins settings that differ in their number of "
        "blocks alone; exact and hybrid lists never share one. The dashed line is dense attention, "
        "with its interval.",
        tuple(found),
    )


def _cost_view(group: QualityGroup, configs: Sequence[Config], plain: pd.DataFrame) -> QualityView:
    found = []
    costs = costs_of(group, plain)
    for cost in costs:
        figure = cost_figure(group, configs, group.measure, cost)
        if figure is not None:
            table = cost_table(configs, group.measure, cost)
            found.append(ViewFigure(cost.title, figure, table))
    note = costs[0].note if costs else ""
    return QualityView(
        "pareto",
        "Quality against time",
        f"{group.measure.direction} Further left is faster.",
        f"{note} Quality is that of the trainings here, whatever the length of the latency. A ring "
        "marks the front to choose from: no other configuration is both faster and better in the "
        "mean. Bars up and down are the interval over seeds.",
        tuple(found),
    )


def _training_view(
    held: Mapping[int, MeanCurves], configs: Sequence[Config], detail: Detail
) -> QualityView:
    found = []
    for kind in STEP_KINDS:
        curves = curves_with(held, configs, "", kind.column)
        figure = curve_figure(curves, kind, detail.points)
        if figure is not None:
            table = curve_table(curves, kind, f"{kind.title} over the training")
            found.append(ViewFigure(kind.title, figure, table))
    return QualityView(
        "training",
        "Training curves",
        "Lower loss and higher accuracy are better.",
        f"{_BAND}{_thinned(detail)} The axis of a loss is that of the steps after the first tenth.",
        tuple(found),
    )


def _activation_view(
    held: Mapping[int, MeanCurves], configs: Sequence[Config], detail: Detail
) -> QualityView:
    layers = layers_of(held.values(), (ACTIVATION.column,))
    found = []
    for layer in spread(layers, detail.layers):
        curves = curves_with(held, configs, layer, ACTIVATION.column)
        figure = curve_figure(curves, ACTIVATION, detail.points)
        if figure is not None:
            name = f"Layer {label_text(layer)}"
            table = curve_table(curves, ACTIVATION, f"{ACTIVATION.title}, {name}")
            found.append(ViewFigure(name, figure, table))
    return QualityView(
        "activation",
        "Activation of each layer",
        "Lower is sparser, which is better only at equal quality.",
        f"Share of a layer's neurons that a token opens. {_BAND}"
        f"{_thinned(detail)}{_left_out(len(layers), len(found))}",
        tuple(found),
    )


def _gates_view(
    held: Mapping[int, MeanCurves], configs: Sequence[Config], detail: Detail
) -> QualityView:
    layers = layers_of(held.values(), tuple(GATES))
    found = []
    for layer in spread(layers, detail.layers):
        by_gate = {column: curves_with(held, configs, layer, column) for column in GATES}
        figure = gates_figure(by_gate, detail.points)
        if figure is not None:
            name = f"Layer {label_text(layer)}"
            found.append(ViewFigure(name, figure, gates_table(by_gate, f"Mean gates, {name}")))
    return QualityView(
        "gates",
        "Gates of each layer",
        "Neither way is better: a gate near 0 has closed its branch.",
        f"Mean gate of each branch of sparse attention. {_BAND}"
        f"{_thinned(detail)}{_left_out(len(layers), len(found))}",
        tuple(found),
    )


_BAND = (
    "A line is the mean over seeds at the steps that all of them logged, its band the 95 % t "
    "interval; without a band it is one seed, or there are too many lines."
)


def _thinned(detail: Detail) -> str:
    """What the single page leaves out of the curves."""
    if detail.points is None:
        return ""
    return (
        f" A page has at most {detail.points} steps of a curve, evenly spread, and "
        f"{detail.curves} configurations; dynbench report --site has all."
    )


def _left_out(layers: int, drawn: int) -> str:
    if drawn >= layers:
        return ""
    return f" Here are {drawn} of {count_text(layers, 'layer')}."
