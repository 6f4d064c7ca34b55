"""Budgets so small that one call takes many pieces, segments and parts, as long sequences do."""

import importlib
from dataclasses import replace

import pytest

from dynnsiha.attention.triton import sums

from .cases import HYBRID, ON_GPU, PAPER
from .oracle import BACKEND, assert_accurate, run

pytestmark = pytest.mark.skipif(BACKEND != "triton", reason="budgets of the Triton backend")

LENGTH = 700 if ON_GPU else 140

BUDGETS = {
    "pieces of one head and one block": ("problem", {"_ROW_BYTES": 1}),
    "pieces of one head": ("problem", {"_KEY_BYTES": 1}),
    "segments of a few rows": ("function", {"_SEGMENT_ROWS": 128}),
    "queries gathered in many parts": ("function", {"_QUERY_BYTES": 1 << 13, "_LEAST_PAIRS": 1}),
    "parts of one block of queries": ("compressed", {"_LEAST_PART": 64}),
}


@pytest.mark.parametrize(
    ("kind", "batching"),
    [(PAPER, "single"), (HYBRID, "packed"), (PAPER, "packed"), (HYBRID, "single")][
        : 4 if ON_GPU else 2
    ],
    ids=str,
)
@pytest.mark.parametrize("name", BUDGETS)
def test_many_pieces_give_the_same_results(name, kind, batching, monkeypatch):
    module, values = BUDGETS[name]
    module = importlib.import_module(f"dynnsiha.attention.triton.{module}")
    for constant, value in values.items():
        assert getattr(module, constant) > value
        monkeypatch.setattr(module, constant, value)
    case = replace(kind, kv_heads=2).at(LENGTH, batching)
    assert_accurate(case.inputs(), case.config, per_branch=False)


def test_only_the_first_axis_of_a_grid_grows_with_the_length(monkeypatch):
    """CUDA's other two hold 65535 programs, and there are more blocks in four million tokens."""
    launch = type(sums.finish_keys).__getitem__
    grids = []

    def recorded(kernel, grid):
        grids.append((kernel.fn.__name__, grid))
        return launch(kernel, grid)

    monkeypatch.setattr(type(sums.finish_keys), "__getitem__", recorded)
    both = []
    for length in (64, LENGTH):
        inputs = PAPER.at(length).inputs()
        grids.clear()
        run(inputs, PAPER.config)
        both.append({(name, tuple(grid)[1:]) for name, grid in grids})
    assert "finish_keys" in {name for name, _ in both[0]}
    assert both[0] == both[1]
