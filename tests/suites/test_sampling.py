import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from dynbench.suites.sampling import GRADIENT_PAIRS, KEY_BLOCK, SPARSE_COST, sample


def test_small_cases_are_whole():
    found = sample(2, 100, 4, 2, "cpu", 0)
    assert found.whole
    assert len(found.rows) == len(found.keys) == 100
    assert found.slices == found.key_slices == [(0, 0), (0, 1), (1, 0), (1, 1)]


def test_the_seed_decides_and_repeats():
    one, same, other = (sample(1, 9000, 1, 1, "cpu", seed) for seed in (0, 0, 1))
    assert torch.equal(one.rows, same.rows)
    assert not torch.equal(one.rows, other.rows)


@given(
    seq_len=st.integers(1, 200_000),
    kv_heads=st.sampled_from([1, 2, 8, 32]),
    group=st.sampled_from([1, 4, 16]),
    batch=st.integers(1, 8),
    sparse=st.booleans(),
)
def test_samples_stay_in_bounds_and_in_budget(seq_len, kv_heads, group, batch, sparse):
    found = sample(batch, seq_len, kv_heads * group, kv_heads, "cpu", 0, sparse=sparse)
    for positions in (found.rows, found.keys):
        assert positions[0] >= 0
        assert positions[-1] == seq_len - 1
        assert bool((positions.diff() > 0).all())
    assert found.rows[0] == 0
    assert found.keys[0] == found.first_query
    assert {(0, 0), (batch - 1, kv_heads - 1)} <= set(found.slices)
    assert len(set(found.slices)) == len(found.slices)
    assert set(found.key_slices) <= set(found.slices)
    if not found.whole:
        queries = seq_len - found.first_query
        budget = GRADIENT_PAIRS["cpu"] // (SPARSE_COST if sparse else 1)
        pairs = queries * seq_len * group * len(found.key_slices)
        assert pairs <= budget or queries <= 2 * KEY_BLOCK


@pytest.mark.parametrize("seq_len", [4096, 131072])
def test_rows_cover_edges_of_blocks_and_both_ends(seq_len):
    rows = set(sample(1, seq_len, 1, 1, "cpu", 0).rows.tolist())
    assert {0, 63, 64, 511, 512, seq_len - 1} <= rows
    assert len(rows) <= 64
