"""The same bits every time, and none of memory that nobody wrote."""

from dataclasses import replace

import pytest
import torch

from .cases import DEVICE, EXACT, HYBRID, LIGHT_EXACT, ON_GPU, PAPER
from .oracle import BACKEND, assert_same_bits, call, leaves_of, run

LENGTH = 1111 if ON_GPU else 70


@pytest.mark.parametrize("kind", [EXACT, PAPER, HYBRID] if ON_GPU else [EXACT, HYBRID], ids=str)
def test_ten_backward_runs_are_bit_identical(kind):
    case = kind.at(LENGTH, "batch" if ON_GPU else "single")
    inputs = case.inputs()
    leaves = leaves_of(inputs)
    out, _ = call(inputs, leaves, case.config, BACKEND)
    first = torch.autograd.grad(out, leaves, inputs.grad, retain_graph=True)
    for _ in range(9):
        again = torch.autograd.grad(out, leaves, inputs.grad, retain_graph=True)
        assert all(map(torch.equal, first, again))


@pytest.mark.parametrize("kind", [EXACT, HYBRID], ids=str)
def test_whole_runs_are_bit_identical(kind):
    case = kind.at(LENGTH, "packed")
    inputs = case.inputs()
    first = run(inputs, case.config)
    for _ in range(9 if ON_GPU else 1):
        assert_same_bits(run(inputs, case.config), first)


@pytest.fixture
def poisoned():
    """Every torch.empty comes back as NaN, or as the largest integer."""
    before = torch.utils.deterministic.fill_uninitialized_memory
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.utils.deterministic.fill_uninitialized_memory = True
    assert torch.empty(3, device=DEVICE).isnan().all()
    yield
    torch.use_deterministic_algorithms(False)
    torch.utils.deterministic.fill_uninitialized_memory = before


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", [LIGHT_EXACT, PAPER, HYBRID], ids=str)
@pytest.mark.parametrize("seq_len", [1, 33, 150] if ON_GPU else [1, 70])
def test_unwritten_memory_is_never_read(kind, seq_len, poisoned):
    case = kind.at(seq_len)
    inputs = case.inputs()
    dirty = run(inputs, case.config)
    torch.use_deterministic_algorithms(False)
    clean = run(inputs, case.config)
    for x in dirty.tensors.values():
        assert not x.isnan().any()
    assert_same_bits(dirty, clean)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", [EXACT, HYBRID], ids=str)
def test_unwritten_memory_is_never_read_where_lists_are_empty(kind, poisoned):
    """Queries without blocks, and half of the queries with one."""
    case = kind.at(150)
    tile = case.config.query_tile
    tiles = -(-case.seq_len // tile)
    index = torch.full((1, tiles, case.kv_heads, 3), -1, dtype=torch.int32, device=DEVICE)
    index[:, ::2, :, 1] = 0
    private = torch.full((1, 150, case.kv_heads, 1), -1, dtype=torch.int32, device=DEVICE)
    given = case.inputs().given(block_indices=index if tile == 1 else (index, private))
    whole = run(given, case.config)
    assert all(not x.isnan().any() for x in whole.tensors.values())
    assert torch.isfinite(whole.out).all()


@pytest.mark.parametrize("kind", [LIGHT_EXACT, PAPER, HYBRID], ids=str)
@pytest.mark.parametrize("seq_len", [33, 65, 150] if ON_GPU else [33, 65])
def test_nothing_is_read_beyond_the_operands(kind, seq_len):
    """Operands are windows into memory that is NaN all around: 0 * NaN would show."""
    case = kind.at(seq_len)  # one row: a batch of such windows would be copied together
    inputs = case.inputs()
    wanted = run(inputs, case.config)

    def framed(x):
        around = x.new_full((x.shape[0], x.shape[1] + 128, *x.shape[2:]), float("nan"))
        around[:, 64:-64] = x
        return around[:, 64:-64]

    framed_inputs = replace(
        inputs, operands=[framed(x) for x in inputs.operands], grad=framed(inputs.grad)
    )
    assert_same_bits(run(framed_inputs, case.config), wanted)


@pytest.mark.filterwarnings("ignore:All-NaN slice")
@pytest.mark.parametrize("batching", ["batch", "packed"])
@pytest.mark.parametrize("kind", [LIGHT_EXACT, PAPER, HYBRID], ids=str)
def test_a_sequence_of_nan_spoils_no_other(kind, batching):
    case = kind.at(65, batching)
    inputs = case.inputs()
    clean = run(inputs, case.config)
    spoilt = [x.clone() for x in inputs.operands]
    if batching == "batch":
        rows, other = slice(0, 1), slice(1, None)
        at, whole = (lambda x: x[rows]), (lambda x: x[other])
    else:
        begin, end = max(case.bounds, key=lambda bound: bound[1] - bound[0])
        at = lambda x: x[:, begin:end]  # noqa: E731
        whole = lambda x: torch.cat([x[:, :begin], x[:, end:]], 1)  # noqa: E731
    for x in spoilt[:3]:
        at(x).fill_(float("nan"))
    dirty = run(replace(inputs, operands=spoilt), case.config)
    for name, x in dirty.tensors.items():
        assert torch.equal(whole(x), whole(clean.tensors[name])), name


def test_operands_are_left_alone():
    case = HYBRID.at(LENGTH)
    inputs = case.inputs()
    copies = [x.clone() for x in (*inputs.operands, inputs.grad)]
    run(inputs, case.config)
    assert all(map(torch.equal, (*inputs.operands, inputs.grad), copies))
