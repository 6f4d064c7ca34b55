"""The decision tree, case by case, and its error rates over simulated rounds."""

from __future__ import annotations

import math

import numpy as np
import pytest

from dynbench.harness.gate.conditions import Pairing, Reading, pair
from dynbench.harness.gate.settings import Override, Settings
from dynbench.harness.gate.verdicts import Verdict, judge

GPU_NOISE = 0.008  # between processes, of a GPU's medians
CPU_NOISE = 0.03  # on a busy CPU


def single(baseline, candidate, settings=None, **options):
    """The verdict on the one case of two lists of rows."""
    pairings = pair(map(Reading, baseline), map(Reading, candidate), settings or Settings())
    (verdict,) = judge(pairings, settings or Settings(), **options)
    return verdict


def steady(row, case=0, latency_ms=1.0, count=6, **columns):
    """Rows of several processes that differ by a thousandth."""
    return [row(case, latency_ms * (1 + 1e-3 * (i % 3)), **columns) for i in range(count)]


# Error rates


@pytest.mark.parametrize("drift", [0.0, 0.001])
@pytest.mark.parametrize("noise", [GPU_NOISE, CPU_NOISE])
def test_identical_code_is_not_called_slower(simulate, noise, drift):
    """2000 comparisons of identical code: fewer than one in a thousand is flagged."""
    flagged = 0
    for gate in range(10):
        source = simulate(gate, noise, drift)
        verdicts = judge([source.rounds(i, 6) for i in range(200)], Settings())
        flagged += sum(v.verdict == Verdict.REGRESSED for v in verdicts)
    assert flagged <= 2


def test_many_noisy_cases_together_stay_below_the_error_rate(simulate):
    """Right at the threshold, where every second case looks slower, Holm holds the family."""
    wrong = 0
    for gate in range(200):
        source = simulate(1000 + gate, CPU_NOISE)
        verdicts = judge([source.rounds(i, 5, change=0.03) for i in range(8)], Settings())
        wrong += any(v.verdict == Verdict.REGRESSED for v in verdicts)
    assert wrong <= 0.05 * 200 + 3 * math.sqrt(200 * 0.05 * 0.95)


@pytest.mark.parametrize(("change", "least"), [(0.05, 95), (0.10, 100)])
def test_a_planted_slow_down_is_found(simulate, change, least):
    """100 trials, baseline and slower candidate from disjoint processes of a GPU's noise."""
    found = 0
    for trial in range(100):
        source = simulate(2000 + trial, GPU_NOISE)
        quiet = [source.rounds(i, 12) for i in range(9)]
        verdicts = judge([*quiet, source.rounds(9, 12, change)], Settings())
        found += verdicts[-1].verdict == Verdict.REGRESSED
    assert found >= least


def test_a_cpus_planted_slow_down_is_found_three_deviations_above_the_threshold(simulate):
    """The deviation is a round's, which is that of a process: two against two."""
    change = math.expm1(math.log1p(0.03) + 3 * CPU_NOISE)
    found = 0
    for trial in range(100):
        source = simulate(3000 + trial, CPU_NOISE)
        quiet = [source.rounds(i, 8) for i in range(9)]
        verdicts = judge([*quiet, source.rounds(9, 8, change)], Settings())
        found += verdicts[-1].verdict == Verdict.REGRESSED
    assert found >= 95


def test_a_speed_up_is_found_and_does_not_block(simulate):
    (verdict,) = judge([simulate(1, GPU_NOISE).rounds(0, 8, change=-0.1)], Settings())
    assert (verdict.verdict, verdict.blocks) == (Verdict.IMPROVED, False)
    assert verdict.high < -0.03


def test_quiet_rounds_of_equal_code_are_unchanged(simulate):
    (verdict,) = judge([simulate(1, 0.002).rounds(0, 5)], Settings())
    assert verdict.verdict == Verdict.UNCHANGED
    assert -0.03 < verdict.low < verdict.change < verdict.high < 0.03
    assert verdict.observations == 5


def test_noise_makes_a_case_ambiguous_and_says_so(simulate):
    (verdict,) = judge([simulate(3, 0.2).rounds(0, 4, change=0.1)], Settings())
    assert (verdict.verdict, verdict.blocks) == (Verdict.AMBIGUOUS, False)
    assert "about the threshold of 3 %: too noisy" in verdict.reason


def test_samples_within_a_process_are_not_taken_for_processes(make_row):
    """One process a side: a thousand equal samples in each prove nothing about the code."""
    rows = [make_row(0, ms, samples_ms=[ms] * 1000, sample_count=1000) for ms in (1.0, 1.06)]
    verdict = single(rows[:1], rows[1:])
    assert verdict.verdict == Verdict.AMBIGUOUS
    assert "noise assumed 5 %" in verdict.notes[0]
    assert single(rows[:1], [make_row(0, 2.0)]).verdict == Verdict.REGRESSED


