import math
from collections.abc import Callable

import pandas as pd
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dynbench.dashboards.compare import Comparison, best_by_lists, comparisons
from dynbench.dashboards.frame import prepare, with_speedups
from dynbench.dashboards.model import Facet, build_facets

Build = Callable[..., dict]


def comparison_of(row: Build, *pairs: tuple[int, float, float]) -> Comparison:
    """A comparison from (length, baseline ms, dynnsiha ms)."""
    rows = []
    for seq_len, baseline_ms, own_ms in pairs:
        rows.append(row("gpu", "sdpa", seq_len, latency_ms=baseline_ms))
        rows.append(row("gpu", "dynnsiha", seq_len, latency_ms=own_ms))
    (facet,) = build_facets(pd.DataFrame(rows), "sdpa")
    (found,) = comparisons(facet.panels[0])
    return found


def test_speedups_are_those_of_plain_pandas(gpu_frame: pd.DataFrame) -> None:
    """Recomputed from the rows without any code of the report."""
    (facet,) = build_facets(gpu_frame, "sdpa")
    ok = gpu_frame[gpu_frame["status"] == "ok"]
    base = ok[ok["provider"] == "sdpa"].set_index(["pass", "seq_len"])["latency_ms"]
    seen = 0
    for panel in facet.panels:
        for comparison in comparisons(panel):
            settings_ = comparison.line.settings
            rows = ok[(ok["pass"] == panel.pass_) & (ok["provider"] == comparison.line.provider)]
            if comparison.line.is_sparse:
                rows = rows[rows["query_tile"] == settings_["query_tile"]]
                asked = settings_["target_sparsity"]
                target = rows["target_sparsity"]
                rows = rows[target.isna() if math.isnan(asked) else target == asked]
            expected = {
                seq_len: base[panel.pass_, seq_len] / latency_ms
                for seq_len, latency_ms in zip(rows["seq_len"], rows["latency_ms"], strict=True)
            }
            assert {g.seq_len: g.speedup for g in comparison.gains} == pytest.approx(expected)
            seen += len(expected)
    assert seen == len(ok) - len(base)


def test_pays_from_is_the_start_of_the_last_winning_stretch(row: Build) -> None:
    found = comparison_of(row, (1024, 3, 1), (2048, 1, 3), (4096, 3, 2), (8192, 4, 1))
    assert found.pays_from == 4096
    assert [gain.seq_len for gain in found.losses] == [2048]
    assert found.geometric_mean == pytest.approx((3 * (1 / 3) * 1.5 * 4) ** 0.25)


def test_a_line_that_loses_at_the_end_does_not_pay(row: Build) -> None:
    found = comparison_of(row, (1024, 3, 1), (2048, 1, 2))
    assert found.pays_from is None


def test_equal_times_do_not_pay(row: Build) -> None:
    assert comparison_of(row, (1024, 1, 1)).pays_from is None


def with_quartiles(ms: float, spread: float) -> dict[str, float]:
    return {
        "latency_ms": ms,
        "latency_q1_ms": ms * (1 - spread),
        "latency_q3_ms": ms * (1 + spread),
    }


def test_overlapping_quartiles_are_no_difference(row: Build) -> None:
    """Faster by 1 % with quartiles 2 % apart: neither a gain, nor a loss, nor a crossing."""
    rows = []
    for seq_len, own_ms in ((1024, 2.0), (2048, 0.99), (4096, 1.01), (8192, 0.5), (16384, 0.99)):
        rows.append(row("gpu", "sdpa", seq_len, **with_quartiles(1.0, 0.02)))
        rows.append(row("gpu", "dynnsiha", seq_len, **with_quartiles(own_ms, 0.02)))

    def found(frame: pd.DataFrame) -> Comparison:
        (comparison,) = comparisons(build_facets(frame, "sdpa")[0].panels[0])
        return comparison

    frame = pd.DataFrame(rows)
    assert [gain.sign for gain in found(frame).gains] == [-1, 0, 0, 1, 0]
    assert found(frame).pays_from is None
    assert [gain.seq_len for gain in found(frame).losses] == [1024]
    assert [gain.seq_len for gain in found(frame).ties] == [2048, 4096, 16384]
    assert found(frame).crossings == pytest.approx((math.sqrt(1024 * 8192),))
    assert found(frame[frame["seq_len"] <= 8192]).pays_from == 8192


def test_a_missing_quartile_counts_as_the_median(row: Build) -> None:
    rows = [
        row("gpu", "sdpa", 1024, **with_quartiles(1.0, 0.1)),
        row("gpu", "dynnsiha", 1024, latency_ms=0.95, latency_q1_ms=None, latency_q3_ms=None),
    ]
    (found,) = comparisons(build_facets(pd.DataFrame(rows), "sdpa")[0].panels[0])
    assert (found.gains[0].low, found.gains[0].high) == pytest.approx((0.9 / 0.95, 1.1 / 0.95))


