"""Intervals over seeds, against numbers from tables of the t distribution."""

import math
from dataclasses import replace

import numpy as np
import pytest

from dynbench.dashboards.quality.estimate import SHARE, difference, estimate, means


def test_one_seed_has_no_interval() -> None:
    held = estimate([1.7])
    assert held is not None
    assert (held.mean, held.low, held.high, held.seeds) == (1.7, None, None, 1)


def test_missing_numbers_are_no_seeds() -> None:
    assert estimate([]) is None
    assert estimate([math.nan]) is None
    held = estimate([1.0, math.nan, 2.0])
    assert held is not None
    assert held.values == (1.0, 2.0)


def test_the_t_interval_of_three_and_of_two() -> None:
    three = estimate([1.0, 2.0, 3.0])  # t(0.975, 2) = 4.30265, standard error 1 / sqrt(3)
    assert three is not None
    assert three.low == pytest.approx(2 - 4.30265 / math.sqrt(3), abs=1e-4)
    assert three.high == pytest.approx(2 + 4.30265 / math.sqrt(3), abs=1e-4)
    two = estimate([1.0, 2.0])  # t(0.975, 1) = 12.7062, standard error 1 / 2
    assert two is not None
    assert two.high == pytest.approx(1.5 + 12.7062 / 2, abs=1e-3)


def test_a_share_stays_a_share() -> None:
    held = estimate([0.5, 0.99], SHARE)
    assert held is not None
    assert (held.low, held.high) == (0.0, 1.0)


def test_equal_seeds_have_an_interval_without_width() -> None:
    held = estimate([1.0, 1.0, 1.0])
    assert held is not None
    assert (held.low, held.high) == (1.0, 1.0)


def test_means_go_along_the_first_axis() -> None:
    mean, half = means(np.array([[1.0, 5.0], [2.0, 5.0], [3.0, 5.0]]))
    assert mean.tolist() == [2.0, 5.0]
    assert half is not None
    assert half == pytest.approx([4.30265 / math.sqrt(3), 0.0], abs=1e-4)


def test_a_difference_has_welchs_interval() -> None:
    own, other = estimate([2.0, 3.0, 4.0]), estimate([1.0, 1.1, 1.2])
    assert own is not None
    assert other is not None
    held = difference(own, other)
    own_error, other_error = 1 / 3, 0.01 / 3  # squared standard errors
    freedom = (own_error + other_error) ** 2 / ((own_error**2 + other_error**2) / 2)
    assert freedom == pytest.approx(2.04, abs=0.005)  # t(0.975, 2.04) = 4.229
    assert held.value == pytest.approx(1.9)
    half = 4.229 * math.sqrt(own_error + other_error)
    assert held.low == pytest.approx(1.9 - half, abs=5e-3)
    assert held.high == pytest.approx(1.9 + half, abs=5e-3)


def test_a_difference_of_the_same_seeds_is_taken_seed_by_seed() -> None:
    """Seeds differ by 1, the two sides by 0.1 to 0.3: in whatever order they come."""
    own = estimate([3.2, 1.1, 2.3], seeds=[2, 0, 1])
    other = estimate([1.0, 2.0, 3.0], seeds=[0, 1, 2])
    apart = estimate([1.0, 2.0, 3.0], seeds=[0, 1, 3])
    assert own is not None
    assert other is not None
    assert apart is not None
    held = difference(own, other)
    half = 4.30265 * 0.1 / math.sqrt(3)  # differences 0.1, 0.2, 0.3
    assert held.value == pytest.approx(0.2)
    assert (held.low, held.high) == pytest.approx((0.2 - half, 0.2 + half), abs=1e-4)
    for unpaired in (difference(own, apart), difference(replace(own, names=()), other)):
        assert unpaired.low is not None
        assert unpaired.low < -1.5


def test_a_seed_without_a_number_is_not_paired() -> None:
    own = estimate([1.0, math.nan, 2.0], seeds=[0, 1, 2])
    assert own is not None
    assert (own.values, own.names) == ((1.0, 2.0), (0, 2))


def test_a_difference_from_a_single_seed_has_none() -> None:
    one, three = estimate([1.0]), estimate([1.0, 2.0, 3.0])
    assert one is not None
    assert three is not None
    held = difference(three, one)
    assert (held.value, held.low, held.high, held.seeds) == (1.0, None, None, (3, 1))


@pytest.mark.parametrize("values", [(1.0, 1.0, 1.0), (0.9, 1.0, 1.0)])
def test_a_side_without_spread_is_no_trouble(values: tuple[float, ...], recwarn) -> None:
    own, other = estimate(values), estimate([1.0, 1.0, 1.0])
    assert own is not None
    assert other is not None
    held = difference(own, other)
    assert held.low is not None
    assert held.high is not None
    assert held.low <= held.value <= held.high
    assert not recwarn.list
