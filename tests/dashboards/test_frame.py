import math
from collections.abc import Callable

import pandas as pd
import pytest

from dynbench.dashboards import frame as frames
from dynbench.harness.schema import COLUMNS, complete_row

Build = Callable[..., dict]


def line_count(*rows: dict) -> int:
    return frames.prepare(pd.DataFrame(list(rows)))["line"].nunique()


def facet_count(*rows: dict) -> int:
    return frames.prepare(pd.DataFrame(list(rows)))["facet"].nunique()


def test_rows_that_differ_in_length_and_repetition_share_a_line(row: Build) -> None:
    assert (
        line_count(
            row("gpu", "nsa", 8192),
            row("gpu", "nsa", 16384),
            row("gpu", "nsa", 8192, run_id="again", seed=1),
        )
        == 1
    )


@pytest.mark.parametrize(
    "other",
    [
        {"query_tile": 16, "private_blocks": 2},
        {"query_tile": 16, "private_blocks": 0},
        {"top_n": 32},
        {"window": 1024},
        {"block_size": 32},
        {"backend": "triton"},
        {"provider_version": "torch 2.14.0"},
        {"target_sparsity": 0.9},
        {"pass": "backward"},
    ],
)
def test_different_settings_never_share_a_line(row: Build, other: dict) -> None:
    first, second = row("gpu", "dynnsiha", 8192), row("gpu", "dynnsiha", 16384, **other)
    assert line_count(first, second) == 2
    assert facet_count(first, second) == 1


@pytest.mark.parametrize(
    "other",
    [
        {"machine_id": "another"},
        {"suite": "layer"},
        {"layers": 4},
        {"dtype": "float16"},
        {"q_heads": 32},
        {"kv_heads": 8},
        {"head_dim": 64},
        {"batch": 2},
        {"inputs": "text"},
        {"timer": "wall"},
        {"torch_version": "2.14.0"},
        {"git_commit": "0" * 40},
        {"git_dirty": True},
        {"cpu_threads": 1},
    ],
)
def test_what_must_not_be_compared_is_apart(row: Build, other: dict) -> None:
    assert facet_count(row("gpu", "sdpa", 8192), row("gpu", "sdpa", 16384, **other)) == 2


def test_rows_of_a_resting_card_are_apart_from_others_and_older_ones_had_no_rest(
    row: Build,
) -> None:
    resting, busy = row("gpu", "nsa", 8192, rest=2.0), row("gpu", "nsa", 8192, rest=0.0)
    older, early = row("gpu", "nsa", 8192), row("gpu", "nsa", 16384, status="timeout")
    assert facet_count(resting, busy) == 2
    assert facet_count(busy, older) == 1
    assert facet_count(resting, early) == facet_count(older, early) == 1
    assert facet_count(resting, busy, early) == 2


def test_a_solved_top_n_does_not_split_the_line(row: Build) -> None:
    rows = [
        row("gpu", "dynnsiha", length, target_sparsity=0.9, top_n=top_n)
        for length, top_n in ((8192, 12), (16384, 24))
    ]
    assert line_count(*rows) == 1


def test_a_row_that_failed_before_its_backend_was_known_joins_its_line(row: Build) -> None:
    failed = row("gpu", "nsa", 16384, status="out_of_memory", backend=None, provider_version=None)
    assert line_count(row("gpu", "nsa", 8192), failed) == 1
    two = [row("gpu", "nsa", 8192, backend=name) for name in ("blockwise", "triton")]
    assert line_count(*two, failed) == 3, "with two candidates it stays alone"


def test_repeated_rows_become_one_point(row: Build) -> None:
    rows = [
        row("gpu", "nsa", 8192, run_id=f"run{i}", latency_ms=ms, latency_q1_ms=ms - 1,
            latency_q3_ms=ms + 1, sample_count=10, rms_error=ms / 1e4)
        for i, ms in enumerate((10.0, 30.0, 20.0))
    ]  # fmt: skip
    point = frames.points(frames.prepare(pd.DataFrame(rows)), "sdpa").iloc[0]
    assert point["latency_ms"] == 20
    assert (point["latency_q1_ms"], point["latency_q3_ms"]) == (9, 31)
    assert (point["sample_count"], point["rows"], point["runs"]) == (30, 3, 3)
    assert pd.isna(point["speedup"])
    assert point["rms_error"] == pytest.approx(0.003)


