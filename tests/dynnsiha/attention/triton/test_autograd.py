"""The operator as a citizen of autograd: views, partial gradients, graphs used twice."""

import itertools

import pytest
import torch

from dynnsiha.attention import native_sparse_attention
from dynnsiha.attention.triton import function

from .cases import DEVICE, EXACT, HYBRID, ON_GPU, PAPER
from .oracle import BACKEND, assert_close, call, leaves_of, run, same_lists

LENGTH = 200 if ON_GPU else 70
ROWS = "batch" if ON_GPU else "single"
KINDS = pytest.mark.parametrize("kind", [EXACT, HYBRID], ids=str)
NAMES = ("q", "k", "v", "gates")


def attend(operands, config, **options):
    return native_sparse_attention(*operands, config, backend=BACKEND, **options)


@KINDS
def test_slices_of_one_fused_projection(kind):
    """q, k and v lie in one tensor [B, T, (H + 2 K) D], the gates in one [B, T, 3 H]."""
    case = kind.at(LENGTH, ROWS)
    inputs = case.inputs()
    q, k, v, gates = inputs.operands
    fused = torch.cat([x.flatten(2) for x in (q, k, v)], -1).requires_grad_()
    heads = fused.unflatten(-1, (-1, case.head_dim))
    views = heads.split((case.q_heads, case.kv_heads, case.kv_heads), 2)
    branch_first = gates.transpose(2, 3).flatten(2).contiguous().requires_grad_()
    turned = branch_first.unflatten(-1, (3, -1)).transpose(2, 3)
    assert not any(x.is_contiguous() for x in views)
    out = attend((*views, turned), case.config)
    d_fused, d_gates = torch.autograd.grad(out, (fused, branch_first), inputs.grad)
    wanted = run(inputs, case.config)
    assert_close(out, wanted.out, "out")
    dq, dk, dv, dgates = wanted.grads
    assert_close(d_fused, torch.cat([x.flatten(2) for x in (dq, dk, dv)], -1), "fused")
    assert_close(d_gates, dgates.transpose(2, 3).flatten(2), "gates")


@KINDS
@pytest.mark.parametrize(
    "order", [(0, 2, 1, 3), (1, 0, 2, 3), (0, 1, 3, 2)][:: 1 if ON_GPU else 2], ids=str
)
def test_any_strides(kind, order):
    """Memory in another order of dimensions, the output's gradient included."""
    case = kind.at(LENGTH, ROWS)
    inputs = case.inputs()

    def laid(x):
        return x.permute(order).contiguous().permute(order)

    leaves = [laid(x).requires_grad_() for x in inputs.operands]
    out = attend(leaves, case.config)
    grads = torch.autograd.grad(out, leaves, laid(inputs.grad))
    wanted = run(inputs, case.config)
    assert_close(out, wanted.out, "out")
    for name, mine, theirs in zip(NAMES, grads, wanted.grads, strict=True):
        assert_close(mine, theirs, name)


def test_heads_that_32_bits_do_not_reach_come_to_the_kernels_side_by_side():
    """As in x.transpose(1, 2) of [1, heads, tokens, width]; of shapes without memory."""
    x = torch.empty(1, 65, 1 << 18, 128, device="meta").transpose(1, 2)
    assert function._flat(x).stride() == (65 * 128, 128, 1)
    assert function._flat(x[:, :, :64]).stride() == (128, 128 << 18, 1)


@KINDS
def test_rows_that_are_not_aligned(kind):
    """Each row begins one element behind a multiple of 16 bytes, and another one further on."""
    case = kind.at(LENGTH)
    inputs = case.inputs()

    def shifted(x):
        wide = torch.zeros(*x.shape[:2], x[0, 0].numel() + 1, dtype=x.dtype, device=x.device)
        wide[..., 1:] = x.flatten(2)
        return wide[..., 1:].unflatten(2, x.shape[2:])

    leaves = [shifted(x).requires_grad_() for x in inputs.operands]
    assert leaves[0].data_ptr() % 16
    out = attend(leaves, case.config)
    grads = torch.autograd.grad(out, leaves, shifted(inputs.grad))
    wanted = run(inputs, case.config)
    assert_close(out, wanted.out, "out")
    for name, mine, theirs in zip(NAMES, grads, wanted.grads, strict=True):
        assert_close(mine, theirs, name)


