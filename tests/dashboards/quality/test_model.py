"""What is one configuration, and what is never joined."""

from collections.abc import Callable

import pandas as pd
import pytest

from dynbench.dashboards import frame as frames
from dynbench.dashboards.quality.model import (
    QualityGroup,
    best_by_lists,
    drawn_configs,
    quality_groups,
    reference_of,
)

Build = Callable[..., dict]


def groups_of(*rows: dict, baseline: str | None = None) -> list[QualityGroup]:
    return quality_groups(frames.prepare(pd.DataFrame(list(rows))), baseline)


def test_rows_that_differ_in_the_seed_are_one_configuration(training: Build) -> None:
    (group,) = groups_of(*(training("dynnsiha", seed, query_tile=4) for seed in (0, 1, 2)))
    (config,) = group.configs
    held = config.estimates["eval_loss"]
    rows = [training("dynnsiha", seed, query_tile=4) for seed in (0, 1, 2)]
    assert held.values == tuple(row["eval_loss"] for row in rows)
    assert held.low is not None
    assert config.parameters == rows[0]["parameters"]


def test_the_newest_row_of_a_seed_counts(training: Build) -> None:
    (group,) = groups_of(
        training("sdpa", 0, eval_loss=2.0), training("sdpa", 0, eval_loss=1.0, run_id="later")
    )
    (config,) = group.configs
    assert config.estimates["eval_loss"].values == (1.0,)
    assert config.cases == (1,)


def test_newest_is_by_the_clock_not_by_the_order_of_reading(training: Build) -> None:
    (group,) = groups_of(
        training("sdpa", 0, eval_loss=1.0, started_at="2026-11-12T10:00:00+00:00"),
        training("sdpa", 0, eval_loss=2.0, started_at="2026-11-11T10:00:00+00:00", run_id="z"),
    )
    (config,) = group.configs
    assert config.estimates["eval_loss"].values == (1.0,)
    assert config.cases == (0,)


def test_rows_without_a_seed_have_an_estimate(training: Build) -> None:
    (group,) = groups_of(training("sdpa", 0), training("sdpa", 5, eval_loss=9.0) | {"seed": None})
    (config,) = group.configs
    held = config.estimates["eval_loss"]
    assert held.values == (training("sdpa", 0)["eval_loss"], 9.0)
    assert held.names == ()


@pytest.mark.parametrize(
    "other",
    [
        {"task": "copy"},
        {"seq_len": 2048},
        {"train_steps": 800},
        {"layers": 4},
        {"model_dim": 256},
        {"batch": 8},
        {"gpu_name": "NVIDIA A100"},
        {"git_commit": "2" * 40},
        {"dtype": "bfloat16"},
    ],
)
def test_other_work_is_never_joined(training: Build, other: dict) -> None:
    groups = groups_of(training("sdpa", 0), training("sdpa", 1, **other))
    assert [len(group.facet.rows) for group in groups] == [1, 1]


def test_another_card_of_the_same_kind_learns_the_same(training: Build) -> None:
    other = {"machine_id": "another", "cpu_threads": 5, "driver_version": "581"}
    (group,) = groups_of(training("sdpa", 0), training("sdpa", 1, **other))
    (config,) = group.configs
    assert config.estimates["eval_loss"].seeds == 2


@pytest.mark.parametrize(
    "other",
    [
        {"query_tile": 16},
        {"private_blocks": 1},
        {"top_n": 16},
        {"window": 64},
        {"variant": "router=capr"},
        {"branches": "sliding"},
        {"parameters": 999},
    ],
)
def test_other_settings_are_another_configuration(training: Build, other: dict) -> None:
    settings = {"query_tile": 4, "private_blocks": 2}
    first = training("dynnsiha", 0, **settings)
    (group,) = groups_of(first, training("dynnsiha", 1, **{**settings, **other}))
    assert [config.estimates["eval_loss"].seeds for config in group.configs] == [1, 1]
    assert len({config.label for config in group.configs}) == 2