# Stored rows


def test_several_processes_on_each_side_are_compared(make_row):
    baseline = steady(make_row)
    assert single(baseline, steady(make_row, latency_ms=1.05)).verdict == Verdict.REGRESSED
    assert single(baseline, steady(make_row, latency_ms=1.01)).verdict == Verdict.UNCHANGED
    assert single(baseline, steady(make_row, latency_ms=0.9)).verdict == Verdict.IMPROVED
    assert single(baseline, steady(make_row, latency_ms=1.05, count=1)).verdict == "regressed"


def test_limits_of_single_cases_hold(make_row):
    baseline, slower = steady(make_row), steady(make_row, latency_ms=1.05)
    wide = Settings(override=(Override("attention/nsa*", threshold=0.1),))
    verdict = single(baseline, slower, wide)
    assert (verdict.verdict, verdict.threshold) == (Verdict.UNCHANGED, 0.1)


def test_a_difference_below_the_floor_does_not_count(make_row):
    fast = [steady(make_row, latency_ms=ms) for ms in (0.005, 0.0055)]
    verdict = single(*fast)
    assert verdict.verdict == Verdict.UNCHANGED
    assert "below the floor of 1 µs" in verdict.reason
    assert single(*fast, Settings(floor_us=0.1)).verdict == Verdict.REGRESSED


@pytest.mark.parametrize(
    ("status", "verdict"),
    [
        ("incorrect", Verdict.INVALID),
        ("error", Verdict.INVALID),
        ("out_of_memory", Verdict.INVALID),
        ("timeout", Verdict.INVALID),
        ("unsupported", Verdict.INVALID),
        ("unavailable", Verdict.INVALID),
        ("skipped", Verdict.MISSING),
    ],
)
def test_ok_before_and_failed_now_blocks(make_row, status, verdict):
    found = single(steady(make_row), [make_row(0, status=status, reason="because")])
    assert (found.verdict, found.blocks) == (verdict, True)
    assert found.reason == f"ok in the baseline, now {status}: because"


def test_ok_before_and_absent_now_blocks(make_row):
    found = single(steady(make_row), [])
    assert (found.verdict, found.blocks) == (Verdict.MISSING, True)


def test_what_the_baseline_cannot_say_is_incomparable(make_row):
    rows = steady(make_row)
    assert single([], rows).reason == "not in the baseline"
    failed = [make_row(0, status="error", reason="it raised")]
    found = single(failed, rows)
    assert (found.verdict, found.blocks) == (Verdict.INCOMPARABLE, False)
    assert "error: it raised" in found.reason


def test_one_failure_among_many_processes_blocks(make_row):
    rows = [*steady(make_row), make_row(0, status="incorrect", reason="rms error 1")]
    assert single(steady(make_row), rows).verdict == Verdict.INVALID
    assert single(rows, steady(make_row)).verdict == Verdict.UNCHANGED


# Conditions


@pytest.mark.parametrize(
    ("columns", "part"),
    [
        ({"gpu_name": "NVIDIA H100"}, "gpu_name is 'NVIDIA H100', the baseline has 'NVIDIA H200'"),
        ({"gpu_power_limit_w": 500.0}, "gpu_power_limit_w is 500"),
        ({"driver_version": "575.1"}, "driver_version is '575'"),
        ({"torch_version": "2.11.0"}, "torch_version"),
        ({"triton_version": "3.6.0"}, "triton_version"),
        ({"rest": 2.0}, "rest is 2.0, the baseline has 0.0"),
    ],
)
def test_other_conditions_are_incomparable(make_gpu_row, columns, part):
    verdict = single(steady(make_gpu_row), steady(make_gpu_row, **columns))
    assert (verdict.verdict, verdict.blocks) == (Verdict.INCOMPARABLE, False)
    assert part in verdict.reason


@pytest.mark.parametrize(
    "columns", [{"cpu_name": "another"}, {"cpu_threads": 1}, {"torch_version": "2.11.0"}]
)
def test_other_conditions_of_a_cpu(make_row, columns):
    assert single(steady(make_row), steady(make_row, **columns)).verdict == Verdict.INCOMPARABLE


def test_a_minor_driver_and_a_watt_do_not_matter(make_gpu_row):
    changed = steady(make_gpu_row, driver_version="580.1", gpu_power_limit_w=700.2, rest=0.0)
    assert single(steady(make_gpu_row), changed).verdict == Verdict.UNCHANGED


@pytest.mark.parametrize("rest", [2.0, None])
def test_a_failure_of_a_resting_gpu_blocks(make_gpu_row, rest):
    failed = steady(make_gpu_row, status="error", reason="x", rest=rest)
    verdict = single(steady(make_gpu_row, rest=2.0), failed)
    assert (verdict.verdict, verdict.blocks) == (Verdict.INVALID, True)


