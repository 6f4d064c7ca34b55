"""Every form in place of attention in a stock transformer, and under ``torch.compile``."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from dynnsiha import (
    AttentionPoolCompress,
    ConvLinearCompress,
    DimensionDynSIHA,
    DynNSIHA,
    DynNSIHAConfig,
    DynNSIHALanguageModel,
    DynSIHA,
    FlatDynSIHA,
    GroupedMLPCompress,
    MeanPoolCompress,
    NativeSparseAttention,
    NSAConfig,
    RecursiveDynSIHA,
    SingleProjectionCompress,
    TransformerCompress,
)
from dynnsiha.forms import AttentionLayer, DenseCore, HeadLayout, SparseCore, linear_projections

from .variants import EXACT, HYBRID, VARIANTS, every_variant

WIDTH = 32
NETWORKS = (
    MeanPoolCompress,
    ConvLinearCompress,
    AttentionPoolCompress,
    GroupedMLPCompress,
    SingleProjectionCompress,
    TransformerCompress,
)
EXPERTS: dict[str, Any] = {"experts": 8, "expert_width": 24}


def _dense() -> AttentionLayer:
    layout = HeadLayout(2, 1, 16)
    return AttentionLayer(layout, linear_projections(WIDTH, layout), DenseCore())


def _sparse_experts() -> nn.Module:
    layout = HeadLayout(2, 2, 16)
    return FlatDynSIHA(WIDTH, 2, core=lambda: SparseCore(WIDTH, layout, EXACT), **EXPERTS)


FORMS: dict[str, Callable[[], nn.Module]] = {
    "dense": _dense,
    "dynsiha": partial(DynSIHA, WIDTH, 2),
    "dynsiha cosine": partial(DynSIHA, WIDTH, 4, 2, routing="cosine"),
    "dimension": partial(DimensionDynSIHA, WIDTH, 2),
    "dimension cpr": partial(DimensionDynSIHA, WIDTH, 2, router="cpr"),
    "dimension capr softmax": partial(DimensionDynSIHA, WIDTH, 2, router="capr", mask="softmax"),
    "dynnsiha exact": partial(DynNSIHA, WIDTH, 2, config=EXACT),
    "dynnsiha hybrid": partial(DynNSIHA, WIDTH, 2, config=HYBRID),
    "dynnsiha dynamic": partial(DynNSIHA, WIDTH, 2, config=replace(HYBRID, top_p=0.5)),
    "dynnsiha reference": partial(DynNSIHA, WIDTH, 2, config=HYBRID, backend="reference"),
    "nsa per head, trained choice": partial(
        *(NativeSparseAttention, WIDTH, 4, 2),
        config=replace(EXACT, per_head_lists=True, differentiable_topk=True),
    ),
    "flat": partial(FlatDynSIHA, WIDTH, 2, **EXPERTS),
    "flat sparse": _sparse_experts,
    "flat resident": partial(FlatDynSIHA, WIDTH, alpha=0.5, active_experts=3, **EXPERTS),
    "flat capr": partial(FlatDynSIHA, WIDTH, 2, router="capr", **EXPERTS),
    "recursive": partial(RecursiveDynSIHA, WIDTH, 2, steps=2, **EXPERTS),
    "recursive softmax": partial(
        *(RecursiveDynSIHA, WIDTH, 2), router="dot", mask="softmax", alpha=0.0, **EXPERTS
    ),
    "recursive halting": partial(RecursiveDynSIHA, WIDTH, 2, steps=3, halt_below=0.1, **EXPERTS),
} | {
    f"nsa {network.__name__}": partial(
        NativeSparseAttention, WIDTH, 4, 2, config=EXACT, compression=network
    )
    for network in NETWORKS
}
every_form = pytest.mark.parametrize("name", FORMS)


def _form(name: str) -> nn.Module:
    torch.manual_seed(0)
    return FORMS[name]()


def _input(seq_len: int = 75) -> Tensor:
    return torch.randn(2, seq_len, WIDTH, generator=torch.Generator().manual_seed(1))


def _results(call: Callable[[Tensor], Tensor], module: nn.Module) -> tuple[Tensor, ...]:
    """y, and the gradients of x and of every parameter."""
    x = _input().requires_grad_()
    y = call(x)
    return (y, *torch.autograd.grad(y.square().mean(), (x, *module.parameters())))


class _InPlaceOfAttention(nn.Module):
    """In the place of ``nn.MultiheadAttention`` in torch's own encoder layer."""

    batch_first = True
    in_proj_bias = None  # tells torch that its fused kernel does not apply

    def __init__(self, form: nn.Module) -> None:
        super().__init__()
        self.form = form

    def forward(self, query: Tensor, *_: Any, **__: Any) -> tuple[Tensor, None]:
        return self.form(query), None


