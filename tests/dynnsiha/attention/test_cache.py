"""KVCache: what it holds, how it is cut and rearranged, what it costs, what it refuses."""

from functools import partial

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from dynnsiha import KVCache, NSAConfig
from dynnsiha.attention.summaries import mean_summaries

CONFIG = NSAConfig(block_size=8, compress_block=4, compress_stride=2, top_n=4, query_tile=4)


def cache_of(config=CONFIG, batch=3, max_len=45, **options):
    return KVCache(batch, max_len, 4, 2, 6, config=config, dtype=torch.float64, **options)


def tokens(seq_len=45, batch=3, seed=0):
    gen = torch.Generator().manual_seed(seed)
    shape = (batch, seq_len, 2, 6)
    return [torch.randn(shape, generator=gen, dtype=torch.float64) for _ in range(2)]


def filled(cuts=(45,), **options):
    cache, (k, v) = cache_of(**options), tokens()
    begin = 0
    for cut in cuts:
        cache.append(k[:, begin : begin + cut], v[:, begin : begin + cut])
        begin += cut
    return cache


def assert_holds(cache, k, v, rows=None, lengths=None):
    """Tokens and the means of every complete window, sequence by sequence."""
    for row, length in enumerate(cache.lengths):
        source = row if rows is None else rows[row]
        for kept, summaries, x in ((cache.k, cache.k_cmp, k), (cache.v, cache.v_cmp, v)):
            own = x[source : source + 1, :length]
            assert torch.equal(kept[row, :, :length].transpose(0, 1), own[0])
            means = mean_summaries(own, 4, 2)[0]
            torch.testing.assert_close(
                summaries[row, :, : len(means)].transpose(0, 1), means, rtol=0, atol=1e-12
            )


@pytest.mark.parametrize("cuts", [(45,), (1,) * 45, (10, 1, 1, 20, 13), (3, 0, 1)])
def test_holds_tokens_and_running_summaries(cuts):
    cache = filled(cuts)
    assert cache.lengths == (sum(cuts),) * 3
    assert cache.uniform
    assert_holds(cache, *tokens())


def test_sequences_of_different_length_go_on_where_each_ends():
    cache, (k, v) = filled((30,)), tokens()
    cache.truncate([5, 30, 17])
    assert not cache.uniform
    for step in (1, 1, 7, 2):
        at = cache.positions(step)
        assert at.tolist() == [list(range(n, n + step)) for n in cache.lengths]
        cache.append(*(x.take_along_dim(at[..., None, None], 1) for x in (k, v)))
    assert cache.lengths == (16, 41, 28)
    assert_holds(cache, k, v)


def test_rows_are_dropped_and_repeated():
    cache = filled((30,))
    cache.truncate([5, 30, 17])
    cache.select([1, 1, 0])
    assert cache.lengths == (30, 30, 5)
    assert_holds(cache, *tokens(), rows=[1, 1, 0])
    cache.select([2])
    assert cache.k.shape[0] == cache.k_cmp.shape[0] == cache.shared.shape[0] == 1
    assert_holds(cache, *tokens(), rows=[0])


def test_a_reset_cache_is_as_new():
    cache, (k, v) = filled(), tokens(seed=1)
    cache.reset()
    assert cache.lengths == (0, 0, 0)
    cache.append(k[:, :20], v[:, :20])
    assert_holds(cache, k, v)


def test_summaries_by_networks():
    cache, (k, v) = cache_of(), tokens()
    means = partial(mean_summaries, compress_block=4, compress_stride=2)
    networks = (lambda x: 2 * means(x), lambda x: 3 * means(x))
    cache.append(k[:, :30], v[:, :30], networks)
    cache.truncate([11, 30, 20])
    at = cache.positions(9)[..., None, None]
    cache.append(k.take_along_dim(at, 1), v.take_along_dim(at, 1), networks)
    for row, length in enumerate(cache.lengths):
        for kept, x, factor in ((cache.k_cmp, k, 2), (cache.v_cmp, v, 3)):
            expected = factor * means(x[row : row + 1, :length])[0]
            torch.testing.assert_close(kept[row, :, : len(expected)].transpose(0, 1), expected)


