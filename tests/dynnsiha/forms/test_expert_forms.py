"""The forms with experts: Flat and Recursive against the written-out computation, and in use."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile
from torch.utils.checkpoint import checkpoint

from dynnsiha import FlatDynSIHA, NSAConfig, RecursiveDynSIHA
from dynnsiha.forms import HeadLayout, RefinementRouting, SparseCore, collapsed_share
from dynnsiha.forms.experts import ExpertLinear, ExpertRouter
from dynnsiha.forms.refine import RefiningForm

from .written_out import composed, refined

WIDTH = 32
SPARSE = NSAConfig(block_size=16, compress_block=8, compress_stride=4, top_n=3, local_blocks=1)
SMALL = {"experts": 8, "expert_width": 24}
FORMS = {
    "flat": lambda: FlatDynSIHA(WIDTH, 4, 2, **SMALL),
    "flat resident": lambda: FlatDynSIHA(WIDTH, alpha=0.5, blocks=3, active_experts=3, **SMALL),
    "flat capr": lambda: FlatDynSIHA(WIDTH, 2, router="capr", **SMALL),
    "recursive": lambda: RecursiveDynSIHA(WIDTH, 4, 2, steps=3, **SMALL),
    "recursive softmax": lambda: RecursiveDynSIHA(
        WIDTH, 2, router="dot", mask="softmax", alpha=0.0, **SMALL
    ),
    "recursive halting": lambda: RecursiveDynSIHA(WIDTH, 2, steps=3, halt_below=0.1, **SMALL),
    "recursive sparse": lambda: RecursiveDynSIHA(
        WIDTH,
        2,
        steps=2,
        core=lambda: SparseCore(WIDTH, HeadLayout(2, 2, 16), SPARSE),
        **SMALL,
    ),
}
every_form = pytest.mark.parametrize("name", FORMS)


def _form(name: str) -> RefiningForm:
    torch.manual_seed(0)
    return FORMS[name]()


def _input(seq_len: int = 45, batch: int = 2) -> Tensor:
    return torch.randn(batch, seq_len, WIDTH, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize(
    "name", ["flat", "flat resident", "flat capr", "recursive", "recursive softmax"]
)
def test_it_equals_every_token_computing_with_its_own_matrices(name):
    form, x = _form(name).double(), _input(7).double()
    torch.testing.assert_close(form(x), refined(list(form.sequence), x))


@every_form
def test_later_tokens_never_change_earlier_outputs(name):
    """Up to rounding, which depends on how many rows an expert multiplies at once."""
    form, x = _form(name).double(), _input().double()
    full = form(x)
    for position in (1, 16, 30, 44):
        changed = x.clone()
        changed[:, position:] = -3 * x[:, position:].flip(1)
        other = form(changed)
        torch.testing.assert_close(other[:, :position], full[:, :position], rtol=1e-10, atol=1e-12)
        assert not torch.allclose(other[:, position:], full[:, position:])


@every_form
def test_no_gradient_flows_back_from_an_output_to_a_later_input(name):
    form, x = _form(name), _input().requires_grad_()
    (grad,) = torch.autograd.grad(form(x)[:, :20].square().sum(), x)
    assert not grad[:, 20:].any()
    assert grad[:, :20].abs().sum(-1).all()


def test_experts_of_a_block_are_never_used_by_another():
    form, x = _form("flat"), _input()
    y, before = form(x, return_routing=True)
    with torch.no_grad():
        for bank in (form.blocks[1].heads.qkv, form.blocks[1].mlp.output):
            bank.weight.mul_(2.0)
    other, after = form(x, return_routing=True)
    assert not torch.allclose(y, other)
    first, same = before.blocks[0], after.blocks[0]
    assert torch.equal(first.mlp.mixtures[-1], same.mlp.mixtures[-1])
    assert torch.equal(first.heads.experts.mixtures[-1], same.heads.experts.mixtures[-1])
    own = {id(p) for p in form.blocks[0].parameters()}
    assert own.isdisjoint(id(p) for p in form.blocks[1].parameters())
    # The first block alone: no gradient reaches the second one's experts.
    used = (
        before.blocks[0].heads.experts.mixtures[-1].sum() + before.blocks[0].mlp.mixtures[0].sum()
    )
    grads = torch.autograd.grad(used, list(form.blocks[1].parameters()), allow_unused=True)
    assert all(grad is None for grad in grads)


@every_form
def test_routing_says_what_the_losses_need(name):
    form, x = _form(name), _input()
    y, routing = form(x, return_routing=True)
    assert isinstance(routing, RefinementRouting)
    assert torch.equal(y, form(x))
    assert len(routing.blocks) == len(form.sequence)
    loss = y.square().mean()
    for block, made in zip(form.sequence, routing.blocks, strict=True):
        for experts, router in (
            (made.heads.experts, block.heads.router),
            (made.mlp, block.mlp.router),
        ):
            k = router.active
            assert experts.logits.shape == (2, 45, 8)
            assert experts.indices.shape == experts.weights.shape == (2, 45, k)
            assert (experts.weights >= 0).all()
            best = experts.logits.sort(-1, descending=True).indices[..., :k]
            assert torch.equal(best, experts.indices)
            spread = experts.expert_weights
            assert spread.shape == (2, 45, 8)
            torch.testing.assert_close(spread.sum(-1), experts.weights.sum(-1))
            assert 0 <= float(collapsed_share(spread)) < 0.7
            # dL/dy of every mixture is what surprise-aware shaping reads.
            grads = torch.autograd.grad(loss, experts.mixtures, retain_graph=True)
            assert all(grad.abs().sum() > 0 for grad in grads)
    if name == "recursive sparse":
        assert routing.blocks[0].heads.attention.block_counts.shape == (2, 45, 2)


@pytest.mark.parametrize("active", [1, 2, 4, 5, 8])
@pytest.mark.parametrize("mask", ["relu", "softmax"])
@pytest.mark.parametrize("router", ["dot", "cpr", "capr"])
def test_a_router_takes_the_best_experts_with_their_own_weights(router, mask, active):
    """Weights and their gradients beside those of all experts, by sorting; some open none."""
    torch.manual_seed(0)
    chosen = ExpertRouter(WIDTH, 8, active, router=router, mask=mask).double()
    with torch.no_grad():
        chosen.prototypes.gate += 1
    x = _input().double().requires_grad_()
    choice = chosen(x)
    logits = chosen.prototypes.logits(x)
    order = logits.sort(-1, descending=True).indices[..., :active]
    assert torch.equal(choice.indices, order)
    weights = chosen.prototypes.weights(logits).gather(-1, order)
    torch.testing.assert_close(choice.weights, weights)
    upstream = torch.randn_like(weights)
    leaves = (x, *chosen.parameters())
    grads = [torch.autograd.grad((w * upstream).sum(), leaves) for w in (choice.weights, weights)]
    torch.testing.assert_close(*grads)


def test_the_mixture_is_the_weighted_sum_of_the_experts_outputs():
    form, x = _form("flat").double(), _input(9).double()
    _, routing = form(x, return_routing=True)
    block, made = form.blocks[0], routing.blocks[0]
    normal = block.heads_norm(x)
    outputs = torch.einsum("btd,edh->bteh", normal, block.heads.qkv.weight)
    wanted = (made.heads.experts.expert_weights[..., None] * outputs).sum(2)
    torch.testing.assert_close(made.heads.experts.mixtures[0], wanted)


@pytest.mark.parametrize("name", ["flat", "flat resident", "recursive", "recursive softmax"])
def test_distinct_inputs_have_distinct_effective_weights(name):
    """Every token's own matrices of each block: to q, k, v, back, and of its MLP."""
    form, x = _form(name).double(), _input(9).double()
    _, routing = form(x, return_routing=True)
    stream = x
    for block, made in zip(form.sequence, routing.blocks, strict=True):
        heads, mlp = made.heads.experts, made.mlp
        normal = block.heads_norm(stream)
        attended = heads.mixtures[-1]
        matrices = []
        for t in range(9):
            to_heads, back, to_output = (
                composed(bank.weight, experts.expert_weights[0, t])
                for bank, experts in (
                    (block.heads.qkv, heads),
                    (block.heads.output, heads),
                    (block.mlp.output, mlp),
                )
            )
            torch.testing.assert_close(to_heads @ normal[0, t], heads.mixtures[0][0, t])
            matrices.append((to_heads, back, to_output))
        for first, second in itertools.combinations(matrices, 2):
            assert all(not torch.allclose(*pair) for pair in zip(first, second, strict=True))
        stream = stream + attended + mlp.mixtures[-1]


