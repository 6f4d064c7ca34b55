"""Quality over attended share, and against time: a point per configuration, bars over seeds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from dynbench.dashboards.figures.common import (
    Figure,
    Trace,
    line_meta,
    log_ticks,
    plot_of_lines,
    series_key,
    series_of,
)
from dynbench.dashboards.quality.cost import Cost, Timing, front
from dynbench.dashboards.quality.estimate import Estimate
from dynbench.dashboards.quality.measures import Measure, estimate_text
from dynbench.dashboards.quality.model import Config, QualityGroup, best_by_lists
from dynbench.dashboards.samples import short
from dynbench.dashboards.text import count_text, percent_text, plot_text, time_text
from dynbench.dashboards.theme import MUTED, translucent

MAX_SEED_POINTS = 12
"""Seeds of a configuration beyond which they are not drawn one by one."""


def share_figure(group: QualityGroup, configs: Sequence[Config], measure: Measure) -> Figure | None:
    """Quality over the share of causal pairs attended to; None where no point has both.

    A line joins configurations that differ in their number of blocks alone.
    """
    shown = [c for c in configs if measure.column in c.estimates and c.mean("attended_share")]
    if not shown:
        return None
    x = {c.number: short(100 * (c.mean("attended_share") or 0.0)) for c in shown}
    ticks = log_ticks(list(x.values()))
    texts = {
        c.number: f"{percent_text(c.mean('attended_share'))} of the pairs attended to"
        for c in shown
    }
    dense = next((group.dense_for(told) for told in best_by_lists(group)), None) or group.dense
    traces = [
        *_reference(dense, measure, ticks["range"]),
        *_joined(shown, x, measure),
        *_seeds(shown, x, measure),
        *_points(shown, x, measure, texts),
    ]
    return _finished(traces, shown, measure, "attended share of the causal pairs (%)", ticks)


def cost_figure(
    group: QualityGroup, configs: Sequence[Config], measure: Measure, cost: Cost
) -> Figure | None:
    """Quality against the time of one workload; rings mark the front. None without a point."""
    shown = [c for c in configs if measure.column in c.estimates and c.number in cost.timings]
    if not shown:
        return None
    timings = {c.number: cost.timings[c.number] for c in shown}
    x = {place: short(timing.ms) for place, timing in timings.items()}
    ends = [end for t in timings.values() for end in (t.ms, t.q1_ms, t.q3_ms)]
    texts = {place: time_text(timing.ms) for place, timing in timings.items()}
    traces = [
        *_seeds(shown, x, measure),
        *_points(shown, x, measure, texts, timings),
        *_rings(shown, x, measure),
    ]
    return _finished(traces, shown, measure, cost.axis, log_ticks(ends))


def front_of(configs: Sequence[Config], measure: Measure, cost: Cost) -> set[int]:
    """Numbers of the configurations that no other one beats in both time and quality."""
    points = [
        (config.number, cost.timings[config.number].ms, config.estimates[measure.column].mean)
        for config in configs
        if measure.column in config.estimates and config.number in cost.timings
    ]
    return front(points, measure)


def value_range(held: Sequence[Estimate], measure: Measure) -> list[float]:
    """The range of the axis of quality: all seeds, and of intervals no more than that again.

    A t interval over two seeds is so wide that the points would lie on one height.
    """
    values = [measure.scale * value for one in held for value in one.values]
    low, high = min(values), max(values)
    room = (high - low) or 0.02 * abs(high) or 0.01
    ends = [measure.scale * e for one in held for e in (one.low, one.high) if e is not None]
    least = max(min([low, *ends]), low - room) - 0.08 * room
    most = min(max([high, *ends]), high + room) + 0.08 * room
    return [short(least), short(most)]


def point_trace(
    series: Any,
    x: Sequence[float],
    held: Sequence[Estimate],
    measure: Measure,
    hover: Sequence[str],
    cases: Sequence[int],
) -> Trace:
    """Markers with the interval over seeds as bars; open ones are single seeds and have none."""
    style = series.style
    bars = [_arms(one, measure.scale) for one in held]
    return {
        "type": "scatter",
        "x": list(x),
        "y": [short(measure.scale * one.mean) for one in held],
        "hovertext": list(hover),
        "hoverinfo": "text",
        "customdata": list(cases),
        "meta": line_meta(series),
        "mode": "markers",
        "name": plot_text(series.label),
        "legendgroup": series_key(series),
        "marker": {
            "color": style.colour,
            "symbol": [style.symbol if one.seeds > 1 else f"{style.symbol}-open" for one in held],
            "size": 10,
            "line": {"width": 1.5, "color": style.colour},
        },
        "error_y": {
            "type": "data",
            "symmetric": False,
            "array": [up for up, _ in bars],
            "arrayminus": [down for _, down in bars],
            "thickness": 1.75,
            "width": 4,
            "color": style.colour,
        },
    }


def _points(
    configs: Sequence[Config],
    x: Mapping[int, float],
    measure: Measure,
    texts: Mapping[int, str],
    timings: Mapping[int, Timing] | None = None,
) -> list[Trace]:
    by_number = {config.number: config for config in configs}
    traces = []
    for series in series_of([config.line for config in configs]):
        held = [by_number[line.number] for line in series.lines]
        estimates = [config.estimates[measure.column] for config in held]
        hover = [
            _hover(config, measure, texts[config.number], one)
            for config, one in zip(held, estimates, strict=True)
        ]
        places = [x[config.number] for config in held]
        cases = [config.cases[-1] for config in held]
        trace = point_trace(series, places, estimates, measure, hover, cases)
        if timings is not None:
            trace["error_x"] = _time_bars([timings[c.number] for c in held], series.style.colour)
        traces.append(trace)
    return traces


def _hover(config: Config, measure: Measure, text: str, held: Estimate) -> str:
    words = f"{measure.noun} {estimate_text(held, measure.show)}"
    if held.seeds > 1:
        words += f", mean and 95 % interval of {count_text(held.seeds, 'seed')}"
    return f"<b>{plot_text(config.label)}</b><br>{plot_text(words)}<br>{plot_text(text)}"


def _arms(held: Estimate, scale: float) -> tuple[float | None, float | None]:
    if held.low is None or held.high is None:
        return None, None
    return short(scale * (held.high - held.mean)), short(scale * (held.mean - held.low))


def _time_bars(timings: Sequence[Timing], colour: str) -> dict[str, Any]:
    return {
        "type": "data",
        "symmetric": False,
        "array": [None if t.q3_ms is None else short(max(0.0, t.q3_ms - t.ms)) for t in timings],
        "arrayminus": [
            None if t.q1_ms is None else short(max(0.0, t.ms - t.q1_ms)) for t in timings
        ],
        "thickness": 1.25,
        "width": 3,
        "color": colour,
    }


def _joined(configs: Sequence[Config], x: Mapping[int, float], measure: Measure) -> list[Trace]:
    """A thin line through the configurations of each curve, by attended share."""
    curves: dict[str, list[Config]] = {}
    for config in configs:
        curves.setdefault(config.curve, []).append(config)
    traces = []
    for held in curves.values():
        if len(held) < 2:
            continue
        ordered = sorted(held, key=lambda config: x[config.number])
        traces.append(
            {
                "type": "scatter",
                "x": [x[config.number] for config in ordered],
                "y": [short(measure.scale * c.estimates[measure.column].mean) for c in ordered],
                "mode": "lines",
                "hoverinfo": "skip",
                "showlegend": False,
                "meta": {"lines": [config.number for config in ordered]},
                "line": {
                    "color": ordered[0].line.style.colour,
                    "dash": ordered[0].line.style.dash,
                    "width": 1.5,
                },
            }
        )
    return traces


def _seeds(configs: Sequence[Config], x: Mapping[int, float], measure: Measure) -> list[Trace]:
    """Every seed as a small point, where a configuration has several."""
    traces = []
    for config in configs:
        held = config.estimates[measure.column]
        if not 1 < held.seeds <= MAX_SEED_POINTS:
            continue
        traces.append(
            {
                "type": "scatter",
                "x": [x[config.number]] * held.seeds,
                "y": [short(measure.scale * value) for value in held.values],
                "mode": "markers",
                "hoverinfo": "skip",
                "showlegend": False,
                "meta": {"lines": [config.number]},
                "marker": {
                    "color": config.line.style.colour,
                    "opacity": 0.45,
                    "size": 4,
                    "symbol": "circle",
                },
            }
        )
    return traces


def _rings(configs: Sequence[Config], x: Mapping[int, float], measure: Measure) -> list[Trace]:
    points = [(c.number, x[c.number], c.estimates[measure.column].mean) for c in configs]
    kept = front(points, measure)
    return [
        {
            "type": "scatter",
            "x": [x[config.number]],
            "y": [short(measure.scale * config.estimates[measure.column].mean)],
            "mode": "markers",
            "hoverinfo": "skip",
            "showlegend": False,
            "meta": {"lines": [config.number]},
            "marker": {
                "symbol": "circle-open",
                "size": 20,
                "color": MUTED,
                "line": {"width": 2},
            },
        }
        for config in configs
        if config.number in kept
    ]


def _reference(dense: Config | None, measure: Measure, log_range: Sequence[float]) -> list[Trace]:
    """A line at the mean of dense attention, and the field of its interval."""
    if dense is None or measure.column not in dense.estimates:
        return []
    held = dense.estimates[measure.column]
    ends = [10**end for end in log_range]
    text = plot_text(f"{dense.label}: {measure.noun} {estimate_text(held, measure.show)}")
    line: Trace = {
        "type": "scatter",
        "x": ends,
        "y": [short(measure.scale * held.mean)] * 2,
        "mode": "lines",
        "hovertext": [text] * 2,
        "hoverinfo": "text",
        "showlegend": False,
        "meta": {"lines": [dense.number]},
        "line": {"color": MUTED, "dash": "dash", "width": 1.5},
    }
    if held.low is None or held.high is None:
        return [line]
    low, high = (short(measure.scale * end) for end in (held.low, held.high))
    field: Trace = {
        **line,
        "x": [*ends, *reversed(ends)],
        "y": [low, low, high, high],
        "hoverinfo": "skip",
        "fill": "toself",
        "fillcolor": translucent(MUTED, 0.15),
        "line": {"width": 0},
    }
    del field["hovertext"]
    return [field, line]


def _finished(
    traces: list[Trace],
    configs: Sequence[Config],
    measure: Measure,
    x_title: str,
    x_ticks: Mapping[str, Any],
) -> Figure:
    held = [config.estimates[measure.column] for config in configs]
    return plot_of_lines(
        traces,
        xaxis={"type": "log", "title": {"text": x_title}, **x_ticks},
        yaxis={"title": {"text": measure.axis}, "range": value_range(held, measure)},
    )
