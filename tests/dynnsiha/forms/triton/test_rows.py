"""Rows moved by the kernels against the same moved by plain torch, and whole forms either way."""

from __future__ import annotations

import pytest
import torch

from dynnsiha import FlatDynSIHA, RecursiveDynSIHA
from dynnsiha.forms import dispatch as plain
from dynnsiha.forms import experts
from dynnsiha.forms.dispatch import Dispatch

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
SHARE_OFF = {torch.float32: 1e-6, torch.bfloat16: 2e-2, torch.float16: 4e-3}  # of the largest


@pytest.fixture
def without_kernels(monkeypatch):
    """A function that makes the library do without its kernels from now on."""

    def refuse() -> None:
        for module in (plain, experts):
            monkeypatch.setattr(module, "kernels_serve", lambda x: False)

    return refuse


def _results(dispatch: Dispatch, width: int, dtype: torch.dtype, wide: torch.dtype):
    """Sums of weighted, squashed rows, and their gradients; of numbers that ``dtype`` holds."""
    generator = torch.Generator().manual_seed(0)
    tokens = len(dispatch.order) // dispatch.choices
    x, weights, grad = (
        torch.randn(shape, generator=generator).to(dispatch.order.device, dtype).to(wide)
        for shape in ((tokens, width), (tokens, dispatch.choices), (tokens, width))
    )
    leaves = (x.requires_grad_(), weights.requires_grad_())
    rows = dispatch.spread(x)
    y = dispatch.gather(rows.tanh(), weights)
    return rows, y, *torch.autograd.grad(y, leaves, grad)


@pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES)
@pytest.mark.parametrize("width", [1, 40, 1024, 1100])
@pytest.mark.parametrize("tokens", [0, 1, 33])
def test_rows_go_where_plain_torch_takes_them(tokens, width, dtype, device, without_kernels):
    indices = torch.rand(tokens, 7, device=device).argsort(-1)[:, :3]
    dispatch = Dispatch.of(indices, 7)
    assert plain.kernels_serve(torch.empty(0, dtype=dtype, device=device))
    found = _results(dispatch, width, dtype, dtype)
    without_kernels()
    expected = _results(dispatch, width, dtype, torch.float64)
    assert torch.equal(found[0].double(), expected[0]), "a move rounds nothing"
    for one, other in zip(found, expected, strict=True):
        assert one.dtype == dtype
        assert one.shape == other.shape
        if tokens:
            largest = other.abs().max().clamp(min=1)  # terms of the order of 1 may cancel
            assert (one - other).abs().max() <= SHARE_OFF[dtype] * largest


def test_the_gradient_may_be_an_expanded_tensor(device, without_kernels):
    dispatch = Dispatch.of(torch.tensor([[0, 1], [1, 2], [0, 2]], device=device), 3)
    results = []
    for _ in range(2):
        x = torch.arange(12.0, device=device).view(3, 4).requires_grad_()
        weights = torch.tensor([[1.0, 2], [3, 4], [5, 6]], device=device, requires_grad=True)
        y = dispatch.gather(dispatch.spread(x), weights).sum()
        results.append(torch.autograd.grad(y, (x, weights)))
        without_kernels()
    torch.testing.assert_close(*results)


def test_operands_need_not_be_contiguous(device, without_kernels):
    dispatch = Dispatch.of(torch.tensor([[0, 1], [1, 2], [0, 2]], device=device), 3)
    results = []
    for _ in range(2):
        rows = torch.arange(24.0, device=device).view(4, 6).t().requires_grad_()
        weights = torch.arange(1.0, 7, device=device).view(2, 3).t().requires_grad_()
        y = dispatch.gather(rows, weights)
        results.append((y, *torch.autograd.grad(y.square().sum(), (rows, weights))))
        without_kernels()
    torch.testing.assert_close(*results)


def test_gradients_of_gradients(device, without_kernels):
    dispatch = Dispatch.of(torch.tensor([[0, 1], [1, 2], [0, 2]], device=device), 3)
    results = []
    for _ in range(2):
        x = torch.linspace(-1, 1, 12, device=device).view(3, 4).requires_grad_()
        weights = torch.tensor([[1.0, 2], [3, 4], [5, 6]], device=device, requires_grad=True)
        y = dispatch.gather(dispatch.spread(x).sin(), weights)
        first = torch.autograd.grad(y.square().sum(), (x, weights), create_graph=True)
        total = sum(part.square().sum() for part in first)
        results.append(torch.autograd.grad(total, (x, weights)))
        without_kernels()
    torch.testing.assert_close(*results)


@pytest.mark.parametrize("router", ["cpr", "dot", "capr"])
@pytest.mark.parametrize("form", [FlatDynSIHA, RecursiveDynSIHA])
def test_a_form_computes_the_same_either_way(form, router, device, without_kernels):
    torch.manual_seed(0)
    layer = form(16, 2, experts=6, active_experts=2, router=router, alpha=0.5).to(device)
    x = torch.randn(2, 11, 16, device=device, requires_grad=True)
    results = []
    for _ in range(2):
        y, routing = layer(x, return_routing=True)
        taken = [block.mlp.indices for block in routing.blocks]
        weights = [block.heads.experts.weights for block in routing.blocks]
        gradients = torch.autograd.grad(y.square().sum(), (x, *layer.parameters()))
        results.append((taken, weights, y, gradients))
        without_kernels()
    torch.testing.assert_close(*results, rtol=1e-4, atol=1e-3)
    assert len(results[0][3]) > 10


@torch.no_grad()
def test_a_cached_decode_equals_the_full_forward(device):
    torch.manual_seed(0)
    layer = FlatDynSIHA(16, 2, experts=6, active_experts=2).to(device)
    x = torch.randn(2, 8, 16, device=device)
    cache = layer.new_cache(2, 8)
    parts = [layer(part, cache=cache) for part in x.split((6, 1, 1), dim=1)]
    torch.testing.assert_close(torch.cat(parts, 1), layer(x), rtol=1e-4, atol=1e-5)
