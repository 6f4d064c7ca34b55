"""The FlexAttention backend against the reference; its block masks against the masks themselves."""

import pytest
import torch
from torch.nn.attention.flex_attention import create_mask

from dynnsiha import NSAConfig
from dynnsiha.attention import native_sparse_attention
from dynnsiha.attention.flex import ended_windows, listed_blocks, window
from dynnsiha.attention.summaries import window_count

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
on_cpu = pytest.mark.skipif(DEVICE != "cpu", reason="the CPU's limits")
on_gpu = pytest.mark.skipif(DEVICE != "cuda", reason="needs a CUDA device")

SMALL = {"block_size": 16, "compress_block": 16, "compress_stride": 16, "window": 20, "top_n": 5}
CONFIGS = {
    "exact": NSAConfig(**SMALL),
    "overlapping": NSAConfig(**(SMALL | {"compress_block": 8, "compress_stride": 4})),
    "hybrid": NSAConfig(**SMALL, query_tile=8, private_blocks=1),
    "aggregate": NSAConfig(**SMALL, query_tile=4, tile_scoring="aggregate"),
    "dynamic": NSAConfig(**SMALL, top_p=0.5),
    "per head": NSAConfig(**SMALL, query_tile=4, private_blocks=1, per_head_lists=True),
    "wide blocks": NSAConfig(block_size=192, compress_block=96, compress_stride=48, top_n=4),
    "odd blocks": NSAConfig(block_size=24, compress_block=12, compress_stride=4, top_n=5),
    "wide window": NSAConfig(**(SMALL | {"window": 10**9})),
    "one branch": NSAConfig(**SMALL, branches=("selected",)),
    "without selected": NSAConfig(**SMALL, branches=("compressed", "sliding")),
}


def operands(seq_len=300, dtype=torch.float32, width=16, batch=2):
    gen = torch.Generator().manual_seed(0)
    shapes = [(4, width), (2, width), (2, width)]
    q, k, v = (torch.randn(batch, seq_len, *s, generator=gen, dtype=torch.float64) for s in shapes)
    gates = torch.rand(batch, seq_len, 4, 3, generator=gen, dtype=torch.float64)
    return [x.to(DEVICE, dtype) for x in (q, k, v, gates)]


def parts(aux):
    indices = aux.block_indices
    return indices if isinstance(indices, tuple) else (indices,)


def assert_same(inputs, config, tolerance, **options):
    options |= {"return_aux": True}
    out, aux = native_sparse_attention(*inputs, config, backend="flex", **options)
    wide = [x.double() for x in inputs]
    expected, wanted = native_sparse_attention(
        *wide, config, backend="reference", **(options | {"block_indices": aux.block_indices})
    )
    assert aux.backend == "flex"
    assert out.dtype == inputs[0].dtype
    torch.testing.assert_close(out.double(), expected, rtol=tolerance, atol=tolerance)
    assert torch.equal(aux.block_counts, wanted.block_counts)
    torch.testing.assert_close(aux.lse.double(), wanted.lse, rtol=tolerance, atol=tolerance)
    chosen = native_sparse_attention(*inputs, config, backend="reference", return_aux=True)[1]
    if "cu_seqlens" not in options and inputs[0].dtype == torch.float64:
        assert all(map(torch.equal, parts(aux), parts(chosen)))


@on_cpu
@pytest.mark.parametrize("name", CONFIGS)
def test_equals_the_reference_in_every_mode(name):
    assert_same(operands(dtype=torch.float64), CONFIGS[name], 1e-9)


@pytest.mark.parametrize("name", ["exact", "hybrid"])
@pytest.mark.parametrize("seq_len", [1, 15, 16, 127, 128, 129])
def test_equals_the_reference_at_any_length(name, seq_len):
    assert_same(operands(seq_len), CONFIGS[name], 2e-3 if DEVICE == "cuda" else 1e-4)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_low_precision(dtype):
    tolerance = 2e-2 if dtype != torch.float32 else 2e-3
    assert_same(operands(dtype=dtype), CONFIGS["hybrid"], tolerance)


def test_packed_sequences():
    bounds = torch.tensor([0, 100, 101, 300], device=DEVICE)
    assert_same(operands(batch=1), CONFIGS["hybrid"], 2e-3, cu_seqlens=bounds)


def by_tile(dense, beyond):
    """[B, H, T, S] as tiles of 128 x 128, [B, H, rows, columns, 128²], with ``beyond`` outside."""
    missing = (0, -dense.shape[3] % 128, 0, -dense.shape[2] % 128)
    padded = torch.nn.functional.pad(dense, missing, value=beyond)
    tiles = padded.unflatten(3, (-1, 128)).unflatten(2, (-1, 128))
    return tiles.transpose(3, 4).flatten(4)


