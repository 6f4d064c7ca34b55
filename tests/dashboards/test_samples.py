"""Numbers of six digits: many at once as one by one, and lists as rows hold them."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from dynbench.dashboards.samples import numbers_of, short, shortened

FLOATS = st.floats(allow_nan=True, allow_infinity=True)


@given(arrays(np.float64, st.integers(0, 8), elements=FLOATS))
def test_many_are_shortened_as_each_is(values: np.ndarray) -> None:
    found = shortened(values)
    assert found.shape == values.shape
    for value, shown in zip(values.tolist(), found.tolist(), strict=True):
        if math.isnan(value):
            assert math.isnan(shown)
        elif not math.isfinite(value) or value == 0:
            assert shown == value
        else:  # half a unit of the sixth digit away at most, and no digit more than six
            assert shown == pytest.approx(value, rel=5.1e-6)
            assert shown == short(shown)


@pytest.mark.parametrize("value", [0.1, 1.1, 123456.7, 1234567.0, 3.14159265e-7, 2.5e300, -7e-310])
def test_what_is_no_tie_is_the_same_number(value: float) -> None:
    assert shortened(np.array([value])).tolist() == [short(value)]


@pytest.mark.parametrize(
    ("held", "numbers"),
    [
        (None, None),
        (math.nan, None),
        ("", None),
        ([], None),
        ([1.23456789, None, math.nan, 2], [1.23457, 2.0]),
        (np.array([1.0, 2.0]), [1.0, 2.0]),
    ],
)
def test_lists_are_finite_numbers_or_none(held: object, numbers: list[float] | None) -> None:
    assert numbers_of(held) == numbers
