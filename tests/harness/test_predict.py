"""Predictions: a modest guess first, then what rows taught."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dynbench.harness.case import Case
from dynbench.harness.predict import Predictor, guess_tflops

FLOPS_PER_TOKEN = 10**6


def case(seq_len: int, provider: str = "sdpa", **changed: str) -> Case:
    names = {"suite": "attention", "pass_": "forward", "device": "cpu", "dtype": "float32"}
    return Case(
        **{**names, **changed}, provider=provider, timer="wall", workload={"seq_len": seq_len}
    )


def predictor(**more) -> Predictor:
    return Predictor(lambda case: int(case.workload["seq_len"]) * FLOPS_PER_TOKEN, **more)


def test_first_guess_is_flops_over_rate():
    guess = predictor(efficiency={"sdpa": 0.5}, default_efficiency=0.1)
    seconds = 8192 * FLOPS_PER_TOKEN / (guess_tflops("cpu") * 1e12)
    assert guess.call_seconds(case(8192)) == pytest.approx(seconds / 0.5)
    assert guess.call_seconds(case(8192, "sdpa:math")) == pytest.approx(seconds / 0.5)
    assert guess.call_seconds(case(8192, "nsa")) == pytest.approx(seconds / 0.1)


def test_the_measured_rate_replaces_the_guess():
    taught = predictor(default_efficiency=1.0)
    taught.observe(case(1), {"ceiling_matmul_tflops": 2.0})
    assert taught.call_seconds(case(8192)) == pytest.approx(8192 * FLOPS_PER_TOKEN / 2e12)


@given(st.integers(1, 2**20), st.integers(1, 2**20), st.floats(0.01, 1e6))
def test_latencies_scale_with_flops(seen, wanted, latency_ms):
    taught = predictor()
    taught.observe(case(seen), {"latency_ms": latency_ms})
    assert taught.call_seconds(case(wanted)) == pytest.approx(latency_ms / 1e3 * wanted / seen)


def test_the_nearest_row_teaches():
    taught = predictor()
    taught.observe(case(1000), {"latency_ms": 10.0})
    taught.observe(case(64_000), {"latency_ms": 6400.0})
    assert taught.call_seconds(case(2000)) == pytest.approx(0.02)
    assert taught.call_seconds(case(128_000)) == pytest.approx(12.8)


@pytest.mark.parametrize(
    "changed", [{"provider": "nsa"}, {"pass_": "backward"}, {"dtype": "float16"}]
)
def test_other_work_teaches_nothing_about_latency(changed):
    taught, untaught = predictor(), predictor()
    taught.observe(case(1000), {"latency_ms": 1e6})
    other = case(1000, **changed)
    assert taught.call_seconds(other) == untaught.call_seconds(other)


def test_rows_without_times_teach_nothing():
    taught, untaught = predictor(), predictor()
    taught.observe(case(1000), {"status": "error", "latency_ms": None}, wall_s=300.0)
    assert taught.case_seconds(case(1000)) == untaught.case_seconds(case(1000))


def test_a_slow_case_costs_two_calls():
    taught = predictor()
    taught.observe(case(1000), {"latency_ms": 28_000.0})
    assert 56 <= taught.case_seconds(case(1000)) <= 60
    taught.observe(case(100), {"latency_ms": 2_000.0})
    assert taught.case_seconds(case(100)) > 5 * 2.0


def test_what_runs_once_costs_one_call_of_a_least_duration():
    once = predictor(once_s=lambda case: 40.0 if case.suite == "quality" else None)
    assert 40 <= once.case_seconds(case(1, suite="quality")) <= 42
    assert once.case_seconds(case(1)) == predictor().case_seconds(case(1))
    once.observe(case(1000, suite="quality"), {"latency_ms": 100_000.0}, wall_s=101.0)
    assert 198 <= once.case_seconds(case(2000, suite="quality")) <= 204


def test_time_outside_of_calls_is_learned_and_bounded():
    taught = predictor()
    before = taught.case_seconds(case(1000))
    for _ in range(3):
        taught.observe(case(1000), {"latency_ms": 28_000.0}, wall_s=114.0)
    assert taught.case_seconds(case(1000)) == pytest.approx(114, rel=0.1)
    assert taught.case_seconds(case(1000)) > before
    for _ in range(3):
        taught.observe(case(1000), {"latency_ms": 1.0}, wall_s=1e9)
    assert taught.case_seconds(case(1000)) < 1e5


def test_one_slow_start_does_not_scale_an_hour():
    taught = predictor()
    taught.observe(case(10), {"latency_ms": 0.01}, wall_s=8.0)
    assert taught.case_seconds(case(10, "nsa")) < 8


def test_total_and_unknown_flops():
    unknown = Predictor(lambda case: None)
    assert unknown.call_seconds(case(1)) > 0
    two = [case(1), case(2)]
    assert unknown.total_seconds(two) == pytest.approx(sum(map(unknown.case_seconds, two)))


def test_recorded_calls_are_counted():
    for latency_ms, further in ((1000.0, 7), (20_000.0, 1)):
        usual, recording = predictor(), predictor(stage_calls=7)
        for one in (usual, recording):
            one.observe(case(1000), {"latency_ms": latency_ms})
        more_s = recording.case_seconds(case(1000)) - usual.case_seconds(case(1000))
        assert more_s == pytest.approx(further * latency_ms / 1e3)


def test_work_outside_of_calls_counts_once():
    usual, reading = predictor(), predictor(further_flops_of=lambda case: 10**12)
    seconds = 10**12 / (guess_tflops("cpu") * 1e12 * usual.default_efficiency)
    more_s = reading.case_seconds(case(1000)) - usual.case_seconds(case(1000))
    assert more_s == pytest.approx(seconds)
    assert reading.call_seconds(case(1000)) == usual.call_seconds(case(1000))
