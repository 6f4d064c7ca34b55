"""RMSuon against its formulas, beside AdamW where that is what it must be."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from dynnsiha import RMSuon
from dynnsiha.learning import newton_schulz, rmsuon

LR, BETAS, EPS, DECAY = 0.03, (0.9, 0.99), 1e-8, 0.1
OPTIONS = {"lr": LR, "betas": BETAS, "eps": EPS, "weight_decay": DECAY}


def _steps(p: nn.Parameter, grads: list[Tensor], **options) -> RMSuon:
    optimizer = RMSuon([p], **OPTIONS | options)
    for grad in grads:
        p.grad = grad.clone()
        optimizer.step()
    return optimizer


def _adam_move(grads: list[Tensor]) -> tuple[Tensor, Tensor]:
    """m̂ and m̂ / (sqrt(v̂) + eps), from the gradients by the sums that define them."""
    n = len(grads)
    m = sum((1 - BETAS[0]) * BETAS[0] ** (n - 1 - i) * g for i, g in enumerate(grads))
    v = sum((1 - BETAS[1]) * BETAS[1] ** (n - 1 - i) * g**2 for i, g in enumerate(grads))
    m, v = m / (1 - BETAS[0] ** n), v / (1 - BETAS[1] ** n)
    return m, m / (v.sqrt() + EPS)


def _gradients(*shape: int, count: int = 4) -> list[Tensor]:
    torch.manual_seed(0)
    return list(torch.randn(count, *shape, dtype=torch.float64))


@pytest.mark.parametrize("shape", [(6, 6), (8, 5), (5, 8)])
def test_a_matrix_moves_by_lr_e_along_the_orthogonalised_direction(shape):
    *earlier, last = _gradients(*shape)
    p = nn.Parameter(torch.randn(shape, dtype=torch.float64))
    optimizer = _steps(p, earlier)
    before = p.detach().clone()
    p.grad = last
    optimizer.step()
    update = before * (1 - LR * DECAY) - p.detach()
    mean, move = _adam_move([*earlier, last])
    length = float(move.norm())
    assert float(update.norm()) == pytest.approx(LR * length, rel=1e-6)
    # Singular vectors are those of m̂, singular values are equal within Newton-Schulz's bounds.
    u, _, vt = torch.linalg.svd(mean, full_matrices=False)
    core = u.T @ update @ vt.T
    values = core.diagonal()
    torch.testing.assert_close(core, torch.diag(values), atol=1e-9, rtol=0)
    ranks = min(shape)
    assert float(values.norm()) == pytest.approx(LR * length, rel=1e-6)
    orthogonal = values / (LR * length) * math.sqrt(ranks)
    assert 0.6 < float(orthogonal.min()) <= float(orthogonal.max()) < 1.5
    # Adam's own step is nothing like it.
    adam = torch.linalg.svdvals(move)
    assert float(adam.max() / adam.min()) > 2 * float(orthogonal.max() / orthogonal.min())


@pytest.mark.parametrize("most", [1, 50, 1 << 23])
@pytest.mark.parametrize("shape", [(), (7,), (4, 6), (2, 3, 5)])
def test_parameters_of_one_shape_step_as_if_alone(shape, most, monkeypatch):
    """Each with its own length and count, however many are stacked; one now and then without a
    gradient, or with a zero one."""
    monkeypatch.setattr(rmsuon, "STACKED_NUMBERS", most)
    torch.manual_seed(0)
    start = torch.randn(5, *shape, dtype=torch.float64)
    grads = torch.randn(4, 5, *shape, dtype=torch.float64)
    grads[1, 2] = 0
    together = [nn.Parameter(x.clone()) for x in start]
    apart = [nn.Parameter(x.clone()) for x in start]
    optimizers = [RMSuon(together, **OPTIONS), *(RMSuon([p], **OPTIONS) for p in apart)]
    for step, held in enumerate(grads):
        for place, grad in enumerate(held):
            missing = (step, place) == (2, 3)
            for p in (together[place], apart[place]):
                p.grad = None if missing else grad.clone()
        for optimizer in optimizers:
            optimizer.step()
    for p, alone, optimizer in zip(together, apart, optimizers[1:], strict=True):
        torch.testing.assert_close(p, alone)
        for name, value in optimizer.state[alone].items():
            torch.testing.assert_close(optimizers[0].state[p][name], value)


def test_the_orthogonalised_direction_has_singular_values_near_one():
    for shape in ((16, 16), (4, 40), (40, 4), (3, 7, 9)):
        torch.manual_seed(0)
        matrix = torch.randn(shape, dtype=torch.float64)
        values = torch.linalg.svdvals(newton_schulz(matrix))
        norm = torch.linalg.matrix_norm(matrix)[..., None]
        visible = torch.linalg.svdvals(matrix) / norm > 0.01
        assert visible.float().mean() > 0.9
        assert 0.68 < float(values[visible].min()) <= float(values[visible].max()) < 1.14


@settings(max_examples=30, deadline=None)
@given(values=st.lists(st.floats(0.01, 1.0), min_size=2, max_size=6), seed=st.integers(0, 1000))
def test_newton_schulz_keeps_singular_vectors_and_acts_on_values_alone(values, seed):
    generator = torch.Generator().manual_seed(seed)
    n = len(values)
    options = {"generator": generator, "dtype": torch.float64}
    u, v = (torch.linalg.qr(torch.randn(n, n, **options))[0] for _ in range(2))
    s = torch.tensor(values, dtype=torch.float64)
    result = u.T @ newton_schulz(u @ torch.diag(s) @ v) @ v.T
    x = s / s.norm()
    for _ in range(5):
        x = 3.4445 * x - 4.7750 * x**3 + 2.0315 * x**5
    torch.testing.assert_close(result, torch.diag(x), atol=1e-9, rtol=0)
    assert torch.equal(newton_schulz(torch.zeros(3, 4)), torch.zeros(3, 4))


@settings(max_examples=60, deadline=None)
@given(exponent=st.floats(-38, 30), wide=st.booleans())
def test_the_orthogonalised_direction_has_no_scale(exponent, wide):
    generator = torch.Generator().manual_seed(0)
    matrix = torch.randn(*((4, 6) if wide else (6, 4)), generator=generator)
    scaled = newton_schulz(matrix * 10**exponent)
    torch.testing.assert_close(scaled, newton_schulz(matrix), atol=1e-4, rtol=0)


@settings(max_examples=60, deadline=None)
@given(exponent=st.floats(-38, 30), eps=st.sampled_from([1e-8, 1e-3]))
def test_a_gradient_of_any_scale_gives_a_finite_step_in_the_same_direction(exponent, eps):
    """Its length is Adam's, which eps makes shorter for small gradients, down to none, and a square
    beyond the largest number as well."""
    grads = [g.float() for g in _gradients(4, 6)]
    moved = []
    for scale in (1.0, 10**exponent):
        p = nn.Parameter(torch.zeros(4, 6))
        _steps(p, [g * scale for g in grads[:1]], weight_decay=0.0, eps=eps)
        moved.append(p.detach().double())
        _steps(p, [g * scale for g in grads], eps=eps)
        assert p.isfinite().all()
    if -30 < exponent < 18:
        torch.testing.assert_close(*(m / m.norm() for m in moved), atol=1e-4, rtol=0)
    if -3 < exponent < 18 and eps == 1e-8:
        torch.testing.assert_close(*moved, atol=1e-4 * LR, rtol=0)


@pytest.mark.parametrize("scale", [1e-45, 1e-38, 1e-30, 1e-23, 1e30])
def test_an_expert_with_a_tiny_gradient_spoils_no_other(scale):
    grads = [g.float() for g in _gradients(3, 5, 4)]
    for grad in grads:
        grad[1] *= scale
    bank = nn.Parameter(torch.randn(3, 5, 4))
    slices = [nn.Parameter(bank[e].detach().clone()) for e in range(3)]
    _steps(bank, grads)
    assert bank.isfinite().all()
    for e, single in enumerate(slices):
        _steps(single, [g[e] for g in grads])
        torch.testing.assert_close(bank[e], single)


def test_each_matrix_of_a_bank_is_on_its_own():
    grads = _gradients(3, 5, 4)
    bank = nn.Parameter(torch.randn(3, 5, 4, dtype=torch.float64))
    slices = [nn.Parameter(bank[e].detach().clone()) for e in range(3)]
    optimizer = _steps(bank, grads)
    for e, single in enumerate(slices):
        alone = _steps(single, [g[e] for g in grads])
        torch.testing.assert_close(bank[e], single)
        for name in ("exp_avg", "exp_avg_sq"):
            torch.testing.assert_close(optimizer.state[bank][name][e], alone.state[single][name])


@pytest.mark.parametrize(
    ("shape", "options"),
    [((7,), {}), ((), {}), ((2, 3, 4, 5), {}), ((5, 4), {"orthogonal": False})],
)
def test_the_rest_takes_adamws_step(shape, options):
    grads = _gradients(*shape)
    start = torch.randn(shape, dtype=torch.float64)
    ours, theirs = nn.Parameter(start.clone()), nn.Parameter(start.clone())
    _steps(ours, grads, **options)
    adamw = torch.optim.AdamW([theirs], **OPTIONS)
    for grad in grads:
        theirs.grad = grad.clone()
        adamw.step()
    torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("shape", [(5, 4), (4,), ()])
@pytest.mark.parametrize("gradient", ["zero", "none"])
def test_zero_and_missing_gradients_are_skipped(shape, gradient):
    grads = _gradients(*shape)
    p = nn.Parameter(torch.randn(shape, dtype=torch.float64))
    optimizer = _steps(p, grads)
    before, state = p.detach().clone(), copy.deepcopy(optimizer.state[p])
    p.grad = torch.zeros_like(p) if gradient == "zero" else None
    optimizer.step()
    assert torch.equal(p, before)
    for name, value in state.items():
        assert torch.equal(optimizer.state[p][name], value), name


def test_a_first_gradient_of_zero_leaves_everything_at_its_start():
    p = nn.Parameter(torch.randn(4, 3))
    before = p.detach().clone()
    optimizer = _steps(p, [torch.zeros(4, 3)])
    assert torch.equal(p, before)
    assert optimizer.state[p]["step"].sum() == 0


def test_an_expert_without_tokens_stays_as_it_is():
    first, second, third = _gradients(3, 5, 4, count=3)
    second[1] = 0
    bank = nn.Parameter(torch.randn(3, 5, 4, dtype=torch.float64))
    alone = nn.Parameter(bank[1].detach().clone())
    optimizer = _steps(bank, [first])
    before = bank.detach().clone()
    bank.grad = second.clone()
    optimizer.step()
    assert torch.equal(bank[1], before[1])
    assert not torch.equal(bank[0], before[0])
    assert optimizer.state[bank]["step"].flatten().tolist() == [2, 1, 2]
    bank.grad = third.clone()
    optimizer.step()
    _steps(alone, [first[1], third[1]])  # its own count corrects the bias
    torch.testing.assert_close(bank[1], alone)


def test_state_dict_round_trip_goes_on_bit_by_bit():
    def build() -> tuple[nn.Module, RMSuon]:
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(6, 5), nn.Linear(5, 3))
        model.register_parameter("bank", nn.Parameter(torch.randn(2, 3, 3)))
        rest = [p for p in model.parameters() if p is not model[0].weight]
        groups = [{"params": [model[0].weight], "orthogonal": False}, {"params": rest}]
        return model, RMSuon(groups, **OPTIONS)

    def train(model: nn.Module, optimizer: RMSuon, first: int, last: int) -> None:
        for step in range(first, last):
            generator = torch.Generator().manual_seed(step)
            y = model(torch.randn(8, 6, generator=generator))
            optimizer.zero_grad()
            torch.einsum("tj,ejk->tek", y, model.bank).square().mean().backward()
            optimizer.step()

    whole, optimizer = build()
    train(whole, optimizer, 0, 6)
    half, first = build()
    train(half, first, 0, 3)
    resumed, second = build()
    resumed.load_state_dict(half.state_dict())
    second.load_state_dict(copy.deepcopy(first.state_dict()))
    assert second.param_groups[0]["orthogonal"] is False
    train(resumed, second, 3, 6)
    for a, b in zip(whole.parameters(), resumed.parameters(), strict=True):
        assert torch.equal(a, b)
        for name, value in optimizer.state[a].items():
            assert torch.equal(value, second.state[b][name])


def test_bfloat16_parameters_move_by_the_same_length():
    (grad,) = _gradients(8, 6, count=1)
    p = nn.Parameter(torch.zeros(8, 6, dtype=torch.bfloat16))
    optimizer = _steps(p, [grad.bfloat16()], weight_decay=0.0)
    assert p.dtype == optimizer.state[p]["exp_avg"].dtype == torch.bfloat16
    assert float(p.detach().float().norm()) == pytest.approx(LR * math.sqrt(48), rel=0.01)


def test_a_gradient_that_is_not_a_number_is_not_hidden():
    grad = torch.zeros(3, 3)
    grad[0, 0] = torch.nan
    p = nn.Parameter(torch.zeros(3, 3))
    _steps(p, [grad])
    assert p.isnan().any()


def test_it_minimises():
    torch.manual_seed(0)
    target = torch.randn(12, 9)
    p, bias = nn.Parameter(torch.zeros(12, 9)), nn.Parameter(torch.zeros(12, 1))
    optimizer = RMSuon([p, bias], lr=0.05, weight_decay=0.0)
    x = torch.randn(9, 64)

    def loss() -> Tensor:
        optimizer.zero_grad()
        value = (p @ x + bias - target @ x - 1).square().mean()
        value.backward()
        return value

    first = float(optimizer.step(loss).detach())
    for group_step in range(200):
        optimizer.param_groups[0]["lr"] = 0.05 * (1 - group_step / 200)
        last = float(optimizer.step(loss).detach())
    assert last < 1e-3 * first


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"lr": -1.0}, "lr=-1.0: must be at least 0"),
        ({"eps": math.nan}, "eps=nan: must be at least 0"),
        ({"weight_decay": -0.1}, "weight_decay=-0.1: must be at least 0"),
        ({"betas": (0.9, 1.0)}, r"betas=\(0.9, 1.0\): both must lie in"),
    ],
)
def test_bad_options_name_the_fix(options, message):
    p = nn.Parameter(torch.zeros(2, 2))
    with pytest.raises(ValueError, match=message):
        RMSuon([p], **options)
    with pytest.raises(ValueError, match=message):
        RMSuon([{"params": [p]} | options])


def test_sparse_gradients_are_refused():
    table = nn.Embedding(5, 3, sparse=True)
    table(torch.tensor([1])).sum().backward()
    with pytest.raises(RuntimeError, match="sparse=False"):
        RMSuon(table.parameters()).step()
