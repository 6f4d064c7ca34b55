import pytest

from dynbench.suites.settings import (
    BLOCK_SIZE,
    BRANCHES,
    INIT_BLOCKS,
    LOCAL_BLOCKS,
    PRIVATE_BLOCKS,
    branches_of,
    config_from,
    sparse_settings,
)
from dynnsiha.attention.config import NSAConfig


def settings(computes, q_heads=4, kv_heads=4, **changes):
    lists = {"query_tile": "auto", "private_blocks": PRIVATE_BLOCKS}
    values = {"top_n": 16, "window": 512} | lists | changes
    return sparse_settings(computes, q_heads, kv_heads, **values)


def test_nsa_is_the_papers_configuration():
    assert config_from(settings("nsa")) == NSAConfig.paper()
    assert settings("nsa")["lists"] == "exact"


@pytest.mark.parametrize(("q_heads", "kv_heads", "tile"), [(1, 1, 64), (64, 4, 4), (32, 8, 16)])
def test_auto_tile_is_the_cores(q_heads, kv_heads, tile):
    made = settings("dynnsiha", q_heads, kv_heads)
    assert made["query_tile"] == tile
    guided = NSAConfig.word_guided(q_heads, kv_heads, query_tile="auto")
    assert config_from(made) == guided


@pytest.mark.parametrize(
    ("tile", "private", "lists", "kept"),
    [(1, 2, "exact", 0), (16, 2, "hybrid", 2), (16, 0, "shared", 0)],
)
def test_lists_follow_tile_and_private_blocks(tile, private, lists, kept):
    made = settings("dynnsiha", query_tile=tile, private_blocks=private)
    assert (made["lists"], made["private_blocks"]) == (lists, kept)


def test_constants_are_the_cores_defaults():
    default = NSAConfig()
    found = (default.block_size, default.init_blocks, default.local_blocks, default.branches)
    assert found == (BLOCK_SIZE, INIT_BLOCKS, LOCAL_BLOCKS, BRANCHES)


def test_branches_are_named_where_one_is_left_out():
    assert "branches" not in settings("nsa", branches=("sliding", "selected", "compressed"))
    assert branches_of(settings("nsa")) == BRANCHES
    made = settings("nsa", branches=("sliding", "selected"))
    assert made["branches"] == "selected,sliding"
    assert config_from(made) == NSAConfig.paper(branches=("selected", "sliding"))


def test_without_the_sliding_branch_the_window_is_no_setting():
    one, other = (settings("nsa", branches=BRANCHES[:2], window=w) for w in (512, 64))
    assert one == other
    assert one["window"] == 0
    assert config_from(one) == NSAConfig.paper(branches=BRANCHES[:2])


def test_dense_has_no_configuration():
    assert config_from({"lists": "dense"}) is None