@pytest.mark.parametrize("seq_len", [1, 128, 300])
@pytest.mark.parametrize("name", CONFIGS)
def test_block_masks_cover_their_masks_exactly(name, seq_len):
    """What torch's kernels skip, and what they take without a look, by brute force."""
    config = CONFIGS[name]
    inputs = operands(seq_len, torch.float64)
    _, aux = native_sparse_attention(*inputs, config, backend="reference", return_aux=True)
    lists = parts(aux)[0].repeat_interleave(config.query_tile, 1)[:, :seq_len]
    lists = torch.cat([lists, *parts(aux)[1:]], -1).transpose(1, 2)
    windows = window_count(seq_len, config.compress_block, config.compress_stride)
    masks = [
        (listed_blocks(lists, 4, config), 2, 4, seq_len),
        (window(seq_len, config.window, lists.device), 1, 1, seq_len),
    ]
    if windows:
        masks.append((ended_windows(seq_len, windows, config, lists.device), 1, 1, windows))
    for mask, batch, heads, columns in masks:
        dense = create_mask(mask.mask_mod, batch, heads, seq_len, columns, device=DEVICE)
        seen, full = by_tile(dense, False).any(-1), by_tile(dense, True).all(-1)
        listed = torch.zeros_like(seen)
        whole = torch.zeros_like(seen)
        for count, index, target in (
            (mask.kv_num_blocks, mask.kv_indices, listed),
            (mask.full_kv_num_blocks, mask.full_kv_indices, whole),
        ):
            taken = torch.arange(index.shape[-1], device=DEVICE) < count[..., None]
            target.scatter_(-1, index.long().expand_as(target), taken.expand_as(target))
        assert torch.equal(listed | whole, seen)
        assert not (listed & whole).any()
        assert full[whole].all()


def test_bits_of_lists_reach_beyond_one_word():
    lists = torch.full((1, 1, 40, 3), -1, dtype=torch.int32, device=DEVICE)
    lists[0, 0, 39] = torch.tensor([0, 31, 39], dtype=torch.int32)
    config = NSAConfig(block_size=1, compress_block=1, compress_stride=1)
    mask = listed_blocks(lists, 1, config)
    dense = create_mask(mask.mask_mod, 1, 1, 40, 40, device=DEVICE)[0, 0]
    assert dense[39].nonzero().flatten().tolist() == [0, 31, 39]
    assert not dense[:39].any()


@on_cpu
def test_a_backward_pass_on_a_cpu_is_refused_in_one_line():
    inputs = operands(64)
    with pytest.raises(ValueError, match=r"backend='flex': .* no backward pass on a CPU; use"):
        native_sparse_attention(
            inputs[0].requires_grad_(), *inputs[1:], CONFIGS["exact"], backend="flex"
        )
    with torch.no_grad():
        out = native_sparse_attention(*inputs, CONFIGS["exact"], backend="flex")
    assert not out.requires_grad


def test_a_trained_choice_is_refused_in_one_line():
    config = NSAConfig(**SMALL, differentiable_topk=True)
    inputs = operands(64)
    with pytest.raises(ValueError, match="differentiable_topk=True: backend 'flex' takes False"):
        native_sparse_attention(*inputs, config, backend="flex")
    with torch.no_grad():
        out = native_sparse_attention(*inputs, config, backend="flex")
    torch.testing.assert_close(
        out, native_sparse_attention(*inputs, CONFIGS["exact"]), rtol=2e-3, atol=2e-3
    )


@on_gpu
@pytest.mark.parametrize("name", ["exact", "overlapping", "hybrid", "per head"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_gradients_equal_the_reference_on_a_gpu(name, dtype):
    inputs = [x.requires_grad_() for x in operands(dtype=dtype, width=64)]
    wide = [x.detach().double().requires_grad_() for x in inputs]
    config = CONFIGS[name]
    out, aux = native_sparse_attention(*inputs, config, backend="flex", return_aux=True)
    expected = native_sparse_attention(
        *wide, config, backend="reference", block_indices=aux.block_indices
    )
    grad = torch.randn_like(out)
    grads = torch.autograd.grad(out, inputs, grad)
    wanted = torch.autograd.grad(expected, wide, grad.double())
    for mine, theirs in zip((out, *grads), (expected, *wanted), strict=True):
        error = (mine.double() - theirs).norm() / theirs.norm()
        assert error.item() < 0.02


@on_gpu
def test_a_gpus_limits_are_named():
    with pytest.raises(TypeError, match=r"q: has dtype torch\.float64; backend 'flex'"):
        native_sparse_attention(*operands(64, torch.float64), CONFIGS["exact"], backend="flex")
    with pytest.raises(ValueError, match="q: has head width 8; backend 'flex' takes 16"):
        native_sparse_attention(*operands(64, width=8), CONFIGS["exact"], backend="flex")
