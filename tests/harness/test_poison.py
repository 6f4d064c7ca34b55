"""Unwritten outputs show."""

from __future__ import annotations

import subprocess
import sys
import weakref
from dataclasses import dataclass

import pytest
import torch

from dynbench.harness.poison import (
    Block,
    Returned,
    output_blocks,
    overwritten_allocations,
    poison,
)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("size", [4096, 2**20, 2**23])
def test_no_part_of_an_unwritten_tensor_is_harmless(dtype, size):
    with overwritten_allocations():
        found = torch.empty(size, dtype=dtype)
    harmless = found.abs() < 1e30  # a NaN is not below anything
    assert not harmless.any()


def test_afterwards_memory_is_left_alone():
    """In a process of its own: one that has freed much memory would hand that out again."""
    subprocess.run([sys.executable, "-c", AFTERWARDS], check=True)


AFTERWARDS = """
import torch
from dynbench.harness.poison import overwritten_allocations
with overwritten_allocations():
    torch.empty(2**23)
assert (torch.empty(2**24) == 0).all()  # fresh pages of the kernel
"""


@dataclass
class Aux:
    lists: torch.Tensor
    name: str


def test_blocks_of_nested_outputs():
    outputs = (torch.zeros(2, 3), {"aux": Aux(torch.zeros(4, dtype=torch.int32), "x")}, None, [1])
    blocks = output_blocks(outputs)
    assert [(b.shape, b.dtype) for b in blocks] == [((2, 3), torch.float32), ((4,), torch.int32)]
    assert output_blocks(None) == []


def test_blocks_are_filled_and_freed(monkeypatch):
    made = []

    def empty(shape, **kind):
        made.append(torch.zeros(shape, **kind))
        return made[-1]

    cpu = torch.device("cpu")
    kinds = [torch.float32, torch.bfloat16, torch.int32, torch.complex64, torch.bool]
    monkeypatch.setattr(torch, "empty", empty)
    poison([Block((8,), kind, cpu) for kind in kinds])
    assert all(made[i].isnan().all() for i in (0, 1, 3))
    assert (made[2] == torch.iinfo(torch.int32).max).all()


def test_outputs_still_held_are_overwritten_where_they_lie():
    buffer = torch.zeros(8)
    returned = Returned(inputs=None)
    returned.remember((buffer[2:6:2], {"lists": torch.zeros(3)}))  # the view itself is gone
    returned.remember(torch.zeros(4))
    returned.overwrite()
    assert buffer.isnan().nonzero().flatten().tolist() == [2, 4]


def test_inputs_are_never_overwritten():
    given = torch.zeros(4)
    returned = Returned({"operands": (given, None)})
    returned.remember(given[1:])
    returned.overwrite()
    assert (given == 0).all()


def test_outputs_are_remembered_and_not_kept():
    returned = Returned(None)
    output = torch.zeros(4)
    alive = weakref.ref(output.untyped_storage())
    returned.remember(output)
    del output
    assert alive() is None
