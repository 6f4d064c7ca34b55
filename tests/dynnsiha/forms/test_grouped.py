"""The grouped matmul against a loop over experts."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from dynnsiha.forms import grouped
from dynnsiha.forms.dispatch import Dispatch
from dynnsiha.forms.grouped import grouped_matmul

GROUPS = {
    "even": [5, 5, 5, 5],
    "uneven": [0, 13, 1, 6],
    "one group": [0, 0, 20, 0],
    "one row": [0, 0, 0, 1],
}
every_grouping = pytest.mark.parametrize("counts", GROUPS.values(), ids=GROUPS)


def _operands(counts, d_in, d_out, dtype=torch.float64) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    rows = torch.randn(sum(counts), d_in, generator=generator, dtype=dtype)
    weight = torch.randn(len(counts), d_in, d_out, generator=generator, dtype=dtype)
    ends = torch.tensor(counts).cumsum(0).to(torch.int32)
    return rows.requires_grad_(), weight.requires_grad_(), ends


def _looped(rows: Tensor, weight: Tensor, ends: Tensor) -> Tensor:
    parts, start = [], 0
    for expert, end in enumerate(ends.tolist()):
        parts.append(rows[start:end] @ weight[expert])
        start = end
    return torch.cat(parts)


@every_grouping
@pytest.mark.parametrize("own", [True, False], ids=["torch", "padded"])
@pytest.mark.parametrize(
    ("d_in", "d_out", "dtype"),
    [
        (8, 16, torch.float64),  # not served by torch
        (8, 16, torch.float32),
        (7, 5, torch.float32),  # not aligned
        (8, 16, torch.bfloat16),
    ],
)
def test_it_equals_a_loop_over_experts(counts, own, d_in, d_out, dtype, monkeypatch):
    if not own:
        monkeypatch.setattr(grouped, "_SERVED", ())
    rows, weight, ends = _operands(counts, d_in, d_out, dtype)
    y, wanted = grouped_matmul(rows, weight, ends), _looped(rows, weight, ends)
    assert y.dtype == dtype
    close = {"rtol": 2e-2, "atol": 2e-2} if dtype == torch.bfloat16 else {}
    torch.testing.assert_close(y, wanted, **close)
    d_out_rows = torch.randn(wanted.shape, dtype=dtype)
    found = torch.autograd.grad(y, (rows, weight), d_out_rows)
    expected = torch.autograd.grad(wanted, (rows, weight), d_out_rows)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, **close)


def test_the_gradient_may_be_an_expanded_tensor():
    rows, weight, ends = _operands([3, 5], 8, 8, torch.float32)
    grads = torch.autograd.grad(grouped_matmul(rows, weight, ends).sum(), (rows, weight))
    expected = torch.autograd.grad(_looped(rows, weight, ends).sum(), (rows, weight))
    torch.testing.assert_close(grads, expected)


def test_first_and_second_derivatives_are_those_of_finite_differences():
    indices = torch.tensor([[0, 2], [2, 1], [0, 1]])
    dispatch = Dispatch.of(indices, 4)
    generator = torch.Generator().manual_seed(1)
    x, weight, mix = (
        torch.randn(shape, generator=generator, dtype=torch.float64, requires_grad=True)
        for shape in ((3, 3), (4, 3, 2), (3, 2))
    )

    def whole(x: Tensor, weight: Tensor, mix: Tensor) -> Tensor:
        rows = grouped_matmul(dispatch.spread(x), weight, dispatch.ends)
        return dispatch.gather(rows.tanh(), mix)

    assert torch.autograd.gradcheck(whole, (x, weight, mix))
    assert torch.autograd.gradgradcheck(whole, (x, weight, mix))


def test_torchs_own_product_has_second_derivatives_too():
    results = []
    for product in (grouped_matmul, _looped):
        rows, weight, ends = _operands([3, 5], 8, 8, torch.float32)
        y = product(rows, weight, ends).tanh()
        first = torch.autograd.grad(y.square().sum(), (rows, weight), create_graph=True)
        total = first[0].square().sum() + first[1].square().sum()
        results.append(torch.autograd.grad(total, (rows, weight)))
    torch.testing.assert_close(*results, rtol=1e-4, atol=1e-4)


def test_compilers_trace_it():
    rows, weight, ends = _operands([3, 0, 5], 8, 8, torch.float32)
    for operation, operands in (
        (grouped._product_operation, (rows, weight)),
        (grouped._outer_operation, (rows, rows.detach().clone().requires_grad_())),
    ):
        torch.library.opcheck(operation, (*operands, ends))


def test_dispatch_sorts_stably_and_back():
    indices = torch.tensor([[3, 0], [0, 1], [3, 1]])
    dispatch = Dispatch.of(indices, 5)
    assert dispatch.ends.tolist() == [2, 4, 4, 6, 6]
    assert dispatch.order.tolist() == [1, 2, 3, 5, 0, 4]
    assert dispatch.order[dispatch.inverse].tolist() == list(range(6))
    x = torch.arange(3.0)[:, None]
    assert dispatch.spread(x).flatten().tolist() == [0, 1, 1, 2, 0, 2]
    rows = torch.tensor([10.0, 20, 30, 40, 50, 60])[:, None]
    weights = torch.tensor([[1.0, 2.0], [3.0, 0.0], [0.5, 0.25]])
    # Token 0 took experts 3 (row 4) and 0 (row 0), and so on.
    assert dispatch.gather(rows, weights).flatten().tolist() == [70.0, 60.0, 40.0]


def test_the_same_input_gives_the_same_bits():
    torch.manual_seed(0)
    indices = torch.rand(300, 8).topk(2).indices
    results = []
    for _ in range(3):
        rows, weight, _ = _operands([300] + 7 * [0], 16, 16, torch.float32)
        dispatch = Dispatch.of(indices, 8)
        y = grouped_matmul(dispatch.spread(rows), weight, dispatch.ends)
        results.append((y, *torch.autograd.grad(y.square().sum(), (rows, weight))))
    for again in results[1:]:
        assert all(torch.equal(*pair) for pair in zip(results[0], again, strict=True))
