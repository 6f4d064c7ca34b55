"""What only the recursive form has: ties, steps, and halting."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from dynnsiha import FlatDynSIHA, RecursiveDynSIHA

WIDTH = 32
SMALL = {"experts": 8, "expert_width": 24}


def _recursive(steps: int = 4, **options) -> RecursiveDynSIHA:
    torch.manual_seed(0)
    return RecursiveDynSIHA(WIDTH, 2, steps=steps, **(SMALL | options))


def _input(seq_len: int = 45) -> Tensor:
    return torch.randn(2, seq_len, WIDTH, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("alpha", [0.0, 0.5])
def test_it_equals_the_flat_form_unrolled_with_tied_weights(alpha):
    form, x = _recursive(alpha=alpha).double(), _input().double()
    unrolled = FlatDynSIHA(WIDTH, 2, blocks=4, alpha=alpha, **SMALL).double()
    for block in unrolled.blocks:
        block.load_state_dict(form.block.state_dict())
    assert torch.equal(form(x), unrolled(x))
    # Each step's share of the gradient adds up in the one block.
    wanted = [torch.zeros_like(p) for p in form.parameters()]
    unrolled(x).square().sum().backward()
    for block in unrolled.blocks:
        for total, p in zip(wanted, block.parameters(), strict=True):
            total += p.grad
    found = torch.autograd.grad(form(x).square().sum(), list(form.parameters()))
    torch.testing.assert_close(list(found), wanted)


def test_parameters_do_not_grow_with_the_steps():
    def parameters(form: nn.Module) -> int:
        return sum(p.numel() for p in form.parameters())

    assert len({parameters(_recursive(steps)) for steps in (1, 2, 16)}) == 1
    flat = [FlatDynSIHA(WIDTH, blocks=blocks, **SMALL) for blocks in (1, 3)]
    assert parameters(flat[1]) == 3 * parameters(flat[0])


def test_the_number_of_steps_may_change_afterwards():
    form, x = _recursive(2), _input()
    fresh = _recursive(5)
    form.steps = 5
    assert torch.equal(form(x), fresh(x))


def test_every_step_routes_anew():
    _, routing = _recursive()(_input(), return_routing=True)
    first, *later = [made.heads.experts.indices for made in routing.blocks]
    assert all((first != other).any() for other in later)


def _slope_of_alpha(form: RecursiveDynSIHA, x: Tensor, step: float = 1e-6) -> float:
    """Of the loss below, by finite differences."""
    logit, values = form.block.resident.alpha_logit, []
    for sign in (1, -2):
        with torch.no_grad():
            logit += sign * step
            values.append(float(form(x).square().mean()))
    with torch.no_grad():
        logit += step
    return (values[0] - values[1]) / (2 * step)


def test_the_resident_stream_receives_gradient_and_matters():
    form, x = _recursive(router="dot").double(), _input().double()  # nothing straight through
    form(x).square().mean().backward()
    grad = float(form.block.resident.alpha_logit.grad)
    assert grad == pytest.approx(_slope_of_alpha(form, x), rel=1e-4)
    ablation = _recursive(alpha=0.0, router="dot").double()
    ablation.load_state_dict(form.state_dict(), strict=False)
    assert not torch.allclose(form(x), ablation(x))


def _halting(confidence: float, below: float = 0.1, steps: int = 4) -> RecursiveDynSIHA:
    """A form whose confidence is the same everywhere."""
    form = _recursive(steps, halt_below=below)
    nn.init.zeros_(form.halting.confidence.weight)
    nn.init.constant_(form.halting.confidence.bias, torch.logit(torch.tensor(confidence)).item())
    return form


def test_without_confidence_halting_changes_nothing():
    x = _input()
    torch.testing.assert_close(_halting(1e-12)(x), _recursive()(x), rtol=1e-5, atol=1e-5)


def test_factors_are_the_chance_that_no_step_was_confident():
    form, x = _halting(0.5), _input()
    y, routing = form(x, return_routing=True)
    going = routing.going
    # 0.0625 would follow: below 0.1.
    torch.testing.assert_close(going, torch.tensor([1, 0.5, 0.25, 0.125]).expand(2, 45, 4))
    torch.testing.assert_close(routing.expected_steps, torch.full((2, 45), 1.875))
    halted = sum(
        factor * (made.heads.experts.mixtures[-1] + made.mlp.mixtures[-1])
        for factor, made in zip((1, 0.5, 0.25, 0.125), routing.blocks, strict=True)
    )
    torch.testing.assert_close(y, halted)


def test_steps_end_when_every_token_has_halted():
    form, x = _halting(0.7, steps=50), _input()
    _, routing = form(x, return_routing=True)
    assert len(routing.blocks) == 2  # 1, 0.3, and 0.09 is below 0.1
    assert routing.going.shape == (2, 45, 2)
    assert torch.equal(form(x), _halting(0.7, steps=2)(x))


def test_a_halted_token_stays_as_it_is_while_others_go_on():
    form, x = _recursive(6, halt_below=0.3), _input()
    with torch.no_grad():
        form.halting.confidence.weight.mul_(8.0)
    _, routing = form(x, return_routing=True)
    going = routing.going
    assert (going[..., -1] == 0).any()
    assert (going[..., -1] > 0).any()
    assert ((going == 0) | (going >= 0.3)).all()
    assert (going.diff(dim=-1) <= 0).all()
    halted = going[..., 3] == 0
    form.steps = 3
    early = form(x)
    form.steps = 6
    assert torch.equal(form(x)[halted], early[halted])
    assert not torch.allclose(form(x)[~halted], early[~halted])


def test_confidence_learns_from_the_loss_and_from_the_expected_steps():
    form, x = _recursive(halt_below=0.1), _input()
    y, routing = form(x, return_routing=True)
    for loss in (y.square().mean(), routing.expected_steps.mean()):
        (grad,) = torch.autograd.grad(loss, form.halting.confidence.bias, retain_graph=True)
        assert float(grad.abs()) > 0
    assert _recursive()(x, return_routing=True)[1].expected_steps is None


def test_a_cost_of_steps_makes_tokens_halt_earlier():
    form, x = _recursive(halt_below=0.1), _input()
    optimizer = torch.optim.Adam(form.halting.parameters(), 0.1)
    counts = []
    for _ in range(20):
        _, routing = form(x, return_routing=True)
        loss = routing.expected_steps.mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        counts.append(float(loss.detach()))
    assert counts[-1] < 0.6 * counts[0]
