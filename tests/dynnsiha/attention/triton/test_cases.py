"""The grid covers what it says, on the machine with a GPU that this one may not be."""

import itertools

import pytest

from . import cases


def kind_of_lists(case):
    config = case.config
    return "paper" if config.compress_stride < config.compress_block else config.lists


@pytest.fixture
def grid():
    return cases.gpu_grid()


def test_every_group_and_every_length_is_there(grid):
    assert {case.group for case in grid} == set(cases.GROUPS)
    for kind in cases._GPU_KINDS:
        lengths = {c.seq_len for c in grid if (c.name, c.group) == (kind.name, kind.group)}
        assert lengths >= set(cases.LENGTHS[:10])
    assert sum(case.seq_len == 2049 for case in grid) == len(cases._GPU_KINDS)
    assert sum(case.seq_len == 8192 for case in grid) >= 5


@pytest.mark.parametrize(
    "factors",
    list(
        itertools.combinations(
            [
                lambda c: c.head_dim,
                lambda c: c.dtype,
                lambda c: kind_of_lists(c) if kind_of_lists(c) != "shared" else "hybrid",
            ],
            2,
        )
    ),
    ids=["width and dtype", "width and lists", "dtype and lists"],
)
def test_every_pair_of_compiled_factors_meets(factors, grid):
    values = [{factor(case) for case in grid} for factor in factors]
    met = {tuple(factor(case) for factor in factors) for case in grid}
    assert met == set(itertools.product(*values))
    assert {case.head_dim for case in grid} == set(cases.WIDTHS)


def test_every_length_and_every_kind_meets_every_batching(grid):
    def batching(case):
        return "packed" if case.packed else case.batch

    wanted = {1, 3, "packed"}
    for seq_len in cases.LENGTHS[:10]:
        assert {batching(c) for c in grid if c.seq_len == seq_len} == wanted
    for kind in cases._GPU_KINDS:
        mine = [c for c in grid if (c.name, c.group) == (kind.name, kind.group)]
        assert {batching(c) for c in mine} == wanted
    assert {case.batch for case in grid if case.seq_len == 2049} >= {1, 3}