def test_rows_are_compared_with_the_baseline_of_their_own_run(row: Build) -> None:
    """The machine is slower in the second run: pooled, the baseline would win against ``nsa``."""
    rows = [
        row("gpu", "sdpa", 8192, run_id="first", **with_quartiles(3.4, 0.001)),
        row("gpu", "sdpa", 8192, run_id="second", **with_quartiles(3.9, 0.001)),
        row("gpu", "nsa", 8192, run_id="first", **with_quartiles(3.5, 0.001)),
        row("gpu", "dynnsiha", 8192, run_id="first", **with_quartiles(1.7, 0.001)),
        row("gpu", "dynnsiha", 8192, run_id="second", **with_quartiles(1.3, 0.001)),
        row("gpu", "dynsiha", 8192, run_id="third", **with_quartiles(3.65, 0.001)),
    ]
    facet = build_facets(pd.DataFrame(rows), "sdpa")[0]
    found = {c.line.provider: c for c in comparisons(facet.panels[0])}
    assert found["nsa"].gains[0].speedup == pytest.approx(3.4 / 3.5)
    assert found["nsa"].gains[0].sign == -1
    assert found["nsa"].cases == 2
    joined = found["dynnsiha"].gains[0]
    assert joined.speedup == pytest.approx((3.4 / 1.7 + 3.9 / 1.3) / 2)
    assert (joined.low, joined.high) == pytest.approx((2 * 0.999 / 1.001, 3 * 1.001 / 0.999))
    assert (joined.point.runs, found["dynnsiha"].cases) == (2, 4)
    pooled = found["dynsiha"].gains[0]
    assert pooled.speedup == pytest.approx(1.0), "its run has no baseline: the median of all"
    assert (pooled.sign, found["dynsiha"].cases) == (0, 3)
    assert pooled.low == pytest.approx(3.4 / 3.65 * 0.999 / 1.001)


def test_own_baselines_are_those_of_plain_pandas(gpu_frame: pd.DataFrame) -> None:
    second = gpu_frame.assign(run_id="second", latency_ms=gpu_frame["latency_ms"] * 1.3)
    frame = pd.concat([gpu_frame, second], ignore_index=True)
    rows = with_speedups(prepare(frame), "sdpa")
    rows = rows[(rows["status"] == "ok") & (rows["provider"] != "sdpa")]
    base = frame[frame["provider"] == "sdpa"].set_index(["run_id", "pass", "seq_len"])
    expected = [
        base.loc[key, "latency_ms"] / own_ms
        for *key, own_ms in frame.loc[
            rows.index, ["run_id", "pass", "seq_len", "latency_ms"]
        ].itertuples(index=False)
        for key in [tuple(key)]
    ]
    assert rows["speedup"].tolist() == pytest.approx(expected)


def test_crossings_are_interpolated_in_logarithms(row: Build) -> None:
    found = comparison_of(row, (1024, 1, 2), (4096, 2, 1))
    assert found.crossings == pytest.approx((2048.0,))
    assert comparison_of(row, (1024, 2, 1), (4096, 2, 1)).crossings == ()


@settings(
    max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    times=st.lists(st.tuples(st.floats(0.01, 1e4), st.floats(0.01, 1e4)), min_size=1, max_size=5)
)
def test_verdicts_agree_with_one_another(row: Build, times: list[tuple[float, float]]) -> None:
    found = comparison_of(row, *((1024 * 2**i, *pair) for i, pair in enumerate(times)))
    not_won = {gain.seq_len for gain in (*found.losses, *found.ties)}
    assert len(not_won) == len(found.losses) + len(found.ties)
    if found.pays_from is None:
        assert found.gains[-1].seq_len in not_won
    else:
        assert all(g.seq_len not in not_won for g in found.gains if g.seq_len >= found.pays_from)
    for crossing in found.crossings:
        assert found.gains[0].seq_len <= crossing <= found.gains[-1].seq_len
    assert found.cases == 2 * len(times)


def test_different_machines_are_never_joined(mixed_frame: pd.DataFrame) -> None:
    facets = build_facets(mixed_frame, "sdpa")
    assert len(facets) == 3
    for facet in facets:
        assert facet.rows["machine_id"].nunique() == 1
    without = mixed_frame[(mixed_frame["device"] == "cuda") | (mixed_frame["provider"] != "sdpa")]
    cpu = next(f for f in build_facets(without, "sdpa") if f.rows["device"].iloc[0] == "cpu")
    assert comparisons(cpu.panels[0]) == [], "the GPU's sdpa is no baseline for the CPU"


def test_incorrect_rows_have_no_speed(row: Build) -> None:
    rows = [
        row("gpu", "sdpa", 8192, latency_ms=9.0),
        row("gpu", "dynnsiha", 8192, status="incorrect", latency_ms=1.0),
    ]
    (facet,) = build_facets(pd.DataFrame(rows), "sdpa")
    assert comparisons(facet.panels[0]) == []


def test_best_is_chosen_within_a_kind_of_lists(gpu_frame: pd.DataFrame) -> None:
    facet: Facet = build_facets(gpu_frame, "sdpa")[0]
    best = best_by_lists(facet.panels[0])
    assert [comparison.line.lists for comparison in best] == ["exact", "hybrid"]
    exact = [c for c in comparisons(facet.panels[0]) if c.line.lists == "exact"]
    exact = [c for c in exact if c.line.base == "dynnsiha"]
    assert best[0].gains[-1].speedup == max(c.gains[-1].speedup for c in exact)


def test_best_leaves_no_branch_out_where_a_line_has_all(row: Build) -> None:
    less = {"lists": "exact", "query_tile": 1, "branches": "compressed,selected"}
    rows = [
        row("gpu", "sdpa", 8192, latency_ms=9.0),
        row("gpu", "dynnsiha", 8192, latency_ms=1.0, **less),
    ]
    whole = row("gpu", "dynnsiha", 8192, latency_ms=3.0, lists="hybrid", query_tile=4)
    for measured, expected in ((rows, "exact"), ([*rows, whole], "hybrid")):
        (facet,) = build_facets(pd.DataFrame(measured), "sdpa")
        best = best_by_lists(facet.panels[0])
        assert [comparison.line.lists for comparison in best] == [expected]


def test_the_baseline_may_be_a_variant(gpu_frame: pd.DataFrame) -> None:
    (facet,) = build_facets(gpu_frame, "sdpa:cudnn")
    providers = {c.line.provider for c in comparisons(facet.panels[0])}
    assert "sdpa" in providers
    assert "sdpa:cudnn" not in providers
