"""The learning-rate factor at its corners."""

from __future__ import annotations

import pytest

from dynnsiha.learning import warmup_cosine


def test_it_rises_in_a_line_and_falls_by_a_cosine():
    factor = warmup_cosine(110, warmup=10, final=0.2)
    assert [factor(step) for step in (1, 5, 10)] == pytest.approx([0.1, 0.5, 1.0])
    assert factor(60) == pytest.approx(0.6)
    assert factor(110) == pytest.approx(0.2)
    assert factor(1000) == pytest.approx(0.2)
    falling = [factor(step) for step in range(10, 111)]
    assert falling == sorted(falling, reverse=True)


def test_without_warmup_it_starts_high():
    assert warmup_cosine(100)(1) == pytest.approx(1.0, abs=1e-3)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"warmup": 10}, "warmup=10: must be at least 0 and below steps=10"),
        ({"warmup": -1}, "warmup=-1"),
        ({"final": 2.0}, "final=2.0: must lie in"),
    ],
)
def test_bad_numbers_name_the_fix(options, message):
    with pytest.raises(ValueError, match=message):
        warmup_cosine(10, **options)
