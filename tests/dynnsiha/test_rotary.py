"""Rotary positions against complex multiplication."""

from __future__ import annotations

import importlib.util
import math

import pytest
import torch

from dynnsiha.synthesis import apply_rotary, rotary, rotary_tables
from dynnsiha.triton_device import kernels_serve


def test_equals_multiplication_by_complex_phases():
    x = torch.randn(2, 5, 3, 8, dtype=torch.float64)
    positions = torch.tensor([0, 1, 7, 100, 4096])
    turned = apply_rotary(x, *rotary_tables(positions, 8, dtype=torch.float64))
    frequency = torch.tensor([10_000 ** (-i / 4) for i in range(4)], dtype=torch.float64)
    phase = torch.polar(torch.ones(5, 4, dtype=torch.float64), positions[:, None] * frequency)
    expected = torch.complex(x[..., :4], x[..., 4:]) * phase[None, :, None]
    torch.testing.assert_close(turned, torch.cat((expected.real, expected.imag), dim=-1))
    assert torch.equal(turned[:, 0], x[:, 0])


def test_products_depend_on_the_distance_alone():
    q, k = torch.randn(2, 1, 6, 2, 16, dtype=torch.float64)
    logits = []
    for start in (0, 1000):
        tables = rotary_tables(torch.arange(start, start + 6), 16, dtype=torch.float64)
        logits.append(
            torch.einsum("bqhd,bkhd->bhqk", apply_rotary(q, *tables), apply_rotary(k, *tables))
        )
    torch.testing.assert_close(*logits)
    assert not torch.allclose(logits[0], torch.einsum("bqhd,bkhd->bhqk", q, k))


def test_each_sequence_may_have_its_own_positions():
    x = torch.randn(2, 4, 1, 8)
    positions = torch.tensor([[0, 1, 2, 3], [9, 10, 11, 12]])
    together = apply_rotary(x, *rotary_tables(positions, 8))
    for row in range(2):
        alone = apply_rotary(x[row : row + 1], *rotary_tables(positions[row], 8))
        assert torch.equal(together[row : row + 1], alone)


@pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="no Triton")
@pytest.mark.parametrize("heads", [1, 3, 40])
@pytest.mark.parametrize("width", [2, 6, 128])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
def test_the_kernel_turns_as_plain_torch_does(dtype, width, heads, interpreter, monkeypatch):
    device = "cuda" if torch.cuda.is_available() else "cpu"
    assert kernels_serve(torch.empty(0, device=device))
    generator = torch.Generator().manual_seed(0)
    # Not contiguous, as q is among q, k and v; each sequence with its own positions, or all alike.
    qkv = torch.randn(2, 7, 2 * heads, width, generator=generator).to(device, dtype)
    own = torch.randint(0, 5000, (2, 7), generator=generator)
    for positions in (torch.arange(7), own, own[:1]):
        tables = rotary_tables(positions.to(device), width)
        results = []
        for serve in (kernels_serve, lambda x: False):
            monkeypatch.setattr(rotary, "kernels_serve", serve)
            x = qkv[:, :, heads:].detach().requires_grad_()
            grad = qkv[:, :, :heads].detach().requires_grad_()
            y = apply_rotary(x, *tables)
            (first,) = torch.autograd.grad(y, x, grad, create_graph=True)
            (second,) = torch.autograd.grad(first, grad, x.detach() + 1)
            results.append((y, first, second))
        assert results[0][0].dtype == dtype
        assert results[0][0].is_contiguous()
        torch.testing.assert_close(results[0][0], results[1][0])
        # Plain torch rounds each of two products to bfloat16 on its way back.
        close = {"rtol": 1.6e-2, "atol": 2e-2} if dtype == torch.bfloat16 else {}
        torch.testing.assert_close(*results, **close)


@pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="no Triton")
def test_heads_that_32_bits_do_not_reach_come_to_the_kernel_side_by_side(monkeypatch):
    seen = []
    monkeypatch.setattr("dynnsiha.synthesis.triton.turned", lambda x, *_, **__: seen.append(x) or x)
    monkeypatch.setattr(rotary, "kernels_serve", lambda x: True)
    x = torch.empty(1, 65, 1 << 18, 128, device="meta").transpose(1, 2)
    tables = torch.empty(2, 1 << 18, 64, device="meta")
    apply_rotary(x, *tables)
    apply_rotary(x[:, :, :64], *tables)
    assert [y.stride(2) for y in seen] == [128, 128 << 18]


@pytest.mark.parametrize("shape", [(3, 4), (5, 3), (3, 5, 4), (2, 4, 4), (2, 5, 1, 4)])
def test_tables_of_another_shape_are_refused(shape):
    x = torch.zeros(2, 5, 1, 8)
    right = torch.zeros(5, 4)
    for tables in ((torch.zeros(shape), torch.zeros(shape)), (right, torch.zeros(shape))):
        with pytest.raises(ValueError, match=r"^cos, sin: are .* from rotary_tables$"):
            apply_rotary(x, *tables)


def test_odd_widths_are_refused():
    tables = rotary_tables(torch.arange(5), 2)
    with pytest.raises(
        ValueError, match=r"^x: has heads of width 3; rotary positions need an even"
    ):
        apply_rotary(torch.zeros(1, 5, 1, 3), *tables)


def test_far_positions_are_turned_by_their_exact_angle():
    positions = [0, 1, 8191, 131_071, 1_000_003]
    cos, sin = rotary_tables(torch.tensor(positions), 64)
    assert cos.dtype == torch.float32
    angles = [[p * 10_000.0 ** (-i / 32) for i in range(32)] for p in positions]
    for table, function in ((cos, math.cos), (sin, math.sin)):
        wanted = torch.tensor([[function(a) for a in row] for row in angles])
        torch.testing.assert_close(table, wanted, rtol=0, atol=1e-7)


def test_far_positions_stay_apart_in_bfloat16():
    x = torch.ones(1, 2, 1, 8, dtype=torch.bfloat16)
    turned = apply_rotary(x, *rotary_tables(torch.tensor([131_071, 131_072]), 8))
    assert turned.dtype == torch.bfloat16
    assert not torch.equal(turned[:, 0], turned[:, 1])


def test_odd_width_is_refused():
    with pytest.raises(ValueError, match="head_dim=7"):
        rotary_tables(torch.arange(3), 7)
