"""PrototypeResident: the stream is the sum it stands for, alpha learns, and 0 is the ablation."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor, nn

from dynnsiha import PrototypeResident


def _inputs(layers: int = 4) -> Tensor:
    return torch.randn(layers, 2, 5, 6, generator=torch.Generator().manual_seed(0)).double()


def _stream(residents: list[PrototypeResident], inputs: Tensor) -> list[Tensor]:
    streams: list[Tensor] = []
    for resident, x in zip(residents, inputs, strict=True):
        streams.append(resident(x, streams[-1] if streams else None))
    return streams


def test_the_stream_is_the_discounted_sum_of_all_layers():
    residents = [PrototypeResident(alpha).double() for alpha in (0.9, 0.5, 0.25, 0.8)]
    inputs = _inputs()
    streams = _stream(residents, inputs)
    assert torch.equal(streams[0], inputs[0])
    expected = inputs[3] + 0.8 * inputs[2] + 0.8 * 0.25 * inputs[1] + 0.8 * 0.25 * 0.5 * inputs[0]
    torch.testing.assert_close(streams[3], expected, rtol=1e-6, atol=1e-6)


def test_alpha_starts_at_one_half_and_stays_inside_its_range():
    assert float(PrototypeResident().alpha.detach()) == 0.5
    resident = PrototypeResident()
    x, previous = _inputs(2).float()
    optimizer = torch.optim.SGD(resident.parameters(), lr=1e-2)
    values = []
    for _ in range(20):
        optimizer.zero_grad()
        (resident(x, previous) * previous).sum().neg().backward()  # rewards a larger alpha
        optimizer.step()
        values.append(float(resident.alpha.detach()))
    assert all(later > earlier for earlier, later in itertools.pairwise(values))
    assert 0.5 < values[0] < values[-1] < 1


@pytest.mark.parametrize("alpha", [0.0, 0.3, 0.999])
def test_the_initial_alpha_is_the_one_given(alpha):
    assert float(PrototypeResident(alpha).alpha.detach()) == pytest.approx(alpha, abs=1e-6)


def test_zero_is_the_ablation():
    resident = PrototypeResident(0)
    x, previous = _inputs(2)
    assert list(resident.parameters()) == []
    assert torch.equal(resident(x, previous), x)
    assert float(resident.alpha) == 0


def test_gradients_equal_finite_differences():
    resident = PrototypeResident(0.3).double()
    x, previous = _inputs(2).requires_grad_()

    def call(x, previous, logit):
        return torch.func.functional_call(resident, {"alpha_logit": logit}, (x, previous))

    assert torch.autograd.gradcheck(call, (x, previous, resident.alpha_logit))


def test_earlier_layers_learn_through_the_stream():
    residents = [PrototypeResident().double() for _ in range(4)]
    inputs = _inputs().requires_grad_()
    _stream(residents, inputs)[-1].sum().backward()
    shares = [float(part.flatten()[0]) for part in inputs.grad]
    assert shares == pytest.approx([0.125, 0.25, 0.5, 1.0])
    assert all(resident.alpha_logit.grad is not None for resident in residents[1:])


def test_tokens_do_not_see_each_other():
    resident = PrototypeResident().double()
    x, previous = _inputs(2)
    changed_x, changed_previous = x.clone(), previous.clone()
    changed_x[:, 3:] += 1
    changed_previous[:, 3:] -= 1
    before, after = resident(x, previous), resident(changed_x, changed_previous)
    assert torch.equal(before[:, :3], after[:, :3])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
def test_the_stream_keeps_the_dtype_of_x(dtype):
    x, previous = _inputs(2).to(dtype)
    assert PrototypeResident()(x, previous).dtype == dtype
    with torch.autocast("cpu", torch.bfloat16):
        assert PrototypeResident()(x, previous).dtype == dtype


def test_compiled_and_restored():
    source, target = PrototypeResident(0.7), PrototypeResident()
    target.load_state_dict(source.state_dict())
    x, previous = _inputs(2).float()
    compiled = torch.compile(target, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(x, previous), source(x, previous))
    nn.init.zeros_(target.alpha_logit)
    target.initial_alpha = 0.7
    target.reset_parameters()
    assert torch.equal(target(x, previous), source(x, previous))


@pytest.mark.parametrize("alpha", [-0.1, 1.0, float("nan")])
def test_an_alpha_out_of_range_is_named(alpha):
    with pytest.raises(ValueError, match=rf"alpha={alpha}: must be at least 0 and below 1"):
        PrototypeResident(alpha)


def test_shapes_must_agree():
    x = torch.zeros(2, 5, 6)
    with pytest.raises(ValueError, match=r"previous has shape \[2, 4, 6\]: must be that of x"):
        PrototypeResident()(x, x[:, :4])