def test_what_all_lines_changed_is_said_once(training: Build) -> None:
    rows = [
        training("nsa", 0, query_tile=1, variant="lr=0.003,optimizer=rmsuon"),
        training("dynnsiha", 0, query_tile=4, variant="lr=0.003,optimizer=rmsuon,synthesis=linear"),
        training("dynnsiha", 0, query_tile=4, variant="kl=0.1,lr=0.003,optimizer=rmsuon"),
    ]
    (group,) = groups_of(*rows)
    assert group.common == "lr=0.003,optimizer=rmsuon"
    labels = {config.label for config in group.configs}
    assert labels == {
        "nsa",
        "dynnsiha · R=4 shared · synthesis=linear",
        "dynnsiha · R=4 shared · kl=0.1",
    }
    (group,) = groups_of(*rows, training("sdpa", 0))
    assert group.common == ""
    assert "nsa · lr=0.003,optimizer=rmsuon" in {config.label for config in group.configs}


def test_markers_of_a_group_differ_and_a_configuration_keeps_its_own(training: Build) -> None:
    of_text = [training("dynnsiha", 0, query_tile=4, variant=f"kl={n}") for n in range(1, 10)]
    of_recall = [
        training("dynnsiha", 0, task="recall", query_tile=tile, private_blocks=private)
        for tile in (1, 4, 16)
        for private in (0, 1, 2)
        if tile > 1 or not private
    ]
    both = training("dynnsiha", 0, task="recall", query_tile=4, variant="kl=3")
    text, recall = groups_of(*of_text, *of_recall, both)
    for group in (text, recall):
        symbols = [config.line.style.symbol for config in group.configs]
        assert len(set(symbols)) == len(symbols)
    own = {c.line.style for g in (text, recall) for c in g.configs if c.variant == "kl=3"}
    assert len(own) == 1
    many = [training("dynnsiha", 0, query_tile=4, variant=f"kl={n}") for n in range(1, 80)]
    (group,) = groups_of(*many)
    assert len({(c.line.style.dash, c.line.style.symbol) for c in group.configs}) == 66


def test_exact_and_hybrid_lists_never_share_a_curve(quality_frame: pd.DataFrame) -> None:
    for group in groups_of(*quality_frame.astype(object).to_dict("records")):
        kinds: dict[str, set] = {}
        for config in group.configs:
            held = kinds.setdefault(config.curve, set())
            settings = config.line.settings
            held.add((config.line.lists, str(settings["query_tile"]), config.variant))
        assert all(len(held) == 1 for held in kinds.values())
        assert max(len(held) for held in kinds.values()) == 1
        assert len(kinds) < len(group.configs), "those that differ in top_n alone are one curve"


def test_quality_has_no_facet(training: Build) -> None:
    plain = frames.prepare(pd.DataFrame([training("sdpa", 0), training("sdpa", 1)]))
    assert set(plain["facet"]) == set(plain["line"]) == {-1}
    assert frames.of_speed(plain).empty
    assert frames.measured(plain).empty


def test_a_failed_row_joins_its_configuration(training: Build) -> None:
    lost = {"status": "timeout", "parameters": None, "backend": None, "provider_version": None}
    settings = {"query_tile": 16, "private_blocks": 2}
    rows = [training("dynnsiha", 0, **settings), training("dynnsiha", 1, **settings, **lost)]
    (group,) = groups_of(*rows)
    (line,) = group.facet.panels[0].lines
    assert [failure.status for failure in line.failures] == ["timeout"]
    assert group.configs[0].estimates["eval_loss"].seeds == 1


def test_the_reference_is_plain_dense_attention(training: Build) -> None:
    rows = [
        training("sdpa", 0, variant="word_embedding=false"),
        training("dynsiha", 0),
        training("sdpa", 0),
        training("sdpa:math", 0),
    ]
    (group,) = groups_of(*rows)
    assert group.dense is not None
    assert (group.dense.line.provider, group.dense.variant) == ("sdpa", "")
    (group,) = groups_of(*rows, baseline="dynsiha")
    assert group.dense is not None
    assert group.dense.line.provider == "dynsiha"
    (group,) = groups_of(training("dynnsiha", 0, query_tile=1))
    assert group.dense is None