def _largest_allocation(call: Callable[[], Any]) -> int:
    """Most bytes that any one operation adds to the memory in use, inside others too."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as recorded:
        call()
    return max(event.self_cpu_memory_usage for event in recorded.events())


def test_the_recorder_sees_weights_per_token():
    x, bank = torch.ones(5, 6, 2), torch.ones(2, 70, 80)
    found = _largest_allocation(lambda: torch.einsum("bte,edh->btdh", x, bank).sum())
    assert found == 4 * 5 * 6 * 70 * 80


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("kind", [FlatDynSIHA, RecursiveDynSIHA])
def test_no_weights_per_token_are_ever_made(kind, dtype):
    batch, seq_len, width, experts, active = 2, 64, 64, 16, 2
    torch.manual_seed(0)
    form = kind(width, experts=experts, active_experts=active, expert_width=128).to(dtype)
    x = torch.randn(batch, seq_len, width, dtype=dtype, requires_grad=True)
    found = _largest_allocation(lambda: form(x).square().sum().backward())
    bank = experts * width * 3 * width  # the widest: q, k and v of one head
    # Rows of all active experts; padded to the longest group where torch does not serve float64.
    rows = (1 if dtype == torch.float32 else 6) * batch * seq_len * active * 3 * width
    assert found <= dtype.itemsize * max(bank, rows)
    assert found < dtype.itemsize * batch * seq_len * width * 128 / 3


@every_form
def test_a_cached_decode_equals_the_full_forward(name):
    form, x = _form(name), _input()
    cache = form.new_cache(2, 45)
    parts = [form(x[:, :20], cache=cache)]
    assert cache.lengths == (20, 20)
    parts += [form(x[:, t : t + 1], cache=cache) for t in range(20, 45)]
    torch.testing.assert_close(torch.cat(parts, 1), form(x), rtol=1e-4, atol=2e-5)
    assert cache.nbytes == sum(one.nbytes for one in cache)
    cache.truncate([30, 30])
    again = form(x[:, 30:], cache=cache)
    torch.testing.assert_close(again, torch.cat(parts, 1)[:, 30:], rtol=1e-4, atol=2e-5)
    assert not again.requires_grad


def test_rows_of_a_cache_may_be_dropped_and_repeated():
    form, x = _form("recursive"), _input()
    cache = form.new_cache(2, 45)
    form(x[:, :20], cache=cache)
    cache.select([1, 1, 0])
    y = form(x[[1, 1, 0], 20:21], cache=cache)
    torch.testing.assert_close(y, form(x)[[1, 1, 0], 20:21], rtol=1e-4, atol=2e-5)
    cache.reset()
    assert cache.lengths == (0, 0, 0)
    assert cache.uniform
    assert cache.max_len == 45


@pytest.mark.parametrize("name", ["flat", "recursive sparse"])
def test_a_call_that_fails_leaves_the_cache_as_it_was(name):
    form, x = _form(name).double(), _input().double()
    heads, cache, outs = form.sequence[0].heads, form.new_cache(2, 45), []

    def interrupt(*_):
        raise KeyboardInterrupt

    for begin, end in ((0, 20), (20, 21), (21, 45)):
        for whole, part in ((form, form.sequence[-1].mlp), (heads, heads.core)):
            hook = part.register_forward_hook(interrupt)
            with pytest.raises(KeyboardInterrupt):
                whole(x[:, begin:end], cache=cache if whole is form else cache.caches[0])
            hook.remove()
            assert cache.lengths == (begin, begin)
        outs.append(form(x[:, begin:end], cache=cache))
    torch.testing.assert_close(torch.cat(outs, 1), form(x))


def test_a_cache_that_does_not_fit_is_named():
    form, x = _form("flat"), _input()
    with pytest.raises(ValueError, match="cache: is for 3 blocks, the form has 2"):
        form(x, cache=_form("recursive").new_cache(2, 45))
    with pytest.raises(ValueError, match="x: has batch 2, the cache 1"):
        form(x, cache=form.new_cache(1, 45))
    with pytest.raises(ValueError, match="max_len=30"):
        form(x, cache=form.new_cache(2, 30))


@every_form
def test_gradients_reach_every_kind_of_parameter(name):
    form, x = _form(name), _input().requires_grad_()
    form(x).square().mean().backward()
    for parameter_name, parameter in form.named_parameters():
        assert parameter.grad is not None, parameter_name
        assert parameter.grad.isfinite().all(), parameter_name
        assert parameter.grad.abs().sum() > 0, parameter_name
    assert x.grad.isfinite().all()


@every_form
def test_state_dict_round_trip(name):
    source, x = _form(name), _input()
    target = FORMS[name]()
    assert not torch.equal(source(x), target(x))
    target.load_state_dict(source.state_dict())
    assert torch.equal(source(x), target(x))


@every_form
def test_bfloat16_autocast_trains_and_routes_as_float32_does(name):
    form, x = _form(name), _input()
    with torch.autocast("cpu", torch.bfloat16):
        y, routing = form(x, return_routing=True)
    y.square().mean().backward()
    assert all(bool(p.grad.isfinite().all()) for p in form.parameters())
    exact, wanted = form(x, return_routing=True)
    assert torch.equal(
        routing.blocks[0].heads.experts.indices, wanted.blocks[0].heads.experts.indices
    )
    typical = ((y - exact).norm(dim=-1) / exact.norm(dim=-1)).median()
    assert typical.item() < 0.05  # a token whose later choice flips is far off, most are not


@every_form
def test_bfloat16_parameters_keep_their_dtype(name):
    y = _form(name).bfloat16()(_input().bfloat16())
    assert y.dtype == torch.bfloat16
    assert y.isfinite().all()


@every_form
def test_activation_checkpointing_repeats_the_gradients(name):
    form = _form(name)
    gradients = []
    for recompute in (False, True):
        x = _input().requires_grad_()
        y = checkpoint(form, x, use_reentrant=False) if recompute else form(x)
        gradients.append(torch.autograd.grad(y.square().sum(), (x, *form.parameters())))
    assert all(torch.equal(*pair) for pair in zip(*gradients, strict=True))


@pytest.mark.parametrize("seq_len", [1, 2, 17])
@every_form
def test_short_sequences(name, seq_len):
    x = _input(seq_len, batch=1).requires_grad_()
    y = _form(name)(x)
    y.sum().backward()
    assert y.isfinite().all()
    assert x.grad.isfinite().all()


@every_form
def test_positions_may_start_anywhere(name):
    form, x = _form(name).double(), _input(40).double()
    torch.testing.assert_close(form(x), form(x, torch.arange(500, 540)))
    assert not torch.allclose(form(x), form(x, torch.arange(0, 400, 10)))


def test_a_short_training_learns_to_copy_a_pattern():
    """Both kinds of experts and both routers under Adam: the loss falls by half."""
    for name in ("flat", "recursive halting"):
        form, x = _form(name), _input(24, batch=8)
        wanted = x.roll(1, 1)
        wanted[:, 0] = 0
        optimizer = torch.optim.Adam(form.parameters(), 5e-3)
        losses = []
        for _ in range(40):
            loss = (form(x) - wanted).square().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(float(loss.detach()))
        assert losses[-1] < 0.5 * losses[0], name


flat = functools.partial(FlatDynSIHA, WIDTH)
recursive = functools.partial(RecursiveDynSIHA, WIDTH)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: flat(blocks=0), "blocks=0: must be at least 1"),
        (lambda: recursive(steps=0), "steps=0: must be at least 1"),
        (lambda: flat(experts=4, active_experts=5), r"active_experts=5: .* experts=4"),
        (lambda: recursive(active_experts=0), r"active_experts=0: must be from 1"),
        (lambda: flat(expert_width=0), "d_out=0: must be at least 1"),
        (lambda: flat(heads=5), "q_heads=5: must divide d_model=32"),
        (lambda: recursive(alpha=1.0), "alpha=1.0: must be"),
        (lambda: recursive(halt_below=1.5), "halt_below=1.5: must lie between 0 and 1"),
        (lambda: flat()(torch.zeros(3, WIDTH)), r"x: must be \[batch, seq_len, d_model\]"),
        (lambda: ExpertLinear(2, 0, 4), "d_in=0: must be at least 1"),
        (lambda: ExpertRouter(8, 4, 2, router="x"), "router='x'"),
    ],
)
def test_bad_arguments_name_the_fix(make, message):
    with pytest.raises(ValueError, match=message):
        make()
