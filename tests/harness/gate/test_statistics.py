"""The statistics against their definitions, scipy's own tests, and simulated processes."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from dynbench.harness.gate.statistics import (
    detectable_change,
    holm,
    paired_change,
    rounds_needed,
    unpaired_change,
)

CHANGES = st.floats(-1, 1).map(lambda x: round(x, 6))
P_VALUES = st.lists(st.floats(0, 1), max_size=12)


@settings(deadline=None)
@given(st.lists(CHANGES, min_size=2, max_size=12), CHANGES)
def test_a_paired_change_is_students_t(changes, bound):
    estimate = paired_change(changes)
    if np.std(changes) < 1e-4:  # below what a timer resolves, the interval stays open a little
        assert estimate.upper(0.95) > estimate.change
        return
    expected = stats.ttest_1samp(changes, bound, alternative="greater")
    assert estimate.p_above(bound) == pytest.approx(expected.pvalue, abs=1e-9)
    assert estimate.p_below(bound) == pytest.approx(1 - expected.pvalue, abs=1e-9)
    interval = stats.ttest_1samp(changes, 0).confidence_interval(0.9)
    assert estimate.lower(0.95) == pytest.approx(interval.low)
    assert estimate.upper(0.95) == pytest.approx(interval.high)


@settings(deadline=None)
@given(*(st.lists(CHANGES, min_size=2, max_size=9) for _ in "ab"), CHANGES)
def test_an_unpaired_change_is_welchs(baseline, candidate, bound):
    if min(np.std(baseline), np.std(candidate)) < 1e-4:
        return
    shifted = np.asarray(candidate) - bound
    expected = stats.ttest_ind(shifted, baseline, equal_var=False, alternative="greater").pvalue
    assert unpaired_change(baseline, candidate, 1.0).p_above(bound) == pytest.approx(
        expected, abs=1e-9
    )


def test_one_process_on_a_side_borrows_the_others_noise():
    baseline, candidate = [0.0, 0.01, 0.02, 0.03], [0.5]
    estimate = unpaired_change(baseline, candidate, assumed_noise=9.0)
    expected = stats.ttest_ind_from_stats(
        np.mean(candidate), 0.0, 1, np.mean(baseline), np.std(baseline, ddof=1), 4
    )
    assert 2 * min(estimate.p_above(0), estimate.p_below(0)) == pytest.approx(expected.pvalue)
    mirrored = unpaired_change(candidate, baseline, assumed_noise=9.0)
    assert mirrored.upper(0.95) == pytest.approx(-estimate.lower(0.95))


def test_one_process_on_each_side_has_the_assumed_noise():
    estimate = unpaired_change([0.0], [0.2], assumed_noise=0.05)
    assert estimate.p_above(0.0) == pytest.approx(stats.norm.sf(0.2 / (0.05 * math.sqrt(2))))
    assert estimate.freedom == math.inf


def test_nothing_to_estimate_from():
    with pytest.raises(ValueError, match="1 rounds"):
        paired_change([0.1])
    with pytest.raises(ValueError, match="without a process"):
        unpaired_change([], [0.1], 0.05)


@given(P_VALUES, st.floats(0.001, 0.2))
def test_holm_rejects_what_its_definition_rejects(p_values, alpha):
    rejected = set()
    for step, index in enumerate(sorted(range(len(p_values)), key=lambda i: p_values[i])):
        if p_values[index] > alpha / (len(p_values) - step):
            break
        rejected.add(index)
    adjusted = holm(p_values)
    borderline = {i for i, p in enumerate(adjusted) if p == pytest.approx(alpha)}
    assert {i for i, p in enumerate(adjusted) if p <= alpha} | borderline == rejected | borderline
    assert all(p <= a <= 1 for p, a in zip(p_values, adjusted, strict=True))


@pytest.mark.parametrize("alpha", [0.05, 0.0005])
@pytest.mark.parametrize("noise", [0.003, 0.01, 0.03])
def test_as_many_rounds_as_needed_find_the_change(alpha, noise):
    """The promise of ``rounds_needed``, kept by simulated rounds."""
    threshold, target = math.log(1.03), math.log(1.05)
    count = rounds_needed(noise, 1e6, threshold, target, alpha, 0.95)  # the noise is known here
    random = np.random.default_rng(7)
    trials = target + noise * random.standard_normal((4000, count))
    found = stats.ttest_1samp(trials, threshold, axis=1, alternative="greater").pvalue <= alpha
    assert found.mean() > 0.94
    if count > 2:
        fewer = stats.ttest_1samp(trials[:, 1:], threshold, axis=1, alternative="greater").pvalue
        assert (fewer <= alpha).mean() < 0.97
    change = detectable_change(noise, count, threshold, alpha, 0.95)
    assert threshold < change <= target * 1.01


def test_noise_from_few_rounds_is_not_believed_to_be_so_small():
    known = rounds_needed(0.01, 1e6, 0.03, 0.05, 0.05, 0.95)
    estimated = rounds_needed(0.01, 3, 0.03, 0.05, 0.05, 0.95)
    assert estimated > known
    assert rounds_needed(10.0, 3, 0.03, 0.05, 0.05, 0.95) is None