def test_a_skipped_row_behind_ok_ones_hides_none(make_gpu_row):
    """A run out of budget: its row does not know whether the card would have rested."""
    skipped = make_gpu_row(status="skipped", reason="the budget ended", rest=None)
    rows = [*steady(make_gpu_row, rest=2.0), skipped]
    verdict = single(steady(make_gpu_row, rest=2.0), rows)
    assert (verdict.verdict, verdict.observations) == (Verdict.UNCHANGED, 6)
    slow = [*steady(make_gpu_row, latency_ms=1.2, rest=2.0), skipped]
    assert single(steady(make_gpu_row, rest=2.0), slow).verdict == Verdict.REGRESSED


def test_of_a_baseline_of_two_machines_the_right_one_counts(make_gpu_row):
    baseline = [
        *steady(make_gpu_row, latency_ms=2.0, gpu_name="NVIDIA H100"),
        *steady(make_gpu_row),
        *steady(make_gpu_row, latency_ms=2.0, gpu_name="NVIDIA H100"),
    ]
    verdict = single(baseline, steady(make_gpu_row))
    assert (verdict.verdict, verdict.baseline_ms) == (Verdict.UNCHANGED, pytest.approx(1.001, 1e-3))


def test_across_compares_and_names_the_difference(make_gpu_row):
    rows = steady(make_gpu_row), steady(make_gpu_row, latency_ms=2.0, gpu_name="NVIDIA H100")
    verdict = single(*rows, across=True)
    assert verdict.verdict == Verdict.REGRESSED
    assert "gpu_name is 'NVIDIA H100'" in verdict.notes[0]


def test_a_worker_that_never_started_is_a_failure_not_another_machine(make_gpu_row):
    failed = make_gpu_row(
        0,
        status="error",
        reason="no worker",
        gpu_name=None,
        gpu_power_limit_w=None,
        driver_version=None,
    )
    assert single(steady(make_gpu_row), [failed]).verdict == Verdict.INVALID


# Clocks, throttling, other processes


def test_a_lower_clock_is_no_regression(make_gpu_row):
    slower = steady(make_gpu_row, latency_ms=1.1, sm_clock_mhz=1980 / 1.1)
    verdict = single(steady(make_gpu_row), slower)
    assert (verdict.verdict, verdict.blocks) == (Verdict.AMBIGUOUS, False)
    assert "not in cycles: the clocks differed" in verdict.reason
    assert single(steady(make_gpu_row), steady(make_gpu_row, latency_ms=1.1)).blocks


def test_clocks_of_single_samples_are_preferred(make_gpu_row):
    samples = {"samples_ms": [1.1] * 3, "samples_sm_clock_mhz": [1800.0] * 3}
    verdict = single(steady(make_gpu_row), steady(make_gpu_row, latency_ms=1.1, **samples))
    assert verdict.verdict == Verdict.AMBIGUOUS


def test_a_cpus_clock_does_not_count(make_row):
    slower = steady(make_row, latency_ms=1.1, sm_clock_mhz=1800.0)
    assert single(steady(make_row, sm_clock_mhz=1980.0), slower).verdict == Verdict.REGRESSED


THERMAL = {"throttled_samples": 3, "throttle_reasons": ["hw_thermal_slowdown"]}


def test_throttled_rows_are_invalid_but_no_regression(make_gpu_row):
    for sides in ((THERMAL, {}), ({}, THERMAL)):
        verdict = single(*(steady(make_gpu_row, **columns) for columns in sides))
        assert (verdict.verdict, verdict.blocks) == (Verdict.INVALID, False)
        assert "3 of 3 samples throttled (hw_thermal_slowdown)" in verdict.reason


def test_some_throttled_rows_are_left_out(make_gpu_row):
    rows = [*steady(make_gpu_row), *steady(make_gpu_row, latency_ms=1.5, **THERMAL)]
    verdict = single(steady(make_gpu_row), rows)
    assert verdict.verdict == Verdict.UNCHANGED
    assert verdict.notes[0].startswith("6 of 18 rows throttled")


def test_the_power_cap_is_how_a_card_runs(make_gpu_row):
    capped = {"throttled_samples": 3, "throttle_reasons": ["sw_power_cap"]}
    rows = steady(make_gpu_row, **capped)
    assert single(rows, rows).verdict == Verdict.UNCHANGED
    strict = Settings(tolerated_throttling=())
    assert single(rows, rows, strict).verdict == Verdict.INVALID


