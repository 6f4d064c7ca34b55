"""Tables of quality: under each figure of points, and of all configurations of a group."""

from __future__ import annotations

from collections.abc import Sequence

from dynbench.dashboards.quality.cost import Cost
from dynbench.dashboards.quality.figures import front_of
from dynbench.dashboards.quality.measures import Gap, Measure, estimate_text
from dynbench.dashboards.quality.model import Config, QualityGroup, count_in_words
from dynbench.dashboards.tables import Group, Table
from dynbench.dashboards.text import number_text, percent_text, whole_text

_SHARES = {
    "activation_rate": "open neurons",
    "dead_neuron_share": "dead neurons",
}
_GATES = {
    "gate_compressed": "gate of compressed",
    "gate_selected": "gate of selected",
    "gate_sliding": "gate of sliding",
}


def overview_table(group: QualityGroup, configs: Sequence[Config]) -> Table | None:
    """Every configuration: quality against dense attention and exact lists, and how it is made."""
    if not configs:
        return None
    measures = group.measures
    columns = [
        "configuration",
        "seeds",
        *(measure.title.lower() for measure in measures),
        *(f"{measure.noun} against dense" for measure in measures),
        *(f"{measure.noun} against exact lists" for measure in measures),
        "attended share",
        "blocks a query",
        "parameters",
        *_SHARES.values(),
        *_GATES.values(),
        "training (s)",
        "answers asked",
    ]
    rows = {config.number: _overview_row(group, config) for config in configs}
    kept = [place for place in range(len(columns) - 1) if any(row[place] for row in rows.values())]
    return Table(
        "Every configuration: mean over seeds, in brackets its 95 % interval",
        (columns[0], *(columns[place + 1] for place in kept)),
        tuple(
            Group(c.label, (tuple(rows[c.number][place] for place in kept),), c.number)
            for c in configs
        ),
    )


def share_table(configs: Sequence[Config], measure: Measure) -> Table | None:
    """The numbers of quality over attended share; None without any."""
    shown = [c for c in configs if measure.column in c.estimates and c.mean("attended_share")]
    groups = tuple(
        Group(
            config.label,
            (
                (
                    estimate_text(config.estimates["attended_share"], percent_text),
                    estimate_text(config.estimates[measure.column], measure.show),
                    str(config.estimates[measure.column].seeds),
                    _seeds_text(config, measure),
                ),
            ),
            config.number,
        )
        for config in sorted(shown, key=lambda c: c.mean("attended_share") or 0.0)
    )
    columns = ("configuration", "attended share", measure.axis, "seeds", "seed by seed")
    caption = f"{measure.title} over attended share: mean and 95 % interval over seeds"
    return Table(caption, columns, groups) if groups else None


def cost_table(configs: Sequence[Config], measure: Measure, cost: Cost) -> Table | None:
    """The numbers of quality against time, and which configurations are on the front."""
    shown = [c for c in configs if measure.column in c.estimates and c.number in cost.timings]
    best = front_of(configs, measure, cost)
    groups = tuple(
        Group(
            config.label,
            (
                (
                    _timing_text(cost, config),
                    estimate_text(config.estimates[measure.column], measure.show),
                    str(config.estimates[measure.column].seeds),
                    "yes" if config.number in best else "no",
                    str(cost.timings[config.number].rows),
                ),
            ),
            config.number,
        )
        for config in sorted(shown, key=lambda c: cost.timings[c.number].ms)
    )
    columns = ("configuration", cost.axis, measure.axis, "seeds", "on the front", "rows timed")
    caption = f"{measure.title} against time. {cost.title}"
    return Table(caption, columns, groups, text=("on the front",)) if groups else None


def _overview_row(group: QualityGroup, config: Config) -> tuple[str, ...]:
    measures = group.measures
    dense, exact = group.dense_for(config), group.exact_for(config)
    whole_ms = config.mean("latency_ms")
    seconds = None if whole_ms is None else whole_ms / 1000
    seeds = max(held.seeds for held in config.estimates.values())
    return (
        str(seeds),
        *(estimate_text(config.estimates.get(m.column), m.show) for m in measures),
        *(_gap_text(group.gap(config, dense, m)) for m in measures),
        *(_gap_text(group.gap(config, exact, m)) for m in measures),
        percent_text(config.mean("attended_share")),
        number_text(config.mean("mean_blocks")),
        count_in_words(config.parameters),
        *(estimate_text(config.estimates.get(name), percent_text) for name in _SHARES),
        *(estimate_text(config.estimates.get(name), number_text) for name in _GATES),
        number_text(seconds),
        whole_text(config.eval_count),
    )


def _gap_text(held: Gap | None) -> str:
    if held is None:
        return ""
    interval = held.interval_text.removeprefix("95 % interval ")
    return f"{held.text} ({interval})"


def _timing_text(cost: Cost, config: Config) -> str:
    timing = cost.timings[config.number]
    if timing.q1_ms is None or timing.q3_ms is None:
        return number_text(timing.ms, 4)
    ends = f"{number_text(timing.q1_ms, 4)}–{number_text(timing.q3_ms, 4)}"
    return f"{number_text(timing.ms, 4)} ({ends})"


def _seeds_text(config: Config, measure: Measure) -> str:
    """The value of each seed, at most a dozen."""
    held = config.estimates[measure.column].values
    shown = ", ".join(measure.show(value) for value in held[:12])
    return f"{shown} and {len(held) - 12} more" if len(held) > 12 else shown
