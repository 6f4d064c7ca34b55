"""The blockwise backend against the reference: outputs, gradients, lists, determinism."""

import itertools
from dataclasses import replace

import pytest
import torch
import torch.utils.checkpoint

from dynnsiha import NSAConfig
from dynnsiha.attention import native_sparse_attention
from dynnsiha.attention.blockwise import compressed
from dynnsiha.attention.blockwise import operands as blockwise_operands

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"

CONFIGS = {
    "exact": NSAConfig(),
    "paper": NSAConfig.paper(),
    "hybrid": NSAConfig(query_tile=16, private_blocks=2, top_n=7),
    "shared": NSAConfig(query_tile=64, top_n=5),
    "aggregate": NSAConfig(query_tile=32, private_blocks=1, top_n=6, tile_scoring="aggregate"),
    "dynamic": NSAConfig.paper(query_tile=4, private_blocks=1, top_n=9, top_p=0.5),
    "odd": NSAConfig(
        block_size=24,
        compress_block=12,
        compress_stride=4,
        init_blocks=2,
        local_blocks=1,
        window=50,
        top_n=6,
    ),
    "narrow": NSAConfig(window=1, top_n=3),
    "wide": NSAConfig(window=10**9, top_n=3),
    "selected alone": NSAConfig(branches=("selected",), top_n=6),
    "without selected": NSAConfig(branches=("compressed", "sliding")),
}


def operands(seq_len, q_heads, kv_heads, head_dim, batch=1, dtype=torch.float64, seed=0):
    gen = torch.Generator().manual_seed(seed)
    shapes = [(q_heads, head_dim), (kv_heads, head_dim), (kv_heads, head_dim), (q_heads, head_dim)]
    q, k, v, grad = (
        torch.randn(batch, seq_len, *s, generator=gen, dtype=torch.float64).to(DEVICE, dtype)
        for s in shapes
    )
    gates = torch.rand(batch, seq_len, q_heads, 3, generator=gen, dtype=torch.float64)
    gates = gates.to(DEVICE, dtype)
    return [x.requires_grad_() for x in (q, k, v, gates)], grad


def run(inputs, grad, config, backend, **options):
    out, aux = native_sparse_attention(*inputs, config, backend=backend, return_aux=True, **options)
    return out, aux, torch.autograd.grad(out, inputs, grad, materialize_grads=True)


def lists_of(aux):
    indices = aux.block_indices
    return (indices,) if isinstance(indices, torch.Tensor) else indices


def rms_ratio(x, reference):
    return ((x.double() - reference.double()).norm() / reference.double().norm()).item()


def assert_same(seq_len, q_heads, kv_heads, head_dim, config, batch=1, **options):
    inputs, grad = operands(seq_len, q_heads, kv_heads, head_dim, batch)
    expected, aux, grads = run(inputs, grad, config, "reference", **options)
    out, own_aux, own_grads = run(inputs, grad, config, "blockwise", **options)
    torch.testing.assert_close(out, expected)
    for mine, theirs in zip(lists_of(own_aux), lists_of(aux), strict=True):
        assert torch.equal(mine, theirs)
    assert torch.equal(own_aux.block_counts, aux.block_counts)
    torch.testing.assert_close(own_aux.lse, aux.lse)
    for mine, theirs in zip(own_grads, grads, strict=True):
        torch.testing.assert_close(mine, theirs)


@pytest.mark.parametrize("seq_len", [1, 15, 31, 32, 33, 63, 64, 65, 111, 1024])
@pytest.mark.parametrize("name", ["exact", "paper", "hybrid"])
def test_equals_the_reference_at_any_length(seq_len, name):
    assert_same(seq_len, 2, 1, 16, CONFIGS[name])


@pytest.mark.parametrize("name", CONFIGS)
def test_equals_the_reference_in_every_mode(name):
    assert_same(777, 4, 2, 8, CONFIGS[name], batch=2)


@pytest.mark.parametrize("group", [1, 3, 6, 8, 12, 16, 64])
def test_equals_the_reference_for_any_group(group):
    assert_same(300, group * 2, 2, 4, NSAConfig.word_guided(group * 2, 2, top_n=5), batch=3)


@pytest.mark.parametrize("head_dim", [64, 128, 256])
def test_equals_the_reference_for_any_width(head_dim):
    assert_same(200, 2, 2, head_dim, CONFIGS["hybrid"])


