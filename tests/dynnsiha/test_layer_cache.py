"""Layers with a cache: prompt and single tokens give what one call over all of them gives."""

from dataclasses import replace

import pytest
import torch

from dynnsiha import (
    AttentionPoolCompress,
    ConvLinearCompress,
    DynNSIHA,
    DynSIHA,
    GroupedMLPCompress,
    KVCache,
    MeanPoolCompress,
    NativeSparseAttention,
    NSAConfig,
    SingleProjectionCompress,
    TransformerCompress,
)
from dynnsiha.forms import AttentionLayer, DenseCore, HeadLayout, linear_projections
from dynnsiha.forms.layer import AttentionCore

WIDTH, LENGTH = 32, 75
EXACT = NSAConfig(
    block_size=16, compress_block=16, compress_stride=16, top_n=4, local_blocks=1, window=24
)
OVERLAPPING = replace(EXACT, compress_block=8, compress_stride=4)
HYBRID = replace(EXACT, query_tile=4, private_blocks=1)
FORMS = {
    "dense": lambda: DynSIHA(WIDTH),
    "dense groups": lambda: DynSIHA(WIDTH, 4, 2),
    "dense without positions": lambda: DynSIHA(WIDTH, 2, rotary_base=None),
    "dynnsiha": lambda: DynNSIHA(WIDTH, 2),
    "dynnsiha exact": lambda: DynNSIHA(WIDTH, 4, 2, config=EXACT),
    "dynnsiha hybrid": lambda: DynNSIHA(WIDTH, 4, 2, config=HYBRID),
    "dynnsiha dynamic": lambda: DynNSIHA(WIDTH, 2, config=replace(HYBRID, top_p=0.4)),
    "dynnsiha softmax": lambda: DynNSIHA(WIDTH, 2, config=HYBRID, gates="softmax"),
    "paper": lambda: NativeSparseAttention(WIDTH, 4, 1),
    "nsa": lambda: NativeSparseAttention(WIDTH, 4, 2, config=OVERLAPPING),
    "nsa per head": lambda: NativeSparseAttention(
        WIDTH, 4, 2, config=replace(OVERLAPPING, per_head_lists=True)
    ),
} | {
    network.__name__: lambda network=network: NativeSparseAttention(
        WIDTH,
        4,
        2,
        config=replace(HYBRID, compress_block=8, compress_stride=4),
        compression=network,
    )
    for network in (
        MeanPoolCompress,
        ConvLinearCompress,
        AttentionPoolCompress,
        GroupedMLPCompress,
        SingleProjectionCompress,
        TransformerCompress,
    )
}
every_form = pytest.mark.parametrize("name", FORMS)


def form(name):
    torch.manual_seed(0)
    return FORMS[name]().double()


def inputs(batch=2, dtype=torch.float64):
    gen = torch.Generator().manual_seed(1)
    return torch.randn(batch, LENGTH, WIDTH, generator=gen, dtype=torch.float64).to(dtype)


def in_cuts(layer, x, cuts, cache, **options):
    outs, begin = [], 0
    for cut in cuts:
        outs.append(layer(x[:, begin : begin + cut], cache=cache, **options))
        begin += cut
    return torch.cat(outs, 1)


@every_form
def test_equals_one_forward_at_every_position(name):
    layer, x = form(name), inputs()
    expected = layer(x)
    for cuts in ((LENGTH,), (50, *[1] * 25), (20, 30, 1, 24)):
        y = in_cuts(layer, x, cuts, layer.new_cache(2, LENGTH))
        torch.testing.assert_close(y, expected)


@pytest.mark.parametrize("name", ["dense", "dynnsiha dynamic", "nsa", "GroupedMLPCompress"])
def test_equals_one_forward_token_by_token_from_nothing(name):
    layer, x = form(name), inputs()
    y = in_cuts(layer, x, [1] * LENGTH, layer.new_cache(2, LENGTH))
    torch.testing.assert_close(y, layer(x))


@every_form
def test_prompts_of_different_length_in_one_batch(name):
    layer, x = form(name), inputs(3)
    expected = layer(x)
    cache = layer.new_cache(3, LENGTH)
    layer(x[:, :50], cache=cache)
    cache.truncate([50, 7, 33])
    for step in (1, 1, 1, 8, 1):
        at = cache.positions(step)[..., None]
        y = layer(x.take_along_dim(at, 1), cache=cache)
        torch.testing.assert_close(y, expected.take_along_dim(at, 1))


@pytest.mark.parametrize("name", ["dense", "dynnsiha hybrid"])
def test_rows_of_a_beam_go_their_own_ways(name):
    layer, x = form(name), inputs()
    cache = layer.new_cache(2, LENGTH)
    layer(x[:, :40], cache=cache)
    cache.select([1, 0, 1])
    tails = torch.stack([x[1, 40:], x[0, 40:], x[0, 40:]])
    y = in_cuts(layer, tails, [1] * 35, cache)
    whole = torch.cat([torch.stack([x[1, :40], x[0, :40], x[1, :40]]), tails], 1)
    torch.testing.assert_close(y, layer(whole)[:, 40:])


@pytest.mark.parametrize("name", ["dense", "dynnsiha hybrid"])
def test_a_call_that_fails_leaves_the_cache_as_it_was(name):
    layer, x = form(name), inputs()
    cache, outs = layer.new_cache(2, LENGTH), []

    def interrupt(*_):
        raise KeyboardInterrupt

    for begin, end in ((0, 40), (40, 41), (41, LENGTH)):
        hook = layer.output.register_forward_pre_hook(interrupt)
        with pytest.raises(KeyboardInterrupt):
            layer(x[:, begin:end], cache=cache)
        hook.remove()
        outs.append(layer(x[:, begin:end], cache=cache))
    torch.testing.assert_close(torch.cat(outs, 1), layer(x))