def test_samples_of_tolerated_and_other_reasons_are_told_together(make_gpu_row):
    """One thermal reading among fifty at the power cap; the row does not tell how many."""
    both = {"throttled_samples": 50, "sample_count": 50}
    both["throttle_reasons"] = ["sw_power_cap", "sw_thermal_slowdown"]
    verdict = single(steady(make_gpu_row), steady(make_gpu_row, **both))
    assert verdict.verdict == Verdict.INVALID
    assert verdict.reason.endswith(
        "50 of 50 samples throttled (sw_thermal_slowdown; some perhaps for sw_power_cap alone, "
        "which is tolerated)"
    )


def test_few_throttled_samples_do_not_matter(make_gpu_row):
    rows = steady(make_gpu_row, **THERMAL | {"sample_count": 30})
    assert single(rows, rows).verdict == Verdict.UNCHANGED


@pytest.mark.parametrize(
    "busy", [{"other_cpu_share": 0.5}, {"other_gpu_processes": 1, "device": "cuda"}]
)
def test_rows_beside_other_work_accuse_nobody(make_row, make_gpu_row, busy):
    row = make_gpu_row if "device" in busy else make_row
    rows = steady(row, latency_ms=1.2, **busy)
    verdict = single(steady(row), rows)
    assert (verdict.verdict, verdict.blocks) == (Verdict.AMBIGUOUS, False)
    assert "slower by more than 3 %, but 6 of 12 rows disturbed" in verdict.reason
    calm = [*rows, *steady(row, latency_ms=1.2)]
    verdict = single(steady(row), calm)
    assert verdict.verdict == Verdict.REGRESSED
    assert "left out: 6 of 18 rows disturbed" in verdict.notes[0]


def test_a_cpus_load_does_not_disturb_a_gpu(make_gpu_row):
    slower = steady(make_gpu_row, latency_ms=1.2, other_cpu_share=0.9)
    assert single(steady(make_gpu_row), slower).verdict == Verdict.REGRESSED


# Rounds


def disturb(pairing: Pairing, rounds: set[int], **columns) -> Pairing:
    for side in (pairing.baseline, pairing.candidate):
        side[:] = [Reading({**r.row, **columns}, r.round) if r.round in rounds else r for r in side]
    return pairing


def test_disturbed_rounds_are_left_out_where_enough_remain(simulate):
    pairing = disturb(simulate(5, 0.002).rounds(0, 8), {0, 1}, other_cpu_share=0.5)
    (verdict,) = judge([pairing], Settings())
    assert (verdict.verdict, verdict.observations) == (Verdict.UNCHANGED, 6)
    assert verdict.not_counting == 2
    pairing = disturb(simulate(5, 0.002).rounds(0, 8, 0.1), set(range(6)), other_cpu_share=0.5)
    (verdict,) = judge([pairing], Settings())
    assert (verdict.verdict, verdict.observations) == (Verdict.AMBIGUOUS, 8)
    assert "but 6 of 8 rounds disturbed" in verdict.reason
    assert verdict.not_counting == 6


def test_throttled_rounds_are_left_out_or_make_the_case_invalid(simulate):
    columns = {"throttled_samples": 3, "throttle_reasons": ["hw_slowdown"]}
    pairing = disturb(simulate(5, 0.002).rounds(0, 8), {3}, **columns)
    (verdict,) = judge([pairing], Settings())
    assert (verdict.verdict, verdict.observations) == (Verdict.UNCHANGED, 7)
    pairing = disturb(simulate(5, 0.002).rounds(0, 8), set(range(7)), **columns)
    (verdict,) = judge([pairing], Settings())
    assert (verdict.verdict, verdict.blocks) == (Verdict.INVALID, False)


def test_a_round_that_lost_a_row_of_the_baseline_does_not_count(simulate):
    pairing = simulate(5, 0.002).rounds(0, 5)
    lost = pairing.baseline.pop()
    failed = {**lost.row, "status": "error", "reason": "it died", "latency_ms": None}
    pairing.baseline.append(Reading(failed, lost.round))
    (verdict,) = judge([pairing], Settings())
    assert (verdict.verdict, verdict.observations) == (Verdict.UNCHANGED, 4)
    assert verdict.not_counting == 1


def test_one_round_proves_nothing(simulate):
    (verdict,) = judge([simulate(5, 0.0).rounds(0, 1, 0.5)], Settings())
    assert verdict.verdict == Verdict.AMBIGUOUS
    assert "one tells nothing of noise" in verdict.reason


def test_drift_meets_both_sides_alike(simulate):
    """A machine that slows down by 1 % a process would make an unpaired comparison blind."""
    pairing = simulate(5, 0.002, drift=0.01).rounds(0, 6)
    assert np.std([math.log(r.latency_ms) for r in pairing.baseline]) > 0.05
    assert judge([pairing], Settings())[0].verdict == Verdict.UNCHANGED


def test_no_case_no_verdict():
    assert judge([], Settings()) == []
