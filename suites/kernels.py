"""Which calls together build every Triton kernel of the core, in every size that dispatch chooses.

A kernel is specialised by head shape, configuration, dtype and by how keys are read, so a list of
calls stands for all that users can make: each head width on each way of computing lists, the
smallest and the largest groups, every block size, packed sequences (pointers instead of bulk
copies) and calls without some branch. Lengths specialise nothing.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch


from dynbench.harness.crosscompile import Launch, Target, captured_launches
from dynnsiha.attention.config import NSAConfig

SOURCE = "dynbench.suites.kernels:launches"
"""What ``dynbench.harness.crosscompile.compile_everywhere`` takes."""


@dataclass(frozen=True)
class Call:
    """One call of the operator, forward and backward.

    Attributes:
        heads: H, K and D.
        lengths: tokens of each sequence; of different lengths they are packed.
        given: what is passed in: "" nothing, "lists" or "summaries".
        trains: a backward pass follows.
    """

    name: str
    heads: tuple[int, int, int]
    config: NSAConfig
    dtype: torch.dtype = torch.bfloat16
    lengths: tuple[int, ...] = (2048,)
    given: str = ""
    trains: bool = True

    def run(self) -> None:
        """Make the call on tensors of zeros on the CPU."""
        from dynnsiha.attention.triton import triton_kernels

        h, k, d = self.heads
        config = self.config.resolved(h, k)
        packed = len(set(self.lengths)) > 1
        batch, tokens = len(self.lengths), self.lengths[0]
        if packed:
            batch, tokens = 1, sum(self.lengths)
        shapes = ((h, d), (k, d), (k, d))
        options: dict[str, Any] = {"dtype": self.dtype, "requires_grad": self.trains}
        operands = [torch.zeros(batch, tokens, *shape, **options) for shape in shapes]
        gates = torch.zeros(batch, tokens, h, 3, requires_grad=self.trains)
        extra: dict[str, Any] = {}
        if packed:
            extra["bounds"] = list(itertools.accumulate(self.lengths, initial=0))
        if self.given == "lists":
            extra["block_indices"] = torch.zeros(batch, tokens, k, config.top_n, dtype=torch.int32)
        if self.given == "summaries":
            windows = (tokens - config.compress_block) // config.compress_stride + 1
            for name in ("k_cmp", "v_cmp"):
                extra[name] = torch.zeros(batch, windows, k, d, **options)
        out, _ = triton_kernels(*operands, gates, config, **extra)
        if self.trains:
            out.sum().backward()


def _hybrid(**fields):
    return NSAConfig(query_tile="auto", private_blocks=2, **fields)


CALLS = (
    Call("a", (64, 4, 128), _hybrid()),
    Call("e", (32, 32, 128), _hybrid()),
    Call("g", (8, 8, 256), _hybrid()),
)


def launches(target: Target, calls: Sequence[Call] = CALLS) -> list[Launch]:
    """The distinct launches of all calls on one architecture."""
    from dynnsiha.attention.triton.architecture import compiled_for

    with captured_launches() as found, compiled_for(target.capability):
        for call in calls:
            call.run()
    return found
