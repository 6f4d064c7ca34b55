"""Quality against time: whose latency a configuration takes, and what is on the front."""

from collections.abc import Callable

import pandas as pd
from hypothesis import given
from hypothesis import strategies as st

from dynbench.dashboards import frame as frames
from dynbench.dashboards.quality.cost import FEWEST, costs_of, front
from dynbench.dashboards.quality.measures import ACCURACY, LOSS
from dynbench.dashboards.quality.model import quality_groups

Build = Callable[..., dict]
SETTINGS = {
    "block_size": 16,
    "compress_block": 16,
    "compress_stride": 16,
    "window": 128,
    "top_n": 8,
    "query_tile": 4,
    "private_blocks": 2,
}
POINTS = st.lists(st.tuples(st.integers(1, 6), st.integers(0, 6)), max_size=12)


@given(POINTS)
def test_the_front_is_what_nothing_beats(points: list[tuple[int, int]]) -> None:
    named = [(place, float(ms), float(value)) for place, (ms, value) in enumerate(points)]
    for measure, sign in ((LOSS, 1), (ACCURACY, -1)):
        expected = {
            place
            for place, ms, value in named
            if not any(
                a <= ms and sign * b <= sign * value and (a, b) != (ms, value) for _, a, b in named
            )
        }
        assert front(named, measure) == expected


def costs(*rows: dict):
    plain = frames.prepare(pd.DataFrame(list(rows)))
    (group,) = quality_groups(plain)
    return group, costs_of(group, plain)


def test_latencies_come_from_rows_with_the_same_settings(training: Build, row: Build) -> None:
    trained = [
        training("sdpa", 0),
        training("dynnsiha", 0, query_tile=4, private_blocks=2),
        training("dynnsiha", 0, query_tile=16, private_blocks=2),
    ]
    timed = [
        row("gpu", "sdpa", 65536, latency_ms=9.0),
        row("gpu", "sdpa", 65536, latency_ms=11.0, run_id="again"),
        row("gpu", "dynnsiha", 65536, latency_ms=2.0, **SETTINGS),
        row("gpu", "dynnsiha", 65536, latency_ms=1.0, **{**SETTINGS, "top_n": 4}),
        row("gpu", "dynnsiha", 65536, latency_ms=1.0, **{**SETTINGS, "window": 512}),
        row("gpu", "dynnsiha", 131072, latency_ms=4.0, **SETTINGS),
    ]
    group, (cost,) = costs(*trained, *timed)
    labels = {config.label: config.number for config in group.configs}
    assert {labels["sdpa"], labels["dynnsiha · R=4 m=2"]} == set(cost.timings)
    assert cost.timings[labels["sdpa"]].ms == 10.0
    assert cost.timings[labels["sdpa"]].rows == 2
    assert cost.timings[labels["dynnsiha · R=4 m=2"]].ms == 2.0
    assert "64k tokens" in cost.title, "128k has one configuration alone"
    assert "attention" in cost.title


def test_how_a_model_was_trained_changes_no_latency(training: Build, row: Build) -> None:
    trained = [
        training("sdpa", 0, variant="lr=0.006,optimizer=rmsuon"),
        training("dynnsiha", 0, variant="optimizer=rmsuon", query_tile=4, private_blocks=2),
        training("dynnsiha", 0, variant="synthesis=linear", query_tile=4, private_blocks=2),
    ]
    timed = [row("gpu", "sdpa", 8192), row("gpu", "dynnsiha", 8192, **SETTINGS)]
    group, (cost,) = costs(*trained, *timed)
    timed_variants = {c.variant for c in group.configs if c.number in cost.timings}
    assert timed_variants == {"lr=0.006,optimizer=rmsuon", "optimizer=rmsuon"}


def test_one_machine_a_figure(training: Build, row: Build) -> None:
    trained = [training("sdpa", 0), training("dynnsiha", 0, query_tile=4, private_blocks=2)]
    timed = [
        row(machine, provider, 8192, **settings)
        for machine in ("cpu", "gpu")
        for provider, settings in (("sdpa", {}), ("dynnsiha", SETTINGS))
    ]
    _, found = costs(*trained, *timed)
    assert ["H100" in cost.title for cost in found] == [True, False], "its own machine leads"


def test_without_such_rows_it_is_the_training_step(training: Build, row: Build) -> None:
    trained = [training("sdpa", seed, latency_ms=8000.0 + 400 * seed) for seed in (0, 1, 2)]
    trained += [training("dynnsiha", 0, query_tile=4, private_blocks=2)]
    group, (cost,) = costs(*trained, row("gpu", "sdpa", 8192))
    assert "of these very trainings over their steps" in cost.note
    held = cost.timings[group.configs[0].number]
    assert (held.ms, held.q1_ms, held.q3_ms, held.rows) == (21.0, 20.0, 22.0, 3)
    assert FEWEST == 2
    _, none = costs(training("sdpa", 0))
    assert none == []