@pytest.mark.parametrize("status", ["incorrect", "error", "timeout", "out_of_memory", "skipped"])
def test_only_ok_rows_are_measured(row: Build, status: str) -> None:
    rows = [row("gpu", "nsa", 8192, status=status, latency_ms=1.0)]
    assert frames.measured(frames.prepare(pd.DataFrame(rows))).empty


def test_any_frame_of_rows_is_prepared_alike(row: Build) -> None:
    """Missing columns, pandas' nullable types and numbers without a value change nothing."""
    rows = [row("gpu", "nsa", 8192), complete_row({"provider": "sdpa", "status": "ok"})]
    plain = frames.prepare(pd.DataFrame(rows))
    typed = pd.DataFrame(rows)
    for name, column in COLUMNS.items():
        if column.kind in ("int", "float", "bool"):
            kinds = {"int": "Int64", "float": "float64", "bool": "boolean"}
            typed[name] = typed[name].astype(kinds[column.kind])
    pd.testing.assert_frame_equal(plain, frames.prepare(typed))
    assert frames.prepare(pd.DataFrame()).empty
    assert set(COLUMNS) <= set(frames.prepare(pd.DataFrame()).columns)


def test_infinity_is_no_number(row: Build) -> None:
    rows = pd.DataFrame([row("gpu", "nsa", 8192)])
    rows["latency_ms"] = float("inf")
    assert frames.measured(frames.prepare(rows)).empty


@pytest.mark.parametrize("of", [list, pd.Series])
def test_distinct_values_keep_their_order_without_missing_ones(of) -> None:
    assert frames.distinct(of(["b", "", "a", None, "b"])) == ["b", "a"]
    assert frames.distinct(of([2.0, math.nan, 1.0, math.nan, 2.0])) == [2.0, 1.0]


def test_a_text_column_may_hold_anything(row: Build) -> None:
    frame = pd.DataFrame([row("gpu", "sdpa", 8192) for _ in range(6)])
    held = [None, math.nan, ["a"], {"b": 1}, "half \ud800", True]
    frame["reason"] = pd.Series(held, dtype=object)
    shown = ["", "", "['a']", "{'b': 1}", "half \\ud800", "True"]
    assert frames.prepare(frame)["reason"].tolist() == shown
    assert frames.prepare(frame.head(0))["reason"].tolist() == []


def _speedups(*rows: dict, baseline: str = "nsa") -> dict[tuple[str, float], float]:
    points = frames.points(frames.prepare(pd.DataFrame(list(rows))), baseline)
    plain = frames.prepare(pd.DataFrame(list(rows))).drop_duplicates("line")
    names = plain.set_index("line")[["provider", "top_n"]]
    return {
        (str(names.loc[line, "provider"]), float(names.loc[line, "top_n"])): speedup
        for line, speedup in zip(points["line"], points["speedup"], strict=True)
    }


def test_of_several_baseline_lines_a_row_has_the_one_that_selects_as_much(row: Build) -> None:
    nsa = [
        row("gpu", "nsa", 8192, top_n=n, latency_ms=ms)
        for n, ms in ((8, 1.0), (16, 2.0), (64, 8.0))
    ]
    own = [
        row("gpu", "dynnsiha", 8192, top_n=n, latency_ms=1.6, query_tile=4, private_blocks=2)
        for n in (8, 16, 32)
    ]
    found = _speedups(*nsa, *own)
    assert found["dynnsiha", 8] == pytest.approx(1.0 / 1.6)
    assert found["dynnsiha", 16] == pytest.approx(2.0 / 1.6)
    assert pd.isna(found["dynnsiha", 32]), "no baseline selects as much, and no mean of others is"
    assert [found["nsa", n] for n in (8, 16, 64)] == [1, 1, 1]
    alone = _speedups(nsa[0], *own)
    assert alone["dynnsiha", 32] == pytest.approx(1.0 / 1.6), "one line is everybody's baseline"


def test_exact_and_shared_lists_are_no_baseline_together(row: Build) -> None:
    rows = [
        row("gpu", "dynnsiha", 8192, latency_ms=4.0),
        row("gpu", "dynnsiha", 8192, latency_ms=1.0, query_tile=4, private_blocks=2),
        row("gpu", "nsa", 8192, latency_ms=3.0),
    ]
    points = frames.points(frames.prepare(pd.DataFrame(rows)), "dynnsiha")
    assert points["speedup"].isna().all()
    two = frames.points(frames.prepare(pd.DataFrame(rows[1:])), "dynnsiha")
    assert sorted(two["speedup"]) == pytest.approx([1 / 3, 1.0])