def behind(x):
    """x as a dense slice that begins one element behind 16 bytes."""
    beside = torch.cat([x.new_zeros(1), x.flatten()])[1:].view(x.shape)
    assert beside.is_contiguous()
    assert beside.data_ptr() % 16
    return beside


@KINDS
def test_a_dense_gradient_that_is_not_aligned(kind):
    """As that of an output which another tensor is put before, by torch.cat."""
    case = kind.at(LENGTH, ROWS)
    inputs = case.inputs()
    leaves = leaves_of(inputs)
    out, _ = call(inputs, leaves, case.config, BACKEND)
    grads = torch.autograd.grad(out, leaves, behind(inputs.grad))
    assert all(map(torch.equal, grads, run(inputs, case.config).grads))


def test_dense_summaries_that_are_not_aligned():
    case = PAPER.at(LENGTH)
    windows = (LENGTH - 32) // 16 + 1
    gen = torch.Generator().manual_seed(4)
    shape = (2, 1, windows, case.kv_heads, case.head_dim)
    made = torch.randn(shape, generator=gen).to(DEVICE, case.dtype)
    inputs = case.inputs()
    wanted = run(inputs.given(k_cmp=made[0], v_cmp=made[1]), case.config)
    mine = run(inputs.given(k_cmp=behind(made[0]), v_cmp=behind(made[1])), case.config)
    assert torch.equal(mine.out, wanted.out)
    assert all(map(torch.equal, mine.grads, wanted.grads))


@KINDS
def test_expanded_operands_and_gradients(kind):
    """One K/V row for a batch of two, and a gradient that is one number, expanded."""
    case = kind.at(LENGTH)
    q, k, v, gates = (x.requires_grad_() for x in case.inputs().operands)
    twice = [x.expand(2, -1, -1, -1) for x in (q, k, v, gates)]
    expanded = attend(twice, case.config)
    grads = torch.autograd.grad(expanded.sum(), (q, k, v, gates))
    out = attend((q, k, v, gates), case.config)
    ones = torch.ones_like(out)
    wanted = torch.autograd.grad(out, (q, k, v, gates), ones)
    assert torch.equal(expanded, out.expand(2, -1, -1, -1))
    for name, mine, theirs in zip(NAMES, grads, wanted, strict=True):
        assert torch.equal(mine, 2 * theirs), name


def subsets():
    some = [c for n in (1, 2, 3) for c in itertools.combinations(range(4), n)]
    return some if ON_GPU else [(0,), (2,), (3,), (1, 3)]


@pytest.mark.parametrize("wanted", subsets(), ids=lambda x: "+".join(NAMES[i] for i in x))
def test_gradients_of_some_operands(wanted):
    case = HYBRID.at(LENGTH)
    inputs = case.inputs()
    full = run(inputs, case.config)
    operands = [x.detach().requires_grad_(i in wanted) for i, x in enumerate(inputs.operands)]
    out = attend(operands, case.config)
    leaves = [operands[i] for i in wanted]
    grads = torch.autograd.grad(out, leaves, inputs.grad)
    for i, x in zip(wanted, grads, strict=True):
        assert torch.equal(x, full.grads[i]), NAMES[i]