@pytest.mark.parametrize("name", ["exact", "hybrid", "aggregate", "odd"])
def test_small_steps_and_chunks_change_nothing(name, monkeypatch):
    """Budgets so small that one call takes many chunks of heads and queries, and many steps."""
    monkeypatch.setitem(blockwise_operands._STEP_ELEMENTS, DEVICE, 1 << 12)
    monkeypatch.setitem(blockwise_operands._PARTIAL_BYTES, DEVICE, 1 << 15)
    assert_same(500, 4, 2, 8, CONFIGS[name], batch=2)


@pytest.mark.parametrize("name", ["exact", "hybrid"])
def test_given_lists_are_used_as_they_are(name):
    config = CONFIGS[name]
    inputs, grad = operands(300, 2, 2, 8)
    tiles = -(-300 // config.query_tile)
    gen = torch.Generator().manual_seed(1)

    def some(length, step, blocks):
        own = torch.arange(0, length * step, step)[None, :, None, None] // 64
        picked = torch.randint(0, 2, (1, length, 2, len(blocks)), generator=gen) * 2 - 1
        seen = (picked > 0) & (torch.tensor(blocks) <= own)
        return torch.where(seen, torch.tensor(blocks), -1).int().to(DEVICE)

    shared = some(tiles, config.query_tile, [0, 2, 4])
    private = some(300, 1, [1, 3])
    given = shared if name == "exact" else (shared, private)
    expected, aux, grads = run(inputs, grad, config, "reference", block_indices=given)
    out, own_aux, own_grads = run(inputs, grad, config, "blockwise", block_indices=given)
    torch.testing.assert_close(out, expected)
    assert all(map(torch.equal, lists_of(own_aux), lists_of(aux)))
    assert (own_aux.block_counts == 0).any()
    torch.testing.assert_close(own_aux.lse, aux.lse)
    for mine, theirs in zip(own_grads, grads, strict=True):
        torch.testing.assert_close(mine, theirs)


def test_returned_lists_give_the_same_output_when_given_back():
    for name in ("exact", "hybrid"):
        (q, k, v, gates), _ = operands(400, 2, 2, 8)
        out, aux = native_sparse_attention(q, k, v, gates, CONFIGS[name], return_aux=True)
        again = native_sparse_attention(
            q, k, v, gates, CONFIGS[name], block_indices=aux.block_indices
        )
        assert torch.equal(out, again)


@pytest.mark.parametrize("backend", ["reference", "blockwise"])
@pytest.mark.parametrize("name", ["paper", "hybrid"])
def test_packed_sequences_equal_each_alone(backend, name):
    lengths = [0, 1, 130, 64, 0, 77]
    bounds = torch.tensor([0, *itertools.accumulate(lengths)])
    inputs, grad = operands(sum(lengths), 2, 1, 8)
    config = CONFIGS[name]
    out, aux, grads = run(inputs, grad, config, backend, cu_seqlens=bounds)
    for begin, end in itertools.pairwise(bounds.tolist()):
        if begin == end:
            continue
        alone = [x[:, begin:end].detach().requires_grad_() for x in inputs]
        expected, _, alone_grads = run(alone, grad[:, begin:end], config, backend)
        torch.testing.assert_close(out[:, begin:end], expected)
        for mine, theirs in zip(grads, alone_grads, strict=True):
            torch.testing.assert_close(mine[:, begin:end], theirs)
    again = native_sparse_attention(
        *inputs, config, backend=backend, cu_seqlens=bounds, block_indices=aux.block_indices
    )
    torch.testing.assert_close(again, out)


@pytest.mark.parametrize("backend", ["reference", "blockwise"])
def test_summaries_can_come_from_outside(backend):
    inputs, grad = operands(200, 2, 1, 8)
    gen = torch.Generator().manual_seed(5)
    made = [torch.randn(1, 3, 1, 8, generator=gen, dtype=torch.float64) for _ in range(2)]
    k_cmp, v_cmp = (x.to(DEVICE).requires_grad_() for x in made)
    options = {"k_cmp": k_cmp, "v_cmp": v_cmp}
    out = native_sparse_attention(*inputs, NSAConfig(), backend=backend, **options)
    expected = native_sparse_attention(*inputs, NSAConfig(), backend="reference", **options)
    torch.testing.assert_close(out, expected)
    own = torch.autograd.grad(out, (k_cmp, v_cmp), grad)
    theirs = torch.autograd.grad(expected, (k_cmp, v_cmp), grad)
    for mine, other in zip(own, theirs, strict=True):
        torch.testing.assert_close(mine, other)
        assert mine.abs().max() > 0


@pytest.mark.parametrize("backend", ["reference", "blockwise"])
@pytest.mark.parametrize("name", ["exact", "paper", "hybrid", "aggregate", "dynamic"])
@pytest.mark.parametrize("cut", [1, 63, 64, 129, 300])
def test_nothing_leaks_from_the_future(backend, name, cut):
    """Bit-equal outputs before the first changed token, shared lists included."""
    (q, k, v, gates), _ = operands(333, 2, 1, 8, dtype=torch.float32)
    before = native_sparse_attention(q, k, v, gates, CONFIGS[name], backend=backend)
    changed = [x.detach().clone() for x in (q, k, v, gates)]
    for x in changed:
        x[:, cut:] = torch.rand(x[:, cut:].shape, generator=torch.Generator().manual_seed(9)).to(x)
    after = native_sparse_attention(*changed, CONFIGS[name], backend=backend)
    assert torch.equal(before[:, :cut], after[:, :cut])
    assert not torch.equal(before[:, cut:], after[:, cut:])


@pytest.mark.parametrize("name", ["exact", "hybrid"])
def test_ten_backward_runs_are_bit_identical(name):
    inputs, grad = operands(600, 4, 2, 16, dtype=torch.float32)
    first = run(inputs, grad, CONFIGS[name], "blockwise")[2]
    for _ in range(9):
        again = run(inputs, grad, CONFIGS[name], "blockwise")[2]
        assert all(map(torch.equal, first, again))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize("name", ["paper", "hybrid"])
def test_error_is_no_worse_than_plain_torch_in_that_dtype(dtype, name):
    """Given the same lists; plain torch is the reference itself, run in the low precision."""
    inputs, grad = operands(300, 4, 2, 32, dtype=dtype)
    config = CONFIGS[name]
    out, aux, grads = run(inputs, grad, config, "blockwise")
    wide = [x.detach().double().requires_grad_() for x in inputs]
    given = {"block_indices": aux.block_indices}
    expected, _, expected_grads = run(wide, grad.double(), config, "reference", **given)
    plain, _, plain_grads = run(inputs, grad, config, "reference", **given)
    assert out.dtype == dtype
    assert rms_ratio(out, expected) <= max(2 * rms_ratio(plain, expected), 1e-6)
    assert rms_ratio(out, expected) < 0.005
    for mine, low, best in zip(grads, plain_grads, expected_grads, strict=True):
        assert mine.dtype == dtype
        assert rms_ratio(mine, best) <= max(3 * rms_ratio(low, best), 1e-6)
        assert rms_ratio(mine, best) < 0.005


@pytest.mark.parametrize("seq_len", [64, 1000, 4097])
@pytest.mark.parametrize("name", ["exact", "paper"])
def test_compressed_steps_stay_within_the_budget(seq_len, name):
    """As wide as the last query of a step needs; a single block of queries may exceed it."""
    (q, k, v, gates), _ = operands(seq_len, 2, 1, 4, dtype=torch.float32)
    problem = blockwise_operands.Problem.of(q, k, CONFIGS[name], 0.5)
    problem = replace(problem, step_elements=1 << 14)
    none = k[:, :0]
    x = blockwise_operands.Operands.of_call(problem, q, k, v, none, none, gates)
    covered = 0
    for begin, end in compressed._steps(x, 0, problem.padded_len):
        assert begin == covered
        assert (end - begin) % 64 == 0
        covered = end
        elements = 2 * (end - begin) * problem.windows_ended(end - 1)
        assert elements <= 1 << 14 or end - begin == 64
    assert covered == problem.padded_len


@pytest.mark.parametrize("backend", ["reference", "blockwise"])
def test_lists_are_empty_where_the_selected_branch_is_off(backend):
    inputs, _ = operands(300, 2, 1, 8)
    config = CONFIGS["without selected"]
    _, aux = native_sparse_attention(*inputs, config, backend=backend, return_aux=True)
    assert (lists_of(aux)[0] == -1).all()
    assert not aux.block_counts.any()
    assert (aux.lse == float("-inf")).all()


@pytest.mark.parametrize("backend", ["reference", "blockwise"])
def test_low_precision_inputs_rank_blocks_and_sum_in_float32(backend):
    inputs, _ = operands(1500, 8, 1, 16, dtype=torch.bfloat16)
    wide = [x.detach().float() for x in inputs]
    config = NSAConfig(top_n=6)
    _, expected = native_sparse_attention(*wide, config, backend="reference", return_aux=True)
    out, aux = native_sparse_attention(
        *inputs[:3], wide[3], config, backend=backend, return_aux=True
    )
    assert out.dtype == torch.bfloat16
    assert aux.lse.dtype == torch.float32
    changed = (lists_of(aux)[0] != lists_of(expected)[0]).any(-1).float().mean().item()
    assert (
        changed < 0.02
    )  # means of k are rounded once; ranks in bfloat16 change three times as many


@pytest.mark.parametrize("backend", ["reference", "blockwise"])
def test_autocast_changes_nothing(backend):
    """Neither lists nor outputs nor gradients, though backward is called inside of it."""
    inputs, grad = operands(300, 4, 1, 16, dtype=torch.float32)
    config = CONFIGS["hybrid"]
    expected, aux, grads = run(inputs, grad, config, "blockwise")
    with torch.autocast(DEVICE, torch.bfloat16):
        out, own_aux = native_sparse_attention(*inputs, config, backend=backend, return_aux=True)
        own = torch.autograd.grad(out, inputs, grad) if backend == "blockwise" else grads
    torch.testing.assert_close(out, expected)
    assert all(map(torch.equal, lists_of(own_aux), lists_of(aux)))
    for ours, wanted in zip(own, grads, strict=True):  # how memory is aligned may move a last bit
        torch.testing.assert_close(ours, wanted, rtol=1e-5, atol=1e-6)


def test_inputs_are_left_alone():
    inputs, grad = operands(130, 2, 1, 8)
    copies = [x.detach().clone() for x in inputs]
    run(inputs, grad, CONFIGS["without selected"], "blockwise")
    assert all(map(torch.equal, inputs, copies))


def test_large_logits_stay_finite():
    inputs, grad = operands(200, 2, 1, 8, dtype=torch.float32)
    hot = [x.detach() * s for x, s in zip(inputs, (1e3, 1e3, 1.0, 1.0), strict=True)]
    hot = [x.requires_grad_() for x in hot]
    for backend in ("reference", "blockwise"):
        out, _, grads = run(hot, grad, CONFIGS["hybrid"], backend)
        assert all(torch.isfinite(x).all() for x in (out, *grads))


def penalty_of(name, operand, inputs, config=CONFIGS["hybrid"]):
    """Of the gradient of a loss that is linear in the output, so that its own gradient is fixed."""
    out = native_sparse_attention(*inputs, config, backend=name)
    weight = torch.linspace(-1.0, 1.0, out.numel(), dtype=out.dtype, device=DEVICE).view_as(out)
    return torch.autograd.grad((out * weight).sum(), inputs[operand], create_graph=True)[0]


@pytest.mark.parametrize("operand", range(4))
def test_derivatives_of_gradients_are_refused(operand):
    inputs, _ = operands(130, 2, 1, 8)
    once = penalty_of("blockwise", operand, inputs)
    expected = penalty_of("reference", operand, inputs)
    torch.testing.assert_close(once, expected)
    with pytest.raises(RuntimeError, match=r'call it with backend="reference"$'):
        (once.square().sum() + inputs[1].square().sum()).backward()
    for x in inputs:
        once = penalty_of("blockwise", operand, inputs)
        with pytest.raises(RuntimeError, match=r'call it with backend="reference"$'):
            torch.autograd.grad(once.square().sum() + x.square().sum(), x)


def test_a_gradient_that_nobody_differentiates_again_may_keep_its_graph():
    inputs, grad = operands(130, 2, 1, 8)
    out = native_sparse_attention(*inputs, CONFIGS["hybrid"], backend="blockwise")
    once = torch.autograd.grad(out, inputs, grad, retain_graph=True)
    recorded = torch.autograd.grad(out, inputs, grad, create_graph=True)
    assert all(map(torch.equal, once, recorded))
    assert not any(x.requires_grad for x in once)
    (recorded[0].detach().square().sum() * inputs[1].sum()).backward()
    assert inputs[1].grad is not None


def test_activations_may_be_checkpointed():
    inputs, grad = operands(130, 2, 1, 8)
    expected = run(inputs, grad, CONFIGS["hybrid"], "blockwise")[2]

    def attend(*x):
        return native_sparse_attention(*x, CONFIGS["hybrid"], backend="blockwise")

    out = torch.utils.checkpoint.checkpoint(attend, *inputs, use_reentrant=False)
    (dq,) = torch.autograd.grad(out, inputs[:1], grad, create_graph=True)
    assert torch.equal(dq, expected[0])
    with pytest.raises(RuntimeError, match=r'call it with backend="reference"$'):
        torch.autograd.grad(dq.square().sum(), inputs[1])
