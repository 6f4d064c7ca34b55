"""The attention forms against independent computations, and what every form must keep."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from dynnsiha import (
    ConvLinearCompress,
    DynNSIHA,
    DynSIHA,
    NativeSparseAttention,
    NSAConfig,
    TransformerCompress,
)
from dynnsiha.forms import (
    AttentionLayer,
    DenseCore,
    HeadLayout,
    linear_projections,
    synthesis_projections,
)
from dynnsiha.forms.nsa import BranchGates, SparseCore
from dynnsiha.synthesis import activation_rate

WIDTH = 32
EXACT = NSAConfig(
    block_size=16, compress_block=16, compress_stride=16, top_n=4, local_blocks=1, window=24
)
OVERLAPPING = replace(EXACT, compress_block=8, compress_stride=4)
HYBRID = replace(EXACT, query_tile=4, private_blocks=1)
FORMS = {
    "dynsiha": lambda: DynSIHA(WIDTH, 2),
    "dynsiha values": lambda: DynSIHA(WIDTH, 4, 2, synthesis="values"),
    "nsa": lambda: NativeSparseAttention(WIDTH, 4, 2, config=OVERLAPPING),
    "nsa convolution": lambda: NativeSparseAttention(
        WIDTH, 4, 2, config=OVERLAPPING, compression=ConvLinearCompress
    ),
    "nsa transformer": lambda: NativeSparseAttention(
        WIDTH, 4, 2, config=OVERLAPPING, compression=TransformerCompress
    ),
    "nsa per head, trained choice": lambda: NativeSparseAttention(
        *(WIDTH, 4, 2),
        config=replace(OVERLAPPING, per_head_lists=True, differentiable_topk=True),
    ),
    "dynnsiha exact": lambda: DynNSIHA(WIDTH, 2, config=EXACT),
    "dynnsiha hybrid": lambda: DynNSIHA(WIDTH, 2, config=HYBRID),
    "dynnsiha hybrid reference": lambda: DynNSIHA(WIDTH, 2, config=HYBRID, backend="reference"),
    "dynnsiha softmax cosine": lambda: DynNSIHA(
        WIDTH, 4, 2, config=HYBRID, gates="softmax", routing="cosine"
    ),
    "dynnsiha values": lambda: DynNSIHA(WIDTH, 4, 2, config=HYBRID, synthesis="values"),
}
every_form = pytest.mark.parametrize("name", FORMS)


def _form(name: str) -> AttentionLayer:
    torch.manual_seed(0)
    return FORMS[name]()


def _input(seq_len: int = 111, batch: int = 2) -> Tensor:
    return torch.randn(batch, seq_len, WIDTH, generator=torch.Generator().manual_seed(1))


def _rotated(x: Tensor) -> Tensor:
    """Rotary positions by complex multiplication, x [B, T, heads, D]."""
    seq_len, half = x.shape[1], x.shape[-1] // 2
    frequency = torch.tensor([10_000 ** (-i / half) for i in range(half)], dtype=x.dtype)
    angle = torch.arange(seq_len, dtype=x.dtype)[:, None] * frequency
    phase = torch.polar(torch.ones_like(angle), angle)
    turned = torch.complex(x[..., :half], x[..., half:]) * phase[:, None]
    return torch.cat((turned.real, turned.imag), dim=-1)


def _masked_attention(q: Tensor, k: Tensor, v: Tensor, allowed: Tensor) -> Tensor:
    """Softmax attention written out, q [B, T, H, D], allowed [T, T]."""
    group = q.shape[2] // k.shape[2]
    k, v = (part.repeat_interleave(group, dim=2) for part in (k, v))
    logits = torch.einsum("bqhd,bkhd->bhqk", q, k) / q.shape[-1] ** 0.5
    weights = logits.masked_fill(~allowed, -torch.inf).softmax(dim=-1)
    return torch.einsum("bhqk,bkhd->bqhd", weights, v)


def _written_out(layer: AttentionLayer, x: Tensor, allowed: Tensor) -> Tensor:
    """What the layer computes if its core attends to what is allowed, by its own projections."""
    layout = layer.layout
    heads = layer.qkv(x).unflatten(-1, (-1, layout.head_dim))
    q = heads[:, :, : layout.q_heads]
    k = heads[:, :, layout.q_heads : layout.q_heads + layout.kv_heads]
    v = heads[:, :, layout.q_heads + layout.kv_heads :]
    o = _masked_attention(_rotated(q), _rotated(k), v, allowed)
    return layer.output(o.flatten(-2))


def _causal(seq_len: int, window: int | None = None) -> Tensor:
    distance = torch.arange(seq_len)[:, None] - torch.arange(seq_len)
    return (distance >= 0) & (distance < (seq_len if window is None else window))


def _open_only(layer: AttentionLayer, branch: int) -> None:
    """Set the gates to 1 for one branch and 0 for the others."""
    assert isinstance(layer.core, SparseCore)
    linear = layer.core.gates.linear
    nn.init.zeros_(linear.weight)
    bias = torch.full((3,), -1e4)
    bias[branch] = 1e4
    with torch.no_grad():
        linear.bias.copy_(bias.repeat(layer.layout.q_heads))


@pytest.mark.parametrize(("heads", "kv_heads", "head_dim"), [(1, None, None), (4, 2, 6)])
def test_dynsiha_equals_attention_written_out(heads, kv_heads, head_dim):
    layer = DynSIHA(WIDTH, heads, kv_heads, head_dim).double()
    x = _input(37).double()
    torch.testing.assert_close(layer(x), _written_out(layer, x, _causal(37)))


def test_values_alone_are_synthesised():
    layer = DynSIHA(WIDTH, 4, 2, synthesis="values").double()
    x = _input().double()
    q, k, v = layer.layout.split(layer.qkv(x))
    plain = x @ layer.qkv.plain.weight.T
    torch.testing.assert_close(q.flatten(-2), plain[..., : q[0, 0].numel()])
    torch.testing.assert_close(k.flatten(-2), plain[..., q[0, 0].numel() :])
    sbl = layer.qkv.values
    score = sbl.score_scale * x @ (sbl.mu * F.softplus(sbl.sigma_raw)).T / WIDTH**0.5
    torch.testing.assert_close(v.flatten(-2), F.relu(score - sbl.gate) * (x @ sbl.mu.T + sbl.bias))


def test_defaults_are_one_head_as_wide_as_the_model():
    assert DynSIHA(WIDTH).layout == DynNSIHA(WIDTH).layout == HeadLayout(1, 1, WIDTH)
    assert DynNSIHA(WIDTH, 4).layout == HeadLayout(4, 4, WIDTH // 4)
    assert DynNSIHA(WIDTH).core.config == NSAConfig.word_guided(1, 1)
    assert NativeSparseAttention(WIDTH, 4, 2).core.config == NSAConfig.paper()


@pytest.mark.parametrize("backend", ["reference", "blockwise"])
def test_selecting_every_block_is_dense_attention(backend):
    config = replace(HYBRID, top_n=8)  # 111 tokens are 7 blocks
    layer = DynNSIHA(WIDTH, 4, 2, config=config, backend=backend).double()
    _open_only(layer, branch=1)
    x = _input().double()
    torch.testing.assert_close(layer(x), _written_out(layer, x, _causal(111)))


@pytest.mark.parametrize("backend", ["reference", "blockwise"])
def test_the_sliding_branch_alone_is_a_window(backend):
    layer = NativeSparseAttention(WIDTH, 4, 2, config=EXACT, backend=backend).double()
    _open_only(layer, branch=2)
    x = _input().double()
    torch.testing.assert_close(layer(x), _written_out(layer, x, _causal(111, window=24)))


@pytest.mark.parametrize("name", [name for name in FORMS if "nsa" in name])
def test_backends_agree_in_output_and_gradients(name):
    layer = _form(name).double()
    results = []
    for backend in ("reference", "blockwise"):
        layer.core.backend = backend
        x = _input().double().requires_grad_()
        y = layer(x)
        results.append((y, *torch.autograd.grad(y.square().sum(), (x, *layer.parameters()))))
    for reference, blockwise in zip(*results, strict=True):
        torch.testing.assert_close(reference, blockwise)


@every_form
def test_gradients_reach_every_parameter(name):
    layer = _form(name)
    x = _input().requires_grad_()
    layer(x).square().mean().backward()
    for parameter_name, parameter in layer.named_parameters():
        assert parameter.grad is not None, parameter_name
        assert parameter.grad.isfinite().all(), parameter_name
        assert parameter.grad.abs().sum() > 0, parameter_name
    assert x.grad.isfinite().all()


def _reaches_back(layer: nn.Module, position: int) -> bool:
    """Whether other tokens from ``position`` on change any earlier output by even one bit."""
    x = _input()
    changed = x.clone()
    changed[:, position:] = -3 * x[:, position:].flip(1)
    before, after = layer(x), layer(changed)
    assert not torch.equal(before[:, position:], after[:, position:])
    return not torch.equal(before[:, :position], after[:, :position])


@every_form
@pytest.mark.parametrize("position", [1, 15, 16, 50, 66, 110])
def test_later_tokens_never_change_earlier_outputs(name, position):
    with torch.no_grad():
        assert not _reaches_back(_form(name), position)


def test_a_core_that_sees_the_future_fails_that_check():
    def bidirectional(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        q, k, v = (part.transpose(1, 2) for part in (q, k, v))
        return F.scaled_dot_product_attention(q, k, v).transpose(1, 2)

    layout = HeadLayout(2, 2, 16)
    layer = AttentionLayer(layout, linear_projections(WIDTH, layout), DenseCore(bidirectional))
    with torch.no_grad():
        assert _reaches_back(layer, 50)


@pytest.mark.parametrize("name", ["dynsiha", "dynnsiha exact", "dynnsiha hybrid"])
def test_closed_synthesis_gives_exact_zeros(name):
    layer = _form(name)
    nn.init.constant_(layer.qkv.gate, 1e6)
    x = _input().requires_grad_()
    y, routing = layer(x, return_routing=True)
    assert float(activation_rate(routing.qkv)) == 0.0
    assert torch.equal(y, torch.zeros_like(y))
    y.sum().backward()
    assert x.grad.isfinite().all()


@every_form
def test_routing_shows_what_the_input_decided(name):
    layer = _form(name)
    x = _input()
    y, routing = layer(x, return_routing=True)
    assert torch.equal(y, layer(x))
    layout = layer.layout
    if name.startswith("nsa"):
        assert routing.qkv is None
        assert routing.output is None
    else:
        of_values = layout.kv_heads * layout.head_dim
        neurons = of_values if name.endswith("values") else layout.qkv_width
        assert routing.qkv.shape == (2, 111, neurons)
        assert routing.output.shape == x.shape
        assert 0.3 < float(activation_rate(routing.qkv)) < 0.8
    if name.startswith("dynsiha"):
        assert routing.gates is None
        assert routing.attention is None
    else:
        lists = layout.q_heads if "per head" in name else layout.kv_heads
        assert routing.gates.shape == (2, 111, layout.q_heads, 3)
        assert routing.attention.block_counts.shape == (2, 111, lists)


@pytest.mark.parametrize("kind", ["sigmoid", "softmax"])
def test_gates_start_with_the_sliding_branch(kind):
    torch.manual_seed(0)
    gates = BranchGates(WIDTH, 3, kind)(_input()).detach()
    assert gates.shape == (2, 111, 3, 3)
    assert gates.min() > 0
    assert gates.max() < 1
    mean = gates.mean(dim=(0, 1, 2))
    assert mean[2] > 0.8
    assert mean[:2].max() < 0.2
    total = gates.sum(dim=-1)
    assert torch.allclose(total, torch.ones_like(total)) is (kind == "softmax")


@pytest.mark.parametrize("kind", ["sigmoid", "softmax"])
def test_gates_may_start_even(kind):
    torch.manual_seed(0)
    gates = BranchGates(WIDTH, 3, kind)
    gates.start("even")
    mean = gates(_input()).detach().mean(dim=(0, 1, 2))
    torch.testing.assert_close(mean, torch.full_like(mean, mean.mean()), atol=0.05, rtol=0)
    assert abs(mean.mean() - (0.5 if kind == "sigmoid" else 1 / 3)) < 0.02


def test_an_unknown_kind_of_gates_is_named() -> None:
    kind: Any = "tanh"
    with pytest.raises(ValueError, match="gates='tanh': must be 'sigmoid' or 'softmax'"):
        DynNSIHA(WIDTH, gates=kind)


def test_softmax_gates_give_absent_branches_nothing():
    gates = BranchGates(WIDTH, 2, "softmax", ("compressed", "sliding"))(_input())
    assert torch.equal(gates[..., 1], torch.zeros_like(gates[..., 1]))
    torch.testing.assert_close(gates.sum(dim=-1), torch.ones(2, 111, 2))


@pytest.mark.parametrize("name", ["dynsiha", "dynnsiha exact"])
def test_rotary_positions_may_start_anywhere(name):
    layer = _form(name).double()
    x = _input(64).double()
    torch.testing.assert_close(layer(x), layer(x, torch.arange(500, 564)))
    assert not torch.allclose(layer(x), layer(x, torch.arange(0, 640, 10)))
    per_sequence = torch.stack((torch.arange(64), torch.arange(0, 640, 10)))
    both = layer(x, per_sequence)
    torch.testing.assert_close(both[1:], layer(x[1:], per_sequence[1]))


def test_without_rotary_dense_attention_forgets_the_order():
    layer = DynSIHA(WIDTH, rotary_base=None).double()
    x = _input(20).double()
    shuffled = torch.cat((x[:, torch.randperm(19)], x[:, 19:]), dim=1)
    torch.testing.assert_close(layer(x)[:, -1], layer(shuffled)[:, -1])
    assert not torch.allclose(*(DynSIHA(WIDTH).double()(part)[:, -1] for part in (x, shuffled)))


@every_form
def test_float32_follows_float64(name):
    layer = _form(name)
    x = _input()
    single, double = layer(x), layer.double()(x.double())
    assert double.dtype == torch.float64
    torch.testing.assert_close(single.double(), double, rtol=1e-3, atol=1e-4)


@every_form
def test_bfloat16_autocast_trains(name):
    layer = _form(name)
    x = _input()
    with torch.autocast("cpu", torch.bfloat16):
        y = layer(x)
    assert y.dtype == torch.bfloat16
    y.float().square().mean().backward()
    assert all(bool(p.grad.isfinite().all()) for p in layer.parameters())
    exact = layer(x).detach()
    error = (y.detach().float() - exact).norm() / exact.norm()
    assert float(error) < 0.2  # bfloat16 may choose other blocks where two are nearly equal


@every_form
def test_bfloat16_parameters_keep_their_dtype(name):
    layer = _form(name).bfloat16()
    y = layer(_input().bfloat16())
    assert y.dtype == torch.bfloat16
    assert y.isfinite().all()


@every_form
def test_activation_checkpointing_repeats_the_gradients(name):
    layer = _form(name)
    gradients = []
    for recompute in (False, True):
        x = _input().requires_grad_()
        y = checkpoint(layer, x, use_reentrant=False) if recompute else layer(x)
        gradients.append(torch.autograd.grad(y.square().sum(), (x, *layer.parameters())))
    assert all(torch.equal(*pair) for pair in zip(*gradients, strict=True))


@every_form
def test_state_dict_round_trip(name):
    source = _form(name)
    target = FORMS[name]()
    x = _input()
    assert not torch.equal(source(x), target(x))
    target.load_state_dict(source.state_dict())
    assert torch.equal(source(x), target(x))


@pytest.mark.parametrize("seq_len", [1, 15, 16, 17])
@every_form
def test_short_sequences(name, seq_len):
    x = _input(seq_len).requires_grad_()
    y = _form(name)(x)
    y.sum().backward()
    assert y.isfinite().all()
    assert x.grad.isfinite().all()


def test_projections_have_the_layouts_width():
    layout = HeadLayout(4, 2, 6)
    for make in (
        lambda: linear_projections(WIDTH, layout),
        lambda: synthesis_projections(WIDTH, layout, init="notes", routing="dot"),
    ):
        qkv, output = make()
        assert qkv(torch.zeros(1, WIDTH)).shape == (1, 48)
        assert output(torch.zeros(1, 24)).shape == (1, WIDTH)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: DynSIHA(WIDTH, 5), r"q_heads=5: must divide d_model=32, or give head_dim"),
        (lambda: DynNSIHA(WIDTH, 0), r"q_heads=0: must"),
        (lambda: NativeSparseAttention(WIDTH, 4, 3), r"kv_heads=3: must divide q_heads=4"),
        (lambda: DynSIHA(WIDTH, 4, 0), r"kv_heads=0: must be at least 1"),
        (lambda: DynSIHA(WIDTH, 2, synthesis="keys"), r"synthesis='keys': must be one of"),
        (lambda: DynSIHA(WIDTH, 2, head_dim=5), r"head_dim=5: rotary .* rotary_base=None"),
    ],
)
def test_bad_arguments_name_the_fix(make, message):
    with pytest.raises(ValueError, match=message):
        make()
