"""Lists per query head: each head by itself, whichever backend."""

import importlib.util
import itertools

import pytest
import torch

from dynnsiha import NSAConfig
from dynnsiha.attention import native_sparse_attention

SMALL = {"block_size": 8, "compress_block": 8, "compress_stride": 8, "window": 11, "top_n": 5}
CONFIGS = {
    "exact": {},
    "overlapping": {"compress_block": 4, "compress_stride": 2},
    "hybrid": {"query_tile": 4, "private_blocks": 1},
    "aggregate": {"query_tile": 8, "private_blocks": 1, "tile_scoring": "aggregate"},
    "dynamic": {"top_p": 0.5, "query_tile": 2},
}
BACKENDS = ("reference", "blockwise", "flex")
HEADS, KV_HEADS, LENGTH = 6, 2, 75


def operands(batch=2, seed=0):
    gen = torch.Generator().manual_seed(seed)
    shapes = [(HEADS, 4), (KV_HEADS, 4), (KV_HEADS, 4)]
    q, k, v = (torch.randn(batch, LENGTH, *s, generator=gen, dtype=torch.float64) for s in shapes)
    return q, k, v, torch.rand(batch, LENGTH, HEADS, 3, generator=gen, dtype=torch.float64)


def config_of(name, per_head=True):
    return NSAConfig(**(SMALL | CONFIGS[name]), per_head_lists=per_head)


def parts(aux):
    indices = aux.block_indices
    return indices if isinstance(indices, tuple) else (indices,)


def head_by_head(q, k, v, gates, config, **options):
    """Each query head alone with its key/value head, by the reference without the option."""
    outs, auxes = [], []
    for head in range(HEADS):
        at, kv = slice(head, head + 1), slice(head // 3, head // 3 + 1)
        out, aux = native_sparse_attention(
            *(q[:, :, at], k[:, :, kv], v[:, :, kv], gates[:, :, at], config),
            backend="reference",
            return_aux=True,
            **options,
        )
        outs.append(out)
        auxes.append(aux)
    return torch.cat(outs, 2), auxes


def assert_same(out, aux, expected, auxes):
    torch.testing.assert_close(out, expected)
    for mine, theirs in zip(parts(aux), zip(*map(parts, auxes), strict=True), strict=True):
        assert torch.equal(mine, torch.cat(theirs, 2))
    assert torch.equal(aux.block_counts, torch.cat([x.block_counts for x in auxes], 2))
    torch.testing.assert_close(aux.lse, torch.cat([x.lse for x in auxes], 2))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", CONFIGS)
def test_equals_each_head_by_itself(name, backend):
    inputs = operands()
    expected, auxes = head_by_head(*inputs, config_of(name, per_head=False))
    out, aux = native_sparse_attention(*inputs, config_of(name), backend=backend, return_aux=True)
    assert_same(out, aux, expected, auxes)
    shared = native_sparse_attention(*inputs, config_of(name, per_head=False))
    assert not torch.allclose(out, shared)  # the heads do disagree


@pytest.mark.parametrize("backend", ["reference", "blockwise"])
@pytest.mark.parametrize("name", ["exact", "hybrid"])
def test_gradients_equal_each_head_by_itself(name, backend):
    inputs = [x.requires_grad_() for x in operands()]
    grad = torch.randn_like(inputs[0])
    expected = torch.autograd.grad(
        head_by_head(*inputs, config_of(name, per_head=False))[0], inputs, grad
    )
    out = native_sparse_attention(*inputs, config_of(name), backend=backend)
    for mine, theirs in zip(torch.autograd.grad(out, inputs, grad), expected, strict=True):
        torch.testing.assert_close(mine, theirs)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", ["exact", "hybrid"])
def test_packed_sequences_and_lists_given_back(name, backend):
    lengths = [30, 0, 1, 44]
    bounds = torch.tensor([0, *itertools.accumulate(lengths)])
    inputs = operands(batch=1)
    expected, auxes = head_by_head(*inputs, config_of(name, per_head=False), cu_seqlens=bounds)
    options = {"backend": backend, "cu_seqlens": bounds, "return_aux": True}
    out, aux = native_sparse_attention(*inputs, config_of(name), **options)
    assert_same(out, aux, expected, auxes)
    again, _ = native_sparse_attention(
        *inputs, config_of(name), block_indices=aux.block_indices, **options
    )
    assert torch.equal(out, again)


def test_lists_per_kv_head_are_refused():
    inputs = operands()
    lists = torch.zeros(2, LENGTH, KV_HEADS, 1, dtype=torch.int32)
    with pytest.raises(ValueError, match=r"has shape \[2, 75, 2, 1\]; must be \[2, 75, 6, 'n'\]"):
        native_sparse_attention(*inputs, config_of("exact"), block_indices=lists)


def test_an_automatic_tile_counts_the_heads_of_a_list():
    config = NSAConfig(query_tile="auto", per_head_lists=True)
    assert config.resolved(8, 1).query_tile == 64
    assert NSAConfig(query_tile="auto").resolved(8, 1).query_tile == 8


@pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="needs Triton")
def test_triton_takes_the_heads_apart(monkeypatch):
    if not torch.cuda.is_available():
        monkeypatch.setenv("TRITON_INTERPRET", "1")
    device = "cuda" if torch.cuda.is_available() else "cpu"
    gen = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(1, 70, h, 64, generator=gen).half().to(device) for h in (2, 1, 1))
    gates = torch.rand(1, 70, 2, 3, generator=gen).to(device)
    config = NSAConfig(
        block_size=16,
        compress_block=16,
        compress_stride=16,
        window=20,
        top_n=4,
        per_head_lists=True,
    )
    inputs = [x.requires_grad_() for x in (q, k, v, gates)]
    wide = [x.detach().double().requires_grad_() for x in inputs]
    out, aux = native_sparse_attention(*inputs, config, backend="triton", return_aux=True)
    assert aux.backend == "triton"
    expected = native_sparse_attention(
        *wide, config, backend="reference", block_indices=aux.block_indices
    )
    grads = torch.autograd.grad(out.float().square().sum(), inputs)
    wanted = torch.autograd.grad(expected.square().sum(), wide)
    for mine, theirs in zip((out, *grads), (expected, *wanted), strict=True):
        error = (mine.double() - theirs).norm() / theirs.norm()
        assert error.item() < 0.003