@pytest.mark.parametrize("wanted", [(4,), (5,), (0, 4)], ids=["k_cmp", "v_cmp", "q+k_cmp"])
def test_gradients_of_some_summaries(wanted):
    case = PAPER.at(LENGTH)
    windows = (LENGTH - 32) // 16 + 1
    gen = torch.Generator().manual_seed(4)
    shape = (2, 1, windows, case.kv_heads, case.head_dim)
    k_cmp, v_cmp = torch.randn(shape, generator=gen).to(DEVICE, case.dtype)
    inputs = case.inputs().given(k_cmp=k_cmp, v_cmp=v_cmp)
    full = run(inputs, case.config)
    leaves = [x.detach().requires_grad_(i in wanted) for i, x in enumerate(leaves_of(inputs))]
    out, _ = call(inputs, leaves, case.config, BACKEND)
    grads = torch.autograd.grad(out, [leaves[i] for i in wanted], inputs.grad)
    for i, x in zip(wanted, grads, strict=True):
        assert torch.equal(x, full.grads[i])


@KINDS
def test_a_graph_used_twice(kind):
    case = kind.at(LENGTH)
    inputs = case.inputs()
    leaves = leaves_of(inputs)
    out, _ = call(inputs, leaves, case.config, BACKEND)
    for x in leaves:
        assert x.grad is None
    out.backward(inputs.grad, retain_graph=True)
    first = [x.grad.clone() for x in leaves]
    for x in leaves:
        x.grad = None
    out.backward(inputs.grad)
    for x, once in zip(leaves, first, strict=True):
        assert torch.equal(x.grad, once)


@KINDS
def test_without_gradients(kind):
    case = kind.at(LENGTH - 1)  # a length of its own: nobody has met it with gradients before
    inputs = case.inputs()
    leaves = leaves_of(inputs)
    quiet = []
    for context in (torch.inference_mode(), torch.no_grad()):
        with context:
            quiet.append(call(inputs, leaves, case.config, BACKEND))
    # Nothing that the calls above may have kept stands in the way of a backward pass.
    wanted = run(inputs, case.config)
    for out, aux in quiet:
        assert not out.requires_grad
        assert torch.equal(out, wanted.out)
        assert torch.equal(aux.lse, wanted.aux.lse)
        assert same_lists(aux, wanted.aux)
    out, aux = call(inputs, leaves, case.config, BACKEND)
    assert out.requires_grad
    assert not aux.lse.requires_grad


def test_second_order_gradients_are_refused_rather_than_wrong():
    case = HYBRID.at(LENGTH)
    q, k, v, gates = (x.requires_grad_() for x in case.inputs().operands)
    out = attend((q, k, v, gates), case.config)
    (dq,) = torch.autograd.grad(out.float().square().sum(), q, create_graph=True)
    with pytest.raises(RuntimeError):
        torch.autograd.grad(dq.float().square().sum(), k)


@pytest.mark.parametrize("wanted", range(4), ids=NAMES)
def test_derivatives_of_gradients_of_a_linear_loss_are_refused(wanted):
    """The loss's own gradient is fixed; that of q still depends on k. The gates are not dense."""
    case = HYBRID.at(LENGTH)
    inputs = case.inputs()
    q, k, v, gates = (x.requires_grad_() for x in inputs.operands)
    turned = gates.transpose(1, 2).contiguous().transpose(1, 2)
    out = attend((q, k, v, turned), case.config)
    leaves = (q, k, v, gates)
    (once,) = torch.autograd.grad(out, leaves[wanted], inputs.grad, create_graph=True)
    assert torch.equal(once, run(inputs, case.config).grads[wanted])
    for x in leaves:
        total = once.float().sum() + x.float().sum()
        with pytest.raises(RuntimeError, match=r'call it with backend="reference"$'):
            torch.autograd.grad(total, x, retain_graph=True)


def test_autocast_changes_nothing():
    case = HYBRID.at(LENGTH)
    inputs = case.inputs()
    wanted = run(inputs, case.config)
    other = torch.float16 if case.dtype == torch.bfloat16 and ON_GPU else torch.bfloat16
    with torch.autocast(DEVICE, other):
        mine = run(inputs, case.config)
    assert torch.equal(mine.out, wanted.out)
    assert all(map(torch.equal, mine.grads, wanted.grads))