def test_exact_lists_of_the_same_settings(training: Build) -> None:
    hybrid = {"query_tile": 16, "private_blocks": 2}
    rows = [
        training("dynnsiha", 0, **hybrid),
        training("dynnsiha", 0, query_tile=1, top_n=4),
        training("nsa", 0, query_tile=1),
    ]
    (group,) = groups_of(*rows)
    config = next(c for c in group.configs if c.line.lists == "hybrid")
    exact = group.exact_for(config)
    assert exact is not None
    assert exact.line.provider == "nsa", "the provider's own has another top_n"
    (group,) = groups_of(*rows, training("dynnsiha", 0, query_tile=1))
    config = next(c for c in group.configs if c.line.lists == "hybrid")
    exact = group.exact_for(config)
    assert exact is not None
    assert exact.line.provider == "dynnsiha"
    assert group.exact_for(exact) is None


def test_what_is_compared_has_one_recipe(training: Build) -> None:
    hybrid = {"query_tile": 16, "private_blocks": 2}
    warmed = "dense_warmup=0.5,lr=0.003,optimizer=rmsuon"
    rows = [
        training("sdpa", 0),
        training("sdpa", 0, variant="lr=0.003,optimizer=rmsuon"),
        training("sdpa", 0, variant="word_embedding=off"),
        training("dynnsiha", 0, variant=warmed, **hybrid),
        training("dynnsiha", 0, variant="lr=0.01", **hybrid),
        training("dynnsiha", 0, variant=f"{warmed},synthesis=linear", **hybrid),
        training("nsa", 0, query_tile=1),
        training("nsa", 0, query_tile=1, variant=warmed),
    ]
    (group,) = groups_of(*rows)
    found = {(config.line.provider, config.variant): config for config in group.configs}
    config = found["dynnsiha", warmed]
    assert (config.recipe, config.ablation) == (warmed, "")
    assert group.dense is found["sdpa", ""]
    assert reference_of(group, config) is found["sdpa", "lr=0.003,optimizer=rmsuon"]
    assert group.exact_for(config) is found["nsa", warmed]
    assert best_by_lists(group) == [config], "the other recipe has nothing to be compared with"
    linear = found["dynnsiha", f"{warmed},synthesis=linear"]
    assert (linear.recipe, linear.ablation) == (warmed, "synthesis=linear")
    assert group.exact_for(linear) is found["nsa", warmed]
    assert reference_of(group, found["dynnsiha", "lr=0.01"]) is None
    (recipe_alone,) = groups_of(*rows[1:2])
    assert recipe_alone.dense is not None


def test_the_sparsest_within_reach_is_told(training: Build) -> None:
    def rows(loss: float, **settings) -> list[dict]:
        ends = (-0.001, 0.0, 0.001)
        return [
            training("dynnsiha", at, eval_loss=loss + end, **settings)
            for at, end in enumerate(ends)
        ]

    dense = [training("sdpa", at, eval_loss=2.0 + end) for at, end in enumerate((0, 0.001, -0.001))]
    hybrid = {"query_tile": 16, "private_blocks": 2}
    told = groups_of(
        *dense,
        *rows(2.001, top_n=16, **hybrid),
        *rows(2.01, top_n=8, **hybrid),
        *rows(2.2, top_n=4, **hybrid),
        *rows(2.0, top_n=2, variant="router=capr", **hybrid),
    )[0]
    (config,) = best_by_lists(told)
    assert config.line.settings["top_n"] == 8
    nearest = groups_of(*dense, *rows(2.2, top_n=16, **hybrid), *rows(2.3, top_n=4, **hybrid))[0]
    (config,) = best_by_lists(nearest)
    assert config.line.settings["top_n"] == 16


def test_what_is_told_is_drawn(quality_frame: pd.DataFrame) -> None:
    group = groups_of(*quality_frame.astype(object).to_dict("records"))[0]
    kept = drawn_configs(group, 5)
    assert len(kept) == 5
    assert group.dense in kept
    assert {config.number for config in best_by_lists(group)} <= {config.number for config in kept}
    assert drawn_configs(group, 99) == list(group.configs)


def test_no_row_is_no_group(row: Build) -> None:
    assert quality_groups(frames.prepare(pd.DataFrame())) == []
    assert groups_of(row("gpu", "sdpa", 8192)) == []
