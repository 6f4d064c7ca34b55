"""The dimension form against SPLs and attention written out."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from dynnsiha import DimensionDynSIHA
from dynnsiha.forms import HeadLayout, collapsed_share

WIDTH = 32


def _form(**options) -> DimensionDynSIHA:
    torch.manual_seed(0)
    return DimensionDynSIHA(WIDTH, 4, 2, **options)


def _input(seq_len: int = 37) -> Tensor:
    return torch.randn(2, seq_len, WIDTH, generator=torch.Generator().manual_seed(1))


def _spl(layer: nn.Module, x: Tensor, routed: Tensor | None = None) -> Tensor:
    """relu(x protoᵀ / sqrt(d) - gate) * (SiLU(x) muᵀ), written out."""
    proto, gate = layer.router.proto, layer.router.gate
    routed = x if routed is None else routed
    mask = (routed @ proto.T / x.shape[-1] ** 0.5 - gate).clamp(min=0)
    return mask * ((x * torch.sigmoid(x)) @ layer.mu.T)


def _written_out(form: DimensionDynSIHA, x: Tensor) -> Tensor:
    """Attention over four SPLs; heads one by one, without positions."""
    q, k, v = (_spl(layer, x) for layer in (form.qkv.q, form.qkv.k, form.qkv.v))
    future = torch.ones(x.shape[1], x.shape[1]).triu(1).bool()
    outs = []
    for head in range(4):
        queries, keys = q[..., head * 8 :][..., :8], k[..., head // 2 * 8 :][..., :8]
        logits = (queries @ keys.mT / 8**0.5).masked_fill(future, -torch.inf)
        outs.append(logits.softmax(-1) @ v[..., head // 2 * 8 :][..., :8])
    o = torch.cat(outs, -1)
    return _spl(form.output.proto, o, o / (o.square().mean(-1, keepdim=True) + 1e-6).sqrt())


def test_it_is_attention_between_four_spls():
    form, x = _form(rotary_base=None).double(), _input().double()
    torch.testing.assert_close(form(x), _written_out(form, x))


def test_defaults_are_one_head_as_wide_as_the_model():
    assert DimensionDynSIHA(WIDTH).layout == HeadLayout(1, 1, WIDTH)
    assert DimensionDynSIHA(WIDTH)(_input()).shape == _input().shape


@pytest.mark.parametrize("router", ["dot", "cpr", "capr"])
def test_routing_holds_the_masks_of_all_four(router):
    form, x = _form(router=router), _input()
    y, routing = form(x, return_routing=True)
    assert torch.equal(y, form(x))
    assert routing.qkv.shape == (2, 37, (4 + 2 * 2) * 8)
    assert routing.output.shape == x.shape
    assert torch.equal(routing.qkv[..., :32], form.qkv.q.router(x))
    assert torch.equal(routing.qkv[..., 48:], form.qkv.v.router(x))
    assert torch.equal(y == 0, routing.output == 0)


def test_collapse_counts_neurons_that_no_token_opens():
    form, x = _form(), _input()
    _, routing = form(x, return_routing=True)
    assert float(collapsed_share(routing.qkv, routing.output)) < 0.05
    with torch.no_grad():
        form.qkv.k.router.gate += 1e6  # 16 of 64 neurons of q, k, v
        form.output.proto.router.gate[:8] += 1e6  # 8 of 32
    _, routing = form(x, return_routing=True)
    assert float(collapsed_share(routing.qkv)) == pytest.approx(0.25, abs=0.04)
    closed = [
        not mask[..., j].any()
        for mask in (routing.qkv, routing.output)
        for j in range(mask.shape[-1])
    ]
    assert float(collapsed_share(routing.qkv, routing.output)) == pytest.approx(
        sum(closed) / len(closed)
    )
    with pytest.raises(ValueError, match="masks: give the routing"):
        collapsed_share()


def test_a_dead_neuron_stays_dead():
    """What the form is deprecated for: nothing trains a neuron that no token opens."""
    form, x = _form(), _input()
    with torch.no_grad():
        form.qkv.q.router.gate[3] = 1e6
    form(x).square().sum().backward()
    router = form.qkv.q.router
    assert float(router.gate.grad[3]) == 0
    assert router.proto.grad[3].abs().sum() == 0
    assert router.gate.grad.abs().sum() > 0


every_router = pytest.mark.parametrize("router", ["dot", "cpr", "capr"])


@every_router
@pytest.mark.parametrize("mask", ["relu", "softmax"])
def test_a_cached_decode_equals_the_full_forward(router, mask):
    form, x = _form(router=router, mask=mask).double(), _input().double()
    cache = form.new_cache(2, 37)
    parts = [form(x[:, :20], cache=cache)]
    parts += [form(x[:, t : t + 1], cache=cache) for t in range(20, 37)]
    torch.testing.assert_close(torch.cat(parts, 1), form(x))


@every_router
@pytest.mark.parametrize("mask", ["relu", "softmax"])
def test_nothing_leaks_from_the_future(router, mask):
    form, x = _form(router=router, mask=mask), _input()
    for position in (1, 20, 36):
        changed = x.clone()
        changed[:, position:] = 3 * x[:, position:].flip(1) + 1
        before, after = form(x), form(changed)
        assert torch.equal(before[:, :position], after[:, :position])
        assert not torch.equal(before[:, position:], after[:, position:])


def test_distinct_inputs_have_distinct_effective_weights():
    """y = diag(mask(x)) mu SiLU(x): the matrix itself, of two tokens."""
    layer, x = _form().qkv.q, _input()
    weights = [layer.router(x[0, t])[:, None] * layer.mu for t in (0, 1)]
    for t, weight in enumerate(weights):
        torch.testing.assert_close(weight @ F.silu(x[0, t]), layer(x[0, t]))
    assert not torch.allclose(*weights)


def test_training_features():
    form, x = _form(), _input()
    again = DimensionDynSIHA(WIDTH, 4, 2)
    again.load_state_dict(form.state_dict())
    assert torch.equal(again(x), form(x))
    with torch.autocast("cpu", torch.bfloat16):
        assert form(x).dtype == torch.bfloat16
    plain = torch.autograd.grad(form(x).square().sum(), list(form.parameters()))
    y = checkpoint(form, x, use_reentrant=False)
    saved = torch.autograd.grad(y.square().sum(), list(form.parameters()))
    assert all(torch.equal(*pair) for pair in zip(plain, saved, strict=True))