def _stock_layer(form: nn.Module, width: int) -> nn.TransformerEncoderLayer:
    """torch's encoder layer with ``form`` as its attention."""
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(width, 2, 64, dropout=0.0, batch_first=True, norm_first=True)
    layer.self_attn = _InPlaceOfAttention(form)
    return layer


def _stock_output(layer: nn.TransformerEncoderLayer, form: nn.Module, x: Tensor) -> Tensor:
    """What that layer computes, written out."""
    stream = x + form(layer.norm1(x))
    return stream + layer.linear2(layer.linear1(layer.norm2(stream)).relu())


@every_form
def test_it_stands_in_torchs_own_transformer_layer(name):
    form, x = _form(name), _input()
    layer = _stock_layer(form, WIDTH)
    wanted = _stock_output(layer, form, x)
    with torch.no_grad():
        torch.testing.assert_close(layer.eval()(x), wanted)
    y = layer.train()(x)
    torch.testing.assert_close(y, wanted)
    grads = torch.autograd.grad(y.square().mean(), list(layer.parameters()))
    assert all(bool(grad.isfinite().all()) and bool(grad.any()) for grad in grads)


class _PlainBlock(nn.Module):
    """A block as most models write it; ``attention`` takes x alone."""

    def __init__(self, attention: nn.Module) -> None:
        super().__init__()
        self.attention = attention
        self.before, self.between = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.mlp = nn.Sequential(nn.Linear(WIDTH, 64), nn.GELU(), nn.Linear(64, WIDTH))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(self.before(x))
        return x + self.mlp(self.between(x))


class _PlainAttention(nn.Module):
    """Causal self-attention as most models write it."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.out = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (part.unflatten(-1, (2, -1)).transpose(1, 2) for part in self.qkv(x).chunk(3, -1))
        o = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        return self.out(o.transpose(1, 2).flatten(-2))


@every_form
def test_a_model_written_by_hand_trains_with_it_instead_of_its_attention(name):
    """All blocks at once, recomputed and under autocast, from one state to another."""
    torch.manual_seed(0)
    model = nn.Sequential(*(_PlainBlock(_PlainAttention()) for _ in range(2)))
    for block in model:
        block.attention = FORMS[name]()
    state = {key: value.clone() for key, value in model.state_dict().items()}
    x = _input()
    target = x.roll(1, 1)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    losses = []
    for _ in range(12):
        y = x
        with torch.autocast("cpu", torch.bfloat16):
            for block in model:
                y = checkpoint(block, y, use_reentrant=False)
            loss = (y.float() - target)[:, 1:].square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.85 * losses[0]
    trained = model(x)
    model.load_state_dict(state)
    assert not torch.equal(model(x), trained)


# Lists are chosen by operations whose sizes depend on the data: the graph is cut around the core.
IN_ONE_GRAPH = [
    *("dense", "dynsiha", "dynsiha cosine", "dimension", "dimension cpr", "dimension capr softmax"),
    *("dynnsiha reference", "flat", "flat resident", "flat capr"),
    *("recursive", "recursive softmax", "recursive halting"),
]


@every_form
def test_compiled_it_computes_the_same(name):
    form = _form(name)
    torch.compiler.reset()
    compiled = torch.compile(form, backend="aot_eager", fullgraph=name in IN_ONE_GRAPH)
    torch.testing.assert_close(_results(compiled, form), _results(form, form), rtol=1e-4, atol=1e-5)
    assert len(dict(form.named_parameters())) == len(dict(compiled.named_parameters()))


@every_variant
def test_a_compiled_language_model_has_the_same_loss_and_gradients(name):
    torch.manual_seed(0)
    options = {"d_model": WIDTH, "layers": 2, "heads": 2} | VARIANTS[name]
    model = DynNSIHALanguageModel(DynNSIHAConfig(50, 20, **options))
    torch.compiler.reset()
    compiled = torch.compile(model, backend="aot_eager")
    generator = torch.Generator().manual_seed(1)
    ids = [torch.randint(0, high, (2, 70), generator=generator) for high in (50, 20)]
    results = []
    for call in (model, compiled):
        logits = call(*ids)
        loss = F.cross_entropy(logits[:, :-1].flatten(0, 1), ids[0][:, 1:].flatten())
        results.append((logits, *torch.autograd.grad(loss, list(model.parameters()))))
    torch.testing.assert_close(*results, rtol=1e-4, atol=1e-5)


def test_the_configuration_may_be_the_papers():
    """Defaults of the paper and of DynNSIHA take a length that is no multiple of anything."""
    for form in (NativeSparseAttention(WIDTH, 4, 1, config=NSAConfig.paper()), DynNSIHA(WIDTH)):
        assert form(_input(131)).shape == (2, 131, WIDTH)
