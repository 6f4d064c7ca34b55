"""Choice, weights and order of the kernels against what plain torch makes of the same logits."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from dynnsiha.forms.dispatch import Dispatch
from dynnsiha.forms.experts import ExpertRouter
from dynnsiha.forms.triton import choose, choose_by_cosine

SIZES = {  # tokens, experts, choices
    "a chunk": (64, 64, 2),
    "several chunks": (300, 64, 2),
    "few experts": (100, 3, 3),
    "one expert": (9, 1, 1),
    "one token": (1, 24, 5),
    "many experts": (70, 250, 4),
    "no token": (0, 8, 2),
}
every_size = pytest.mark.parametrize("size", SIZES.values(), ids=SIZES)
WIDTH = 72  # no multiple of a step


def _best(logits: Tensor, active: int) -> Tensor:
    """The best experts; of equal logits the first."""
    ordered = logits.detach().double().sort(dim=-1, descending=True, stable=True)
    return ordered.indices[:, :active]


def _logits(tokens: int, experts: int, device: str, dtype: torch.dtype = torch.float32) -> Tensor:
    """Some tokens open nothing, and some logits of a token are equal."""
    generator = torch.Generator().manual_seed(1)
    logits = torch.randn(tokens, experts, generator=generator)
    logits[::5] = -logits[::5].abs() - 0.1
    logits[1::7] = logits[1::7].round()
    return logits.to(device, dtype).requires_grad_()


def _require_grouped(indices: Tensor, experts: int, parts: tuple[Tensor, ...]) -> None:
    dispatch = Dispatch.of(indices, experts)
    for found, wanted in zip(parts, (dispatch.order, dispatch.inverse, dispatch.ends), strict=True):
        assert torch.equal(found, wanted)
        assert found.dtype == wanted.dtype


@every_size
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
def test_a_choice_by_logits_is_that_of_plain_torch(size, dtype, device):
    tokens, experts, active = size
    logits = _logits(tokens, experts, device, dtype)
    weights, indices, *grouped = choose(logits, active, torch.relu)
    assert torch.equal(indices, _best(logits, active))
    _require_grouped(indices, experts, grouped)
    wanted = torch.relu(logits.gather(-1, indices))
    assert torch.equal(weights, wanted)
    d_weights = torch.randn(wanted.shape, device=device).to(dtype)
    (found,) = torch.autograd.grad(weights, logits, d_weights)
    (expected,) = torch.autograd.grad(wanted, logits, d_weights)
    assert torch.equal(found, expected)


def _router(
    experts: int, active: int, device: str, dtype: torch.dtype = torch.float32
) -> ExpertRouter:
    torch.manual_seed(0)
    router = ExpertRouter(WIDTH, experts, active)
    # High thresholds: some tokens open nothing.
    torch.nn.init.normal_(router.prototypes.gate, 0.15 * experts**0.5 - 2)
    return router.to(device, dtype)


def _input(tokens: int, device: str, dtype: torch.dtype = torch.float32) -> Tensor:
    generator = torch.Generator().manual_seed(2)
    x = torch.randn(tokens, WIDTH, generator=generator)
    if dtype == torch.float32:  # gradients of short ones are too large for float16
        x[::6] *= 1e-3
        x[3::50] = 0.0
    return x.to(device, dtype).requires_grad_()


def _by_cosine(router: ExpertRouter, x: Tensor) -> tuple[Tensor, ...]:
    p = router.prototypes
    return choose_by_cosine(x, p.proto, p.gate, p.score_scale, router.active, p.logits, p.weights)


@every_size
# Triton's interpreter multiplies no matrices of bfloat16.
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=["fp32", "fp16"])
def test_a_choice_by_cosine_is_that_of_plain_torch(size, dtype, device):
    tokens, experts, active = size
    router = _router(experts, active, device, dtype)
    x = _input(tokens, device, dtype)
    logits, weights, indices, *grouped = _by_cosine(router, x)
    wide = _router(experts, active, device, dtype).double()
    wide_x = x.detach().double().requires_grad_()
    wide_logits = wide.prototypes.logits(wide_x)
    tolerance = 1e-5 if dtype == torch.float32 else 4e-3
    assert logits.dtype == weights.dtype == dtype
    torch.testing.assert_close(logits.double(), wide_logits, rtol=tolerance, atol=tolerance)
    if dtype == torch.float32:
        assert torch.equal(indices, _best(wide_logits, active))
    _require_grouped(indices, experts, grouped)
    wide_weights = wide.prototypes.weights(wide_logits.gather(-1, indices))
    torch.testing.assert_close(weights.double(), wide_weights, rtol=tolerance, atol=tolerance)
    if tokens > 1 and experts > 1:
        opened = (wide_logits > 0).any(-1)
        assert bool(opened.any())
        assert not bool(opened.all())
    d_logits, d_weights = (
        torch.randn(y.shape, generator=torch.Generator().manual_seed(3)).to(device, dtype)
        for y in (logits, weights)
    )
    found = torch.autograd.grad(
        (logits, weights), (x, *router.prototypes.parameters()), (d_logits, d_weights)
    )
    expected = torch.autograd.grad(
        (wide_logits, wide_weights),
        (wide_x, *wide.prototypes.parameters()),
        (d_logits.double(), d_weights.double()),
    )
    for one, other in zip(found, expected, strict=True):
        assert one.dtype == dtype
        if tokens:  # against the largest of a row: those of a long and of a short x differ much
            largest = other.abs().amax(-1, keepdim=True) + 1e-6
            assert ((one - other).abs() / largest).max() <= tolerance


def test_gradients_of_gradients(device):
    results = []
    for kernels in (True, False):
        router = _router(20, 3, device)
        x = _input(40, device).detach()[4:].requires_grad_()  # none that is 0
        if kernels:
            logits, weights = _by_cosine(router, x)[:2]
        else:
            logits = router.prototypes.logits(x)
            weights = router.prototypes.weights(logits.gather(-1, _best(logits, 3)))
        leaves = (x, router.prototypes.proto, router.prototypes.gate)
        total = weights.square().sum() + logits.pow(3).mean()
        first = torch.autograd.grad(total, leaves, create_graph=True)
        # The first two rows alone: short ones have huge second derivatives.
        second = torch.autograd.grad(first[0][:2].pow(2).sum() + first[2].sum(), leaves)
        results.append((*first, *second))
    assert all(bool(part.abs().max() > 0) for part in results[0])
    torch.testing.assert_close(*results, rtol=1e-4, atol=1e-4)


def test_one_gradient_can_be_asked_for_alone(device):
    router, x = _router(20, 3, device), _input(40, device)
    for leaf in (x, router.prototypes.proto, router.prototypes.gate):
        weights = _by_cosine(router, x)[1]
        (alone,) = torch.autograd.grad(weights.sum(), leaf, retain_graph=True)
        (twice,) = torch.autograd.grad(weights.sum(), leaf, create_graph=True)
        torch.testing.assert_close(alone, twice.detach(), rtol=1e-4, atol=1e-5)
    with torch.no_grad():
        frozen = _by_cosine(router, x)[1]
    assert not frozen.requires_grad


def test_prototypes_need_not_be_contiguous(device):
    router, x = _router(20, 3, device), _input(40, device)
    p = router.prototypes
    results = []
    strided = (p.proto.t().contiguous().t(), p.gate.repeat_interleave(2)[::2])
    assert not any(part.is_contiguous() for part in strided)
    for pair in ((p.proto, p.gate), strided):
        proto, gate = (part.detach().requires_grad_() for part in pair)
        logits, weights, *_ = choose_by_cosine(
            x, proto, gate, p.score_scale, 3, p.logits, p.weights
        )
        total = weights.square().sum() + logits.sum()
        results.append((logits, weights, *torch.autograd.grad(total, (x, proto, gate))))
    for one, other in zip(*results, strict=True):  # products of other strides sum in another order
        assert (one - other).abs().max() <= 1e-4 * other.abs().max()


@pytest.mark.parametrize("create_graph", [False, True])
def test_gradients_inside_of_autocast_keep_the_precision_of_the_parameters(create_graph, device):
    router, x = _router(20, 3, device), _input(40, device)
    leaves = (x, *router.prototypes.parameters())
    results = []
    for enabled in (False, True):
        with torch.autocast(device, torch.bfloat16, enabled=enabled):
            choice = router(x[None])
            total = choice.weights.square().sum() + choice.logits.sum()
            results.append(torch.autograd.grad(total, leaves, create_graph=create_graph))
    torch.testing.assert_close(*results)


def test_a_row_without_numbers_takes_experts_that_differ(device):
    logits = torch.randn(30, 12, device=device)
    logits[3] = torch.nan
    logits[4, ::2] = torch.nan
    logits[5] = torch.inf
    logits[6] = -torch.inf
    weights, indices, order, inverse, ends = choose(logits, 4, torch.relu)
    assert all(len(set(row)) == 4 for row in indices.tolist())
    assert int(indices.min()) >= 0
    assert int(indices.max()) < 12
    assert torch.equal(order[inverse], torch.arange(120, device=device))
    assert int(ends[-1]) == 120
    assert bool(weights[3].isnan().all()), "what was no number stays none"
