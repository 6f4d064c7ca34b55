"""What only a GPU shows: offsets beyond 2^31, compilations, accesses out of bounds."""

import importlib
import pkgutil
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from dynnsiha.attention import native_sparse_attention
from dynnsiha.attention.reference import reference_rows

from .cases import EXACT, HYBRID, ON_GPU, Inputs
from .oracle import BACKEND, GRADIENTS, MOST_ERROR, assert_close, error, run

pytestmark = pytest.mark.skipif(not ON_GPU, reason="needs a CUDA device")


def test_more_than_two_to_the_31_elements():
    """The last sequence of the batch lies beyond: it must equal itself alone, and the truth."""
    batch, seq_len, heads, kv_heads, width = 3, 98_304, 64, 4, 128
    assert batch * seq_len * heads * width > 2**31
    needed = 28 * batch * seq_len * heads * width  # q, o, their gradients, and float32 copies
    if torch.cuda.mem_get_info()[0] < needed:
        pytest.skip(f"needs {needed >> 30} GiB of free device memory")
    gen = torch.Generator("cuda").manual_seed(0)

    def random(n, d=width):
        options = {"generator": gen, "device": "cuda", "dtype": torch.bfloat16}
        return torch.randn(batch, seq_len, n, d, **options)

    q, k, v = random(heads), random(kv_heads), random(kv_heads)
    gates = random(heads, 3).sigmoid_()
    config = EXACT.config

    def results(inputs):
        leaves = [x.detach().requires_grad_() for x in inputs]
        out, aux = native_sparse_attention(*leaves, config, backend=BACKEND, return_aux=True)
        out.backward(out.detach())
        return out.detach(), aux, [x.grad for x in leaves]

    out, aux, grads = results((q, k, v, gates))
    last = [x[2:].clone() for x in (q, k, v, gates)]
    alone, alone_aux, alone_grads = results(last)
    assert torch.equal(aux.block_indices[2:], alone_aux.block_indices)
    assert_close(aux.lse[2:], alone_aux.lse, "lse")
    assert_close(out[2:], alone, "out")
    for name, mine, theirs in zip(GRADIENTS, grads, alone_grads, strict=False):
        assert_close(mine[2:], theirs, name)
    rows = torch.tensor([0, 63, 64, 50_000, 70_000, seq_len - 65, seq_len - 1], device="cuda")
    for head in range(0, heads, heads // kv_heads):
        one = slice(head, head + 1)
        kv = slice(head * kv_heads // heads, head * kv_heads // heads + 1)
        wide = [x.double() for x in (last[0][:, :, one], last[1][:, :, kv], last[2][:, :, kv])]
        truth = reference_rows(
            *wide,
            last[3][:, :, one].double(),
            config,
            rows,
            block_indices=alone_aux.block_indices[:, :, kv],
        )
        assert error(out[2:, rows, one], truth) < MOST_ERROR


def compiled() -> int:
    """Variants of the backend's kernels that this process has compiled or loaded."""
    from triton.runtime.jit import JITFunction

    package = importlib.import_module("dynnsiha.attention.triton")
    modules = [package]
    for found in pkgutil.walk_packages(package.__path__, package.__name__ + "."):
        modules.append(importlib.import_module(found.name))
    kernels = {}
    for module in modules:
        for x in vars(module).values():
            while hasattr(x, "fn") and not isinstance(x, JITFunction):
                x = x.fn  # the kernel inside an autotuner or heuristics
            if isinstance(x, JITFunction):
                kernels[id(x)] = x
    assert kernels
    return sum(len(cache[0]) for x in kernels.values() for cache in x.device_caches.values())


@pytest.mark.skipif(BACKEND != "triton", reason="counts Triton's compilations")
@pytest.mark.parametrize("kind", [EXACT, HYBRID], ids=str)
def test_a_new_length_compiles_nothing(kind):
    for seq_len in (1001, 1003, 1005):
        run(kind.at(seq_len).inputs(), kind.config)
    before = compiled()
    assert before > 0
    for seq_len in (1007, 1009, 1013, 1021):
        run(kind.at(seq_len).inputs(), kind.config)
    assert compiled() == before


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="there is one GPU")
@pytest.mark.parametrize("kind", [EXACT, HYBRID], ids=str)
def test_operands_need_not_be_on_the_current_device(kind):
    here = kind.at(1001).inputs()
    there = Inputs([x.to("cuda:1") for x in here.operands], here.grad.to("cuda:1"))
    assert torch.cuda.current_device() == 0
    results = [run(inputs, kind.config) for inputs in (here, there)]
    assert torch.cuda.current_device() == 0
    assert torch.equal(results[0].out, results[1].out.to("cuda:0"))
    for one, other in zip(results[0].grads, results[1].grads, strict=True):
        assert torch.equal(one, other.to("cuda:0"))


@pytest.mark.skipif(not shutil.which("compute-sanitizer"), reason="needs compute-sanitizer")
def test_memcheck_is_clean_on_the_smallest_shapes():
    tests = Path(__file__).with_name("test_accuracy.py")
    chosen = "test_every_branch_and_their_sum and (T1- or T33-) and (exact or hybrid)"
    done = subprocess.run(
        ["compute-sanitizer", "--tool", "memcheck", "--error-exitcode", "9", sys.executable, "-m",
         "pytest", "-q", str(tests), "-k", chosen],
        capture_output=True, text=True, timeout=900, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-4000:]
