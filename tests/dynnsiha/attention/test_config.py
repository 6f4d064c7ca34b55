"""NSAConfig: presets, resolution of the automatic tile, errors that name field, value and fix."""

import pytest

from dynnsiha import NSAConfig


def test_presets_differ_in_windows_and_lists_only():
    paper = NSAConfig.paper()
    assert (paper.compress_block, paper.compress_stride, paper.lists) == (32, 16, "exact")
    guided = NSAConfig.word_guided(64, 4)
    assert (guided.compress_block, guided.compress_stride) == (64, 64)
    assert (guided.query_tile, guided.private_blocks, guided.lists) == (4, 1, "hybrid")
    assert NSAConfig(query_tile=8).lists == "shared"
    assert NSAConfig.word_guided(8, 8, top_n=20, query_tile=2).query_tile == 2


@pytest.mark.parametrize(
    ("q_heads", "kv_heads", "block_size", "tile", "automatic"),
    [
        (64, 4, 64, 4, 4),
        (32, 8, 64, 16, 16),
        (32, 32, 64, 16, 64),
        (6, 2, 64, 16, 16),
        (6, 6, 24, 12, 24),
        (128, 1, 64, 1, 1),
    ],
)
def test_word_guided_lists_are_those_that_were_tried(
    q_heads, kv_heads, block_size, tile, automatic
):
    """And an automatic tile that is asked for is the kernels'."""
    sizes = dict.fromkeys(("block_size", "compress_block", "compress_stride"), block_size)
    made = NSAConfig.word_guided(q_heads, kv_heads, **sizes)
    assert (made.query_tile, made.private_blocks) == (tile, 1)
    asked = NSAConfig.word_guided(q_heads, kv_heads, query_tile="auto", **sizes)
    assert (asked.query_tile, asked.private_blocks) == (automatic, 1)


@pytest.mark.parametrize(
    ("q_heads", "kv_heads", "block_size", "tile"),
    [
        (64, 4, 64, 4),
        (32, 8, 64, 16),
        (32, 32, 64, 64),
        (64, 1, 64, 1),
        (128, 1, 64, 1),
        (6, 2, 48, 16),
    ],
)
def test_automatic_tile_is_the_largest_divisor_up_to_64_rows(q_heads, kv_heads, block_size, tile):
    config = NSAConfig(
        block_size=block_size,
        compress_block=block_size,
        compress_stride=block_size,
        query_tile="auto",
    )
    assert config.resolved(q_heads, kv_heads).query_tile == tile


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"block_size": 0}, "block_size=0: must be at least 1"),
        ({"compress_stride": 24}, "compress_stride=24: must be a divisor of compress_block=64"),
        (
            {"compress_block": 32, "compress_stride": 32, "block_size": 48},
            "a divisor of block_size=48",
        ),
        ({"compress_block": 128}, "compress_block=128: must be at most block_size=64"),
        ({"query_tile": 3}, "query_tile=3: must be 'auto' or a divisor of block_size=64"),
        ({"query_tile": 128}, "query_tile=128"),
        ({"local_blocks": 0}, "local_blocks=0: must be at least 1"),
        ({"private_blocks": -1}, "private_blocks=-1: must be at least 0"),
        ({"top_n": 4, "private_blocks": 2}, "init_blocks + local_blocks + private_blocks = 5"),
        ({"tile_scoring": "mean"}, "tile_scoring='mean': must be 'leader' or 'aggregate'"),
        ({"top_p": 0.0}, "top_p=0.0: must be None or in (0, 1]"),
        ({"branches": ()}, "branches=(): must be a non-empty subset"),
        ({"top_n": 8.0}, "top_n=8.0: must be a whole number"),
        ({"window": "all"}, "window='all': must be a whole number"),
        ({"per_head_lists": 1}, "per_head_lists=1: must be True or False"),
        ({"differentiable_topk": "yes"}, "differentiable_topk='yes': must be True or False"),
        ({"branches": ("window",)}, "branches=('window',): must be"),
    ],
)
def test_errors_name_the_field_its_value_and_the_fix(fields, message):
    with pytest.raises(ValueError) as error:  # noqa: PT011 - the message is compared below
        NSAConfig(**fields)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(("q_heads", "kv_heads"), [(4, 8), (6, 4), (1, 0)])
def test_heads_that_do_not_divide_are_refused(q_heads, kv_heads):
    with pytest.raises(ValueError, match=f"kv_heads={kv_heads}: must be a divisor of q_heads"):
        NSAConfig.word_guided(q_heads, kv_heads)
