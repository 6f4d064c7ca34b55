import pytest
from hypothesis import given
from hypothesis import strategies as st

from dynbench.suites.sparsity import (
    expected_attended_pairs,
    expected_sparsity,
    solve_top_n,
    unreachable,
)


def attended_by_hand(seq_len, window, top_n, block, init, local):
    """Every pair visited: certain keys count 1, keys of a candidate block its chance."""
    total = 0.0
    for t in range(seq_len):
        own = t // block
        forced = {b for b in range(own + 1) if b < init or b > own - local}
        candidates = [b for b in range(own + 1) if b not in forced]
        chance = min(1.0, (top_n - init - local) / len(candidates)) if candidates else 0.0
        for key in range(t + 1):
            certain = key > t - window or key // block in forced
            total += 1.0 if certain else chance
    return total


@given(
    seq_len=st.integers(1, 70),
    window=st.integers(1, 40),
    block=st.integers(1, 9),
    init=st.integers(0, 3),
    local=st.integers(1, 3),
    free=st.integers(0, 6),
)
def test_expected_pairs_equal_a_count_over_all_pairs(seq_len, window, block, init, local, free):
    top_n = init + local + free
    found = expected_attended_pairs(
        seq_len, window, top_n, block_size=block, init_blocks=init, local_blocks=local
    )
    assert found == pytest.approx(attended_by_hand(seq_len, window, top_n, block, init, local))


@given(seq_len=st.integers(1, 6000), window=st.integers(1, 900), target=st.floats(0, 0.99))
def test_solved_top_n_is_the_nearest_of_all(seq_len, window, target):
    top_n = solve_top_n(seq_len, window, target)
    blocks = max(3, -(-seq_len // 64))
    nearest = min(abs(expected_sparsity(seq_len, window, n) - target) for n in range(3, blocks + 1))
    assert 3 <= top_n <= blocks
    assert abs(expected_sparsity(seq_len, window, top_n) - target) == pytest.approx(nearest)


def test_sparsity_grows_with_length_and_falls_with_top_n():
    assert expected_sparsity(65536, 512, 16) > expected_sparsity(8192, 512, 16) > 0.5
    assert expected_sparsity(8192, 512, 16) > expected_sparsity(8192, 512, 32)


def test_target_beyond_reach_names_the_nearest():
    reason = unreachable(8192, 512, 0.95)
    assert "sparsity 0.95 cannot be reached at T=8192 with window 512" in reason
    assert f"{expected_sparsity(8192, 512, 3):.3f}" in reason
    assert unreachable(8192, 512, 0.75) == ""
    assert unreachable(131072, 512, 0.95) == ""
