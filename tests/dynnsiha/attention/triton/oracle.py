"""What results are compared with, and how far they may be off.

The truth is the reference in float64 on the same 16-bit inputs, given the same lists. The measure
is the reference on the 16-bit inputs themselves: plain torch, one operation after the other, each
rounded to 16 bits, as tests of attention kernels commonly do (FlashAttention's among them). A
kernel that keeps sums in float32 beats it; one that loses a term does not come near.
"""

from __future__ import annotations

import math
import os
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from dynnsiha import NSAConfig
from dynnsiha.attention import NSAAux, native_sparse_attention
from dynnsiha.attention.config import BRANCHES

from .cases import Inputs

BACKEND = os.environ.get("DYNNSIHA_TEST_BACKEND", "triton")
"""The backend under test; another one's name runs the same tests on it."""

MOST_ERROR = 0.005
"""Root-mean-square error over root-mean-square truth, of every tensor; where plain torch is further
off, as far as plain torch. It is where a gradient is the difference of two overlapping windows of
bfloat16: 0.006 to 0.012 at 50 to 65 tokens of the paper's windows."""

TIMES_PLAIN = {"out": 2.0, "lse": 2.0}
"""Most error in units of plain torch's; gradients may have three times as much."""

_NOISE = 2e-6
"""Absolute error of float32 sums over inputs near 1: no error is told from it."""

_NOISE_OF_NOTHING = 1e-4 if torch.cuda.is_available() else _NOISE
"""The same where the truth is zero, a difference of equal sums: matrix units cut what they add to
the bits of the largest term."""

_NOTHING = 1e-12
"""A truth below this is what float64 leaves of zero."""

_ROUNDING = 2**-11
"""Half a unit in the last place of float16: allowed where plain torch happens to be exact."""

GRADIENTS = ("dq", "dk", "dv", "dgates", "dk_cmp", "dv_cmp")


@dataclass(frozen=True)
class Result:
    """Output, lists and lse, and the gradients of q, k, v, gates and given summaries."""

    out: Tensor
    aux: NSAAux
    grads: tuple[Tensor, ...]

    @property
    def tensors(self) -> dict[str, Tensor]:
        """All that is compared, by name."""
        named = zip(GRADIENTS, self.grads, strict=False)
        return {"out": self.out, "lse": self.aux.lse} | dict(named)


def leaves_of(inputs: Inputs) -> list[Tensor]:
    """Operands and given summaries, fresh leaves of autograd."""
    summaries = [inputs.options[n] for n in ("k_cmp", "v_cmp") if n in inputs.options]
    return [x.detach().requires_grad_() for x in (*inputs.operands, *summaries)]


def call(inputs: Inputs, leaves: list[Tensor], config: NSAConfig, backend: str) -> Any:
    """(o, aux) of the public operator on the leaves."""
    options = dict(inputs.options)
    if len(leaves) > 4:
        options |= {"k_cmp": leaves[4], "v_cmp": leaves[5]}
    return native_sparse_attention(*leaves[:4], config, backend=backend, return_aux=True, **options)


def run(inputs: Inputs, config: NSAConfig, backend: str = BACKEND) -> Result:
    """Forward and backward."""
    leaves = leaves_of(inputs)
    out, aux = call(inputs, leaves, config, backend)
    grads = torch.autograd.grad(out, leaves, inputs.grad, materialize_grads=True)
    return Result(out.detach(), aux, grads)


def in_float64(inputs: Inputs) -> Inputs:
    """The same numbers, wider."""
    summaries = {n: inputs.options[n].double() for n in ("k_cmp", "v_cmp") if n in inputs.options}
    operands = [x.double() for x in inputs.operands]
    return Inputs(operands, inputs.grad.double(), inputs.options | summaries)


def error(x: Tensor, truth: Tensor, noise: float = _NOISE) -> float:
    """Root-mean-square error over the root-mean-square truth; 0 if it is no more than noise."""
    truth = truth.double()
    off = (x.double() - truth).square().mean().sqrt().item()
    size = truth.square().mean().sqrt().item()
    if size < _NOTHING:
        return 0.0 if off <= _NOISE_OF_NOTHING else math.inf
    return 0.0 if off <= noise else off / size


def assert_accurate(inputs: Inputs, config: NSAConfig, per_branch: bool = True) -> Result:
    """All results within the gates, of the sum and (with one-hot gates) of each branch alone.

    Returns the result with the inputs' own gates.
    """
    branches = [BRANCHES.index(name) for name in config.branches] if per_branch else []
    whole = run(inputs, config)
    for branch in (None, *branches):
        mine = whole if branch is None else run(inputs.gated(branch), config)
        assert same_lists(mine.aux, whole.aux), "gates changed the lists"
        given = inputs.gated(branch).given(block_indices=whole.aux.block_indices)
        label = "sum" if branch is None else BRANCHES[branch]
        assert_gates(mine, given, config, label)
    return whole


def assert_gates(mine: Result, inputs: Inputs, config: NSAConfig, label: str) -> None:
    """Results against the reference, on inputs that give the lists."""
    truth = run(in_float64(inputs), config, "reference").tensors
    plain = run(inputs, config, "reference").tensors
    for name, x in mine.tensors.items():
        best, low = truth[name], plain[name]
        if name == "lse":
            assert x.dtype == torch.float32, f"{label} lse: is {x.dtype}"
            empty = best == float("-inf")
            assert torch.equal(x == float("-inf"), empty), f"{label} lse: -inf at other rows"
            x, best, low = (y.masked_fill(empty, 0.0) for y in (x, best, low))
        else:
            assert x.dtype == low.dtype, f"{label} {name}: is {x.dtype}, must be {low.dtype}"
        assert x.shape == best.shape, f"{label} {name}: has shape {list(x.shape)}"
        assert torch.isfinite(x).all(), f"{label} {name}: has NaN or infinity"
        off, plain_off = error(x, best), error(low, best, 0.0)
        most, allowed = max(MOST_ERROR, plain_off), TIMES_PLAIN.get(name, 3.0) * plain_off
        assert off < most, f"{label} {name}: error {off:.5f} > {most:.5f}"
        assert off <= max(allowed, _ROUNDING), f"{label} {name}: error {off:.5f} > {allowed:.5f}"


def assert_close(a: Tensor, b: Tensor, name: str) -> None:
    """Two runs that may read memory in different ways agree but for the last rounding."""
    assert a.shape == b.shape, f"{name}: {list(a.shape)} and {list(b.shape)}"
    assert error(a, b) < MOST_ERROR / 2, f"{name}: differs by {error(a, b):.5f}"


def lists_of(aux: NSAAux) -> tuple[Tensor, ...]:
    """The one list tensor, or the shared and the private one."""
    indices = aux.block_indices
    return (indices,) if isinstance(indices, Tensor) else indices


def same_lists(a: NSAAux, b: NSAAux) -> bool:
    """Whether two calls used the same lists, slot by slot."""
    return all(map(torch.equal, lists_of(a), lists_of(b)))


def assert_same_bits(a: Result, b: Result) -> None:
    """Every result of two runs is the same, bit by bit."""
    assert same_lists(a.aux, b.aux), "lists differ"
    assert torch.equal(a.aux.block_counts, b.aux.block_counts), "counts differ"
    for name, x in a.tensors.items():
        assert torch.equal(x, b.tensors[name]), f"{name} differs"