@pytest.mark.parametrize("name", ["dense", "dynnsiha exact", "nsa"])
def test_positions_count_on_from_the_cache_or_are_given(name):
    layer, x = form(name), inputs()
    given = torch.arange(LENGTH) * 3 + 500
    expected = layer(x, given)
    cache = layer.new_cache(2, LENGTH)
    y = torch.cat([layer(x[:, s], given[s], cache=cache) for s in (slice(0, 60), slice(60, 75))], 1)
    torch.testing.assert_close(y, expected)
    restarted = layer.new_cache(2, LENGTH)
    layer(x[:, :60], cache=restarted)
    wrong = layer(x[:, 60:61], torch.zeros(1, dtype=torch.long), cache=restarted)
    assert not torch.allclose(wrong, layer(x)[:, 60:61])


@every_form
@torch.no_grad()
def test_float32_and_autocast_follow_one_forward(name):
    layer, x = form(name).float(), inputs(dtype=torch.float32)
    exact = layer(x)
    y = in_cuts(layer, x, (65, *[1] * 10), layer.new_cache(2, LENGTH))
    torch.testing.assert_close(y, exact, rtol=1e-4, atol=1e-5)
    with torch.autocast("cpu", torch.bfloat16):
        y = in_cuts(layer, x, (65, *[1] * 10), layer.new_cache(2, LENGTH))
    assert y.dtype == torch.bfloat16
    assert float((y.float() - exact).norm() / exact.norm()) < 0.2  # near ties may fall otherwise


@every_form
def test_no_gradient_flows_and_inference_mode_works(name):
    layer, x = form(name), inputs()
    assert not layer(x, cache=layer.new_cache(2, LENGTH)).requires_grad
    expected = layer(x)
    with torch.inference_mode():
        y = in_cuts(layer, x, (65, *[1] * 10), layer.new_cache(2, LENGTH))
    torch.testing.assert_close(y.clone(), expected)


@pytest.mark.parametrize("name", ["dense", "dynnsiha hybrid"])
def test_routing_of_a_step(name):
    layer, x = form(name), inputs()
    cache = layer.new_cache(2, LENGTH)
    layer(x[:, :50], cache=cache)
    y, routing = layer(x[:, 50:51], cache=cache, return_routing=True)
    whole, wanted = layer(x[:, :51], return_routing=True)
    torch.testing.assert_close(y, whole[:, 50:])
    torch.testing.assert_close(routing.qkv, wanted.qkv[:, 50:])
    if name != "dense":
        torch.testing.assert_close(routing.gates, wanted.gates[:, 50:])
        counts = wanted.attention.block_counts[:, 50:]
        assert torch.equal(routing.attention.block_counts, counts)
        assert routing.attention.block_indices.shape == (2, 1, 4 // 2, 4)


def test_a_layer_makes_a_cache_of_its_own_kind():
    layer = DynNSIHA(WIDTH, 4, 2, config=HYBRID).bfloat16()
    cache = layer.new_cache(3, 50)
    assert isinstance(cache, KVCache)
    assert cache.k.shape == (3, 2, 64, 8)
    assert cache.k.dtype == torch.bfloat16
    assert cache.config == HYBRID
    assert layer.new_cache(1, 50, dtype=torch.float32).k.dtype == torch.float32
    assert DynSIHA(WIDTH).new_cache(1, 50).k.shape == (1, 1, 50, 32)


@pytest.mark.parametrize("name", [name for name in FORMS if name.endswith("Compress")])
@pytest.mark.parametrize("own", [torch.bfloat16, torch.float64])
@torch.no_grad()
def test_a_cache_may_be_of_another_dtype_than_its_layer(name, own):
    """The networks of the layer see what they see without a cache, in their own dtype."""
    layer, x = form(name).to(own), inputs(dtype=own)
    wanted = layer.new_cache(2, LENGTH)
    cache = layer.new_cache(2, LENGTH, dtype=torch.float32)
    for one in (wanted, cache):
        layer(x[:, :50], cache=one)
        one.truncate([50, 17])
        layer(x[:, 50:60], cache=one)
    for kept, summaries in ((cache.k_cmp, wanted.k_cmp), (cache.v_cmp, wanted.v_cmp)):
        assert kept.dtype == torch.float32
        for row, windows in enumerate((14, 5)):
            expected = summaries[row, :, :windows].float()
            torch.testing.assert_close(kept[row, :, :windows], expected, rtol=1e-2, atol=1e-4)


def test_another_dense_attention_fills_the_cache_itself():
    def mine(q, k, v):
        return DenseCore()(q, k, v, q)[0]

    layout = HeadLayout(2, 2, 16)
    torch.manual_seed(0)
    layer = AttentionLayer(layout, linear_projections(WIDTH, layout), DenseCore(mine)).double()
    y = in_cuts(layer, inputs(), (40, *[1] * 35), layer.new_cache(2, LENGTH))
    torch.testing.assert_close(y, layer(inputs()))


def test_wrong_use_gets_one_line():
    layer, x = form("dense"), inputs()
    with pytest.raises(ValueError, match="x: has batch 2, the cache 3; make them equal"):
        layer(x, cache=layer.new_cache(3, LENGTH))
    with pytest.raises(ValueError, match="max_len=74: 75 more tokens after 0 do not fit"):
        layer(x, cache=layer.new_cache(2, LENGTH - 1))

    class NoCache(AttentionCore):
        pass

    layout = HeadLayout(2, 2, 16)
    other = AttentionLayer(layout, linear_projections(WIDTH, layout), NoCache())
    with pytest.raises(NotImplementedError, match="NoCache: cannot decode, it takes no cache"):
        other.new_cache(1, 8)