@pytest.mark.parametrize(
    ("config", "numbers", "list_bytes"),
    [
        (None, 45, 0),
        (CONFIG, 48 + 21, 4 * 2 * 12 * 4),  # 48 tokens are 6 blocks; 21 windows, 12 tiles
        (NSAConfig(block_size=8, compress_block=8, compress_stride=8, top_n=4), 48 + 5, 0),
        (
            NSAConfig(**(vars(CONFIG) | {"private_blocks": 1, "per_head_lists": True})),
            48 + 21,
            4 * 4 * 12 * 3,
        ),
    ],
)
def test_memory_is_what_the_docstring_says(config, numbers, list_bytes):
    cache = cache_of(config)
    assert cache.nbytes == 3 * (2 * 2 * 6 * numbers * 8 + list_bytes)
    assert cache.nbytes == filled(config=config).nbytes


@pytest.mark.parametrize("config", [None, CONFIG])
@given(lengths=st.lists(st.integers(0, 45), min_size=3, max_size=3))
def test_what_tokens_fill_is_counted_without_the_room_to_come(config, lengths):
    cache = filled(config=config)
    cache.truncate(lengths)
    numbers, list_bytes = sum(2 * length for length in lengths), 0
    if config is not None:
        numbers += sum(2 * len(range(0, length - 3, 2)) for length in lengths)  # windows of 4 by 2
        list_bytes = sum(4 * 4 * 2 * len(range(0, length, 4)) for length in lengths)
    assert cache.held_bytes == numbers * 2 * 6 * 8 + list_bytes
    assert cache.held_bytes <= cache.nbytes


def test_keeps_its_own_dtype():
    cache, (k, v) = cache_of(), tokens()
    cache.append(k.bfloat16(), v.bfloat16())
    assert cache.k.dtype == cache.k_cmp.dtype == torch.float64
    cache.select([0, 1])
    cache.truncate([1, 40])
    cache.append(k[:2, :3].bfloat16(), v[:2, :3].bfloat16())
    assert torch.equal(cache.k[0, :, 1:4], k[0, :3].bfloat16().double().transpose(0, 1))


def test_a_token_more_than_fits():
    cache, (k, v) = filled(), tokens()
    with pytest.raises(ValueError, match="max_len=45: 1 more tokens after 45 do not fit; make a"):
        cache.append(k[:, :1], v[:, :1])
    assert cache.lengths == (45, 45, 45)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda c: c.append(tokens()[0][:2], tokens()[1][:2]), "the cache takes [3, n, 2, 6]"),
        (lambda c: c.truncate([1, 2]), "lengths: has 2 entries; must have 3"),
        (lambda c: c.truncate([1, 46, 3]), "lengths: 46 must be from 0 to 45, the present length"),
        (lambda c: c.truncate([-1, 4, 3]), "lengths: -1 must be from 0 to 45"),
        (lambda c: c.select([0, 3]), "rows=[0, 3]: must name at least one of the rows 0 to 2"),
        (lambda c: c.select([]), "rows=[]: must name"),
        (lambda _: KVCache(0, 8, 1, 1, 4), "batch=0: must be at least 1"),
        (lambda _: KVCache(1, 8, 3, 2, 4), "kv_heads=2: must divide q_heads=3"),
    ],
)
def test_wrong_calls_get_one_line(call, message):
    with pytest.raises(ValueError) as error:  # noqa: PT011 - the message is compared below
        call(filled())
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_a_sum_over_a_tile_cannot_be_cut_in_its_middle():
    config = NSAConfig(**(vars(CONFIG) | {"tile_scoring": "aggregate"}))
    cache = filled(config=config)
    with pytest.raises(ValueError, match="lengths: 8 is in the middle of a sum of tile_scoring"):
        cache.truncate([8, 45, 45])
    cache.truncate([9, 45, 0])
    assert cache.lengths == (9, 45, 0)
