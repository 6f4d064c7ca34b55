"""Decoding against a cache: at every position what one forward over all tokens gives."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dynnsiha import KVCache, NSAConfig, native_sparse_attention
from dynnsiha.attention import cached_attention, decode
from dynnsiha.attention.config import BRANCHES

LENGTH = 60


@st.composite
def configs(draw):
    block = draw(st.sampled_from([4, 8]))
    stride = draw(st.sampled_from([1, 2, 4]))
    init, local = draw(st.integers(0, 2)), draw(st.integers(1, 2))
    private = draw(st.integers(0, 2))
    branches = draw(st.sets(st.sampled_from(BRANCHES), min_size=1))
    return NSAConfig(
        block_size=block,
        compress_block=stride * draw(st.integers(1, block // stride)),
        compress_stride=stride,
        top_n=init + local + private + draw(st.integers(0, 4)),
        init_blocks=init,
        local_blocks=local,
        window=draw(st.integers(1, 20)),
        query_tile=draw(st.sampled_from([1, 2, 4])),
        private_blocks=private,
        tile_scoring=draw(st.sampled_from(["leader", "leader", "aggregate"])),
        top_p=draw(st.none() | st.floats(0.1, 0.9)),
        min_blocks=draw(st.integers(1, 4)),
        per_head_lists=draw(st.booleans()),
        branches=tuple(branch for branch in BRANCHES if branch in branches),
    )


cuts = st.lists(st.sampled_from([1, 1, 1, 2, 3, 9, 20]), min_size=1, max_size=12)


def operands(batch=2, seed=0, dtype=torch.float64):
    gen = torch.Generator().manual_seed(seed)
    shapes = [(4, 6), (2, 6), (2, 6)]
    q, k, v = (torch.randn(batch, LENGTH, *s, generator=gen, dtype=dtype) for s in shapes)
    return q, k, v, torch.rand(batch, LENGTH, 4, 3, generator=gen, dtype=dtype)


def new_cache(config, batch=2, max_len=LENGTH):
    return KVCache(batch, max_len, 4, 2, 6, config=config, dtype=torch.float64)


def lists_by_query(aux, config, length):
    """Sorted lists [B, T, L, n]."""
    indices = aux.block_indices
    if isinstance(indices, tuple):
        shared = indices[0].repeat_interleave(config.query_tile, 1)[:, :length]
        indices = torch.cat([shared, indices[1]], -1)
    return indices.sort(-1).values


@given(config=configs(), cuts=cuts, seed=st.integers(0, 50))
@settings(max_examples=60, deadline=None)
def test_prefill_and_steps_equal_one_forward(config, cuts, seed):
    inputs = operands(seed=seed)
    expected, wanted = native_sparse_attention(
        *inputs, config, backend="reference", return_aux=True
    )
    wanted_lists = lists_by_query(wanted, config, LENGTH)
    cache, begin = new_cache(config), 0
    for cut in cuts:
        at = slice(begin, min(begin + cut, LENGTH))
        if at.start == at.stop:
            break
        out, aux = cached_attention(*(x[:, at] for x in inputs), cache)
        torch.testing.assert_close(out, expected[:, at])
        assert torch.equal(aux.block_counts, wanted.block_counts[:, at])
        torch.testing.assert_close(aux.lse, wanted.lse[:, at])
        own = lists_by_query(aux, config, at.stop - at.start)
        assert torch.equal(own, wanted_lists[:, at])
        begin = at.stop
        assert cache.lengths == (begin, begin)


@given(
    config=configs(),
    prompts=st.lists(st.integers(1, 30), min_size=3, max_size=3),
    cuts=st.lists(st.sampled_from([1, 1, 1, 2, 7, 9]), min_size=1, max_size=8),
    seed=st.integers(0, 50),
)
@settings(max_examples=40, deadline=None)
def test_sequences_of_different_length(config, prompts, cuts, seed):
    """Prompts padded on the right, cut to their lengths, then continued together."""
    if config.tile_scoring == "aggregate":  # a sum may be cut right after a leader alone
        prompts = [1 + n // config.query_tile * config.query_tile for n in prompts]
    inputs = operands(batch=3, seed=seed)
    expected = native_sparse_attention(*inputs, config, backend="reference")
    cache = new_cache(config, batch=3)
    longest = max(prompts)
    padding = torch.arange(longest) >= torch.tensor(prompts)[:, None]
    padded = [x[:, :longest].masked_fill(padding[..., None, None], 9.0) for x in inputs]
    cached_attention(*padded, cache)
    cache.truncate(prompts)
    for cut in cuts:
        if longest + cut > inputs[0].shape[1]:
            break
        longest += cut
        at = cache.positions(cut).expand(3, -1)[..., None, None]
        out, _ = cached_attention(*(x.take_along_dim(at, 1) for x in inputs), cache)
        torch.testing.assert_close(out, expected.take_along_dim(at, 1))


@pytest.mark.parametrize("tile", [1, 4])
def test_tokens_taken_back_leave_no_trace(tile):
    config = NSAConfig(
        block_size=8,
        compress_block=4,
        compress_stride=2,
        top_n=5,
        query_tile=tile,
        private_blocks=1,
        window=9,
    )
    inputs, other = operands(), operands(seed=1)
    expected = native_sparse_attention(*inputs, config, backend="reference")
    cache = new_cache(config)
    cached_attention(*(x[:, :30] for x in inputs), cache)
    for begin in (30, 31, 37):
        wrong = [x[:, begin : begin + 13] for x in other]
        cached_attention(*wrong, cache)
        cache.truncate([begin, begin])
        end = {30: 31, 31: 37, 37: 60}[begin]
        out, _ = cached_attention(*(x[:, begin:end] for x in inputs), cache)
        torch.testing.assert_close(out, expected[:, begin:end])


@pytest.mark.parametrize("backend", ["reference", "blockwise", "flex"])
def test_any_backend_may_fill_the_cache(backend):
    config = NSAConfig(
        block_size=8, compress_block=8, compress_stride=8, top_n=5, query_tile=4, private_blocks=1
    )
    inputs = operands()
    expected = native_sparse_attention(*inputs, config, backend="reference")
    cache = new_cache(config)
    first, aux = cached_attention(*(x[:, :50] for x in inputs), cache, backend=backend)
    assert aux.backend == backend
    rest, aux = cached_attention(*(x[:, 50:] for x in inputs), cache, backend=backend)
    assert aux.backend == "cached"
    torch.testing.assert_close(torch.cat([first, rest], 1), expected)


@pytest.mark.parametrize("few", [0, 60])
def test_small_steps_of_many_tokens_change_nothing(monkeypatch, few):
    monkeypatch.setattr(decode, "_FEW", few)
    config = NSAConfig(
        block_size=8, compress_block=4, compress_stride=2, top_n=5, query_tile=4, private_blocks=1
    )
    inputs = operands()
    expected = native_sparse_attention(*inputs, config, backend="reference")
    monkeypatch.setattr(decode, "_STEP_ELEMENTS", 3000)
    cache = new_cache(config)
    cached_attention(*(x[:, :21] for x in inputs), cache)
    out, _ = cached_attention(*(x[:, 21:] for x in inputs), cache)
    torch.testing.assert_close(out, expected[:, 21:])


def test_low_precision_is_as_good_as_one_forward():
    config = NSAConfig(block_size=8, compress_block=8, compress_stride=8, top_n=20, window=20)
    exact = operands()
    expected = native_sparse_attention(*exact, config, backend="reference")
    inputs = [x.bfloat16() for x in exact]
    plain = native_sparse_attention(*inputs, config).double()
    cache = KVCache(2, LENGTH, 4, 2, 6, config=config, dtype=torch.bfloat16)
    outs = [cached_attention(*(x[:, :40] for x in inputs), cache)[0]]
    outs += [cached_attention(*(x[:, t : t + 1] for x in inputs), cache)[0] for t in range(40, 60)]
    out = torch.cat(outs, 1)
    assert out.dtype == torch.bfloat16
    error = (out.double() - expected).norm()
    assert float(error) < 1.2 * float((plain - expected).norm())


def test_a_dense_cache_is_refused():
    with pytest.raises(ValueError, match="cache: is one of dense attention; make it with a config"):
        cached_attention(*operands(), new_cache(None))


HYBRID = NSAConfig(
    block_size=8, compress_block=4, compress_stride=2, top_n=5, query_tile=4, private_blocks=1
)
WRONG = {
    "q heads": ({"q": lambda q: q[:, :, :2]}, "gates: has shape"),
    "batch": ({"q": lambda q: q[:1]}, "k: has shape"),
    "gates broadcast": ({"gates": lambda g: g[:1, :, :1]}, r"gates: has shape \[1, "),
    "two gates": ({"gates": lambda g: g[..., :2]}, r"gates: has shape .* must be \[2, "),
    "no tokens": (dict.fromkeys("qkv", lambda x: x[:, :0]), r"q: has shape \[2, 0, 4, 6\]; every"),
    "backend": ({"backend": "cuda"}, "backend='cuda': must be 'auto' or one of"),
    "dtype": ({"v": lambda v: v.float()}, "v: has dtype torch.float32, q has torch.float64"),
    "device": (
        dict.fromkeys(("q", "k", "v", "gates"), lambda x: x.to("meta")),
        "q: is on meta, the cache on cpu; move them to one device",
    ),
    "more heads": (
        {"q": lambda q: q.repeat(1, 1, 2, 1), "gates": lambda g: g.repeat(1, 1, 2, 1)},
        r"q: has shape \[2, \d+, 8, 6\]; the cache takes \[2, n, 4, 6\]$",
    ),
    "a sequence more": (
        dict.fromkeys(("q", "k", "v", "gates"), lambda x: x.repeat(2, 1, 1, 1)),
        r"q: has shape \[4, \d+, 4, 6\]; the cache takes \[2, n, 4, 6\]$",
    ),
}


@pytest.mark.parametrize("before", [0, 21])
@pytest.mark.parametrize("name", WRONG)
def test_what_is_refused_leaves_no_tokens_behind(name, before):
    inputs = operands()
    expected = native_sparse_attention(*inputs, HYBRID, backend="reference")
    cache = new_cache(HYBRID)
    if before:
        cached_attention(*(x[:, :before] for x in inputs), cache)
    changes, message = WRONG[name]
    wrong = dict(zip(("q", "k", "v", "gates"), (x[:, before:] for x in inputs), strict=True))
    for argument, change in changes.items():
        wrong[argument] = change(wrong[argument]) if callable(change) else change
    with pytest.raises((ValueError, TypeError), match=message) as error:
        cached_attention(**wrong, cache=cache)
    assert "\n" not in str(error.value)
    assert cache.lengths == (before, before)
    out, _ = cached_attention(*(x[:, before:] for x in inputs), cache)
    torch.testing.assert_close(out, expected[:, before:])


def test_a_backend_that_does_not_take_the_prompt_leaves_no_tokens_behind(monkeypatch):
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    inputs = operands()
    expected = native_sparse_attention(*inputs, HYBRID, backend="reference")
    cache = new_cache(HYBRID)
    with pytest.raises((ValueError, TypeError), match="the Triton kernels"):
        cached_attention(*inputs, cache, backend="triton")
    assert cache.lengths == (0, 0)
    out, _ = cached_attention(*inputs, cache)
    torch.testing.assert_close(out, expected)


def test_a_network_that_fails_leaves_no_tokens_behind():
    inputs = operands()
    cache = new_cache(HYBRID)

    def broken(x):
        raise ArithmeticError(x.shape)

    with pytest.raises(ArithmeticError):
        cached_attention(*inputs, cache, summarise=(broken, broken))
    assert cache.lengths == (0, 0)


def test_dense_queries_of_another_layer_leave_no_tokens_behind():
    q, k, v, _ = operands()
    cache = new_cache(None)
    with pytest.raises(ValueError, match=r"q: has shape \[2, 60, 3, 6\]; the cache takes \[2, n"):
        decode.cached_dense_attention(q[:, :, :3], k, v, cache)
    assert cache.lengths == (0, 0)
