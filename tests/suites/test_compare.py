import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from dynbench.suites.compare import (
    BASE_TOLERANCE,
    Comparison,
    compare_parts,
    first_unwritten,
    gradient_tolerance,
    key_parts,
    rms_ratio,
    row_parts,
    tolerance,
    worst,
)


def compared(output, reference, parts, **changes):
    options = {"plain": None, "dtype": torch.float32, "factor": 2.0} | changes
    return compare_parts("o", output, reference, parts, **options)


def test_ratio_is_relative():
    reference = torch.full((10,), 100.0, dtype=torch.float64)
    assert rms_ratio(reference + 1, reference) == pytest.approx(0.01)
    assert rms_ratio(torch.full((3,), 0.5), torch.zeros(3)) == 0.5
    assert math.isnan(rms_ratio(torch.tensor([math.nan, 1.0]), torch.ones(2)))


@given(st.lists(st.integers(0, 10**6), min_size=1, unique=True))
def test_parts_hold_every_position_once(positions):
    ordered = torch.tensor(sorted(positions))
    for split in (row_parts, key_parts):
        parts = split(ordered)
        assert sorted(torch.cat(parts).tolist()) == list(range(len(positions)))
        assert all(len(part) for part in parts)


def test_small_late_rows_are_not_outweighed_by_large_early_ones():
    positions = torch.arange(0, 5000, 50)
    reference = torch.ones(1, 100, 4)
    reference[:, 50:] = 1e-3
    output = reference.clone()
    output[:, 90:] *= 1.5
    assert rms_ratio(output, reference) < 1e-3
    assert worst(compared(output, reference, row_parts(positions))).error > 0.1


def test_tolerance_grows_with_the_plain_computations_error():
    reference = torch.ones(1, 8)
    parts = row_parts(torch.arange(8))
    for plain, allowed in ((reference, 5e-3), (reference * 1.01, 0.02)):
        (found,) = compared(reference, reference, parts, plain=plain, dtype=torch.bfloat16)
        assert found.tolerance == pytest.approx(allowed, rel=1e-3)
    (found,) = compared(reference, reference, parts)
    assert found.tolerance == 1e-4


def test_worst_is_relative_to_the_tolerance_and_nan_is_the_worst():
    strict, lax = Comparison("dq", 1e-3, 1e-4), Comparison("dk", 2e-3, 5e-3)
    assert worst([lax, strict]) is strict
    broken = Comparison("dv", math.nan, 1.0)
    assert worst([strict, broken, lax]) is broken


def test_unwritten_values_are_found_anywhere():
    good = torch.zeros(1, 5000, 2)
    assert first_unwritten([good, good], ["o", "dq"]) == ""
    bad = good.clone()
    bad[0, 4321, 1] = math.nan
    assert first_unwritten([good, bad], ["o", "dq"]).startswith("dq is not finite at [0, 4321, 1]")


def test_a_gradient_may_err_as_plain_torch_does_and_a_single_number_a_tenth():
    wanted, low = torch.ones(8), torch.bfloat16
    assert gradient_tolerance(wanted, None, low) == BASE_TOLERANCE[low]
    assert gradient_tolerance(wanted, wanted, low) == BASE_TOLERANCE[low]
    assert gradient_tolerance(wanted, 1.04 * wanted, low) == pytest.approx(0.12)
    assert gradient_tolerance(wanted[:1], wanted[:1], low) == 0.1
    assert gradient_tolerance(wanted[:1], 1.04 * wanted[:1], low) == pytest.approx(0.12)
    assert gradient_tolerance(wanted[:1], None, torch.float32) == BASE_TOLERANCE[torch.float32]
    assert tolerance(wanted[:1], wanted[:1], low) == BASE_TOLERANCE[low]
    assert tolerance(wanted, wanted * float("nan"), low) == BASE_TOLERANCE[low]
