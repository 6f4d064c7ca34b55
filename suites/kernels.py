"""The calls that together build every Triton kernel of the library, in every size it is tuned in.

A kernel is specialised by heads, configuration, dtype and by how it reads keys, so users can make
more variants than anybody can compile. These calls stand for them: each head width with each way of
computing lists, one head a key/value head and many, every block size, packed sequences (pointers in
place of bulk copies), single branches, given lists and summaries, inference. What length and batch
are makes no difference; they are as short as all kernels allow. Kernels of experts are specialised
by the number of experts and choices, and by whether a row fits into one step.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch

from dynbench.harness.crosscompile import TARGETS, Launch, Target, captured_launches
from dynnsiha.attention.config import NSAConfig

SOURCE = "dynbench.suites.kernels:launches"
"""What ``dynbench.harness.crosscompile.compile_everywhere`` calls."""

_CONSUMER_SHARED_BYTES = 99 << 10
SERVED = tuple(
    replace(target, shared_bytes=_CONSUMER_SHARED_BYTES) if target.name == "sm_80" else target
    for target in TARGETS.values()
)
"""What kernels are built for. Ada's and Blackwell's consumer cards run what Ampere runs, with less
shared memory a block than the A100 has."""


@dataclass(frozen=True)
class Call:
    """One call of the operator, and its backward pass.

    Attributes:
        heads: H, K and D.
        lengths: tokens of each sequence; sequences of different lengths are packed.
        given: what is passed in beside the operands: "lists", "summaries" or nothing.
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
        """Make the call on zeros on the CPU; what kernels would write is never looked at."""
        from dynnsiha.attention.triton import triton_kernels

        q_heads, kv_heads, width = self.heads
        config = self.config.resolved(q_heads, kv_heads)
        packed = len(set(self.lengths)) > 1
        batch = 1 if packed else len(self.lengths)
        tokens = sum(self.lengths) // batch
        options: dict[str, Any] = {"dtype": self.dtype, "requires_grad": self.trains}
        operands = [
            torch.zeros(batch, tokens, heads, width, **options)
            for heads in (q_heads, kv_heads, kv_heads)
        ]
        gates = torch.zeros(batch, tokens, q_heads, 3, requires_grad=self.trains)
        extra: dict[str, Any] = {}
        if packed:
            extra["bounds"] = list(itertools.accumulate(self.lengths, initial=0))
        if self.given == "lists":
            shape = (batch, tokens, kv_heads, config.top_n)
            extra["block_indices"] = torch.zeros(shape, dtype=torch.int32)
        if self.given == "summaries":
            windows = (tokens - config.compress_block) // config.compress_stride + 1
            for name in ("k_cmp", "v_cmp"):
                extra[name] = torch.zeros(batch, windows, kv_heads, width, **options)
        q, keys, values = operands
        out, _ = triton_kernels(q, keys, values, gates, config, **extra)
        if self.trains:
            out.sum().backward()


@dataclass(frozen=True)
class ExpertCall:
    """Tokens that choose ``active`` of ``experts`` and go there and back, and the backward pass."""

    name: str
    experts: int
    active: int
    width: int
    dtype: torch.dtype = torch.bfloat16

    def run(self) -> None:
        """As `Call.run`, by both kinds of choice."""
        from dynnsiha.forms import triton

        tokens = 256
        zeros = partial(torch.zeros, dtype=self.dtype, requires_grad=True)
        x, proto = zeros(tokens, self.width), zeros(self.experts, self.width)
        gate, logits = zeros(self.experts), zeros(tokens, self.experts)
        scale = torch.ones((), dtype=self.dtype)
        _, weights, _, _, inverse, _ = triton.choose_by_cosine(
            x, proto, gate, scale, self.active, torch.relu, torch.relu
        )
        weights.sum().backward()
        triton.choose(logits, self.active, torch.relu)[0].sum().backward()
        rows = triton.spread(x.detach(), inverse, self.active)
        total = triton.weighted_sum(rows, weights.detach(), inverse, self.active)
        triton.weighted_sum(rows, None, inverse, self.active)
        triton.weighted_sum_backward(total, rows, weights.detach(), inverse)


@dataclass(frozen=True)
class RotaryCall:
    """Rotary positions of some heads, and the backward pass."""

    name: str
    heads: int
    width: int
    dtype: torch.dtype = torch.bfloat16

    def run(self) -> None:
        """As `Call.run`."""
        from dynnsiha.synthesis.triton import turned

        x = torch.zeros(1, 256, self.heads, self.width, dtype=self.dtype)
        tables = torch.zeros(2, 256, self.width // 2)
        for back in (False, True):
            turned(x, *tables, back=back)


AnyCall = Call | ExpertCall | RotaryCall


def _exact(block_size: int = 64, **fields: Any) -> NSAConfig:
    """A list for every query."""
    windows = {"compress_block": min(64, block_size), "compress_stride": min(64, block_size)}
    return NSAConfig(block_size=block_size, **(windows | fields))


def _hybrid(block_size: int = 64, **fields: Any) -> NSAConfig:
    """A list for a tile of queries and two blocks of each query's own."""
    return _exact(block_size, query_tile="auto", private_blocks=2, **fields)


_PAPER_HYBRID = NSAConfig.paper(query_tile="auto", private_blocks=2)
_NO_MEANS = ("selected", "sliding")
_PACKED = (1001, 1050)

CALLS = (
    Call("paper", (64, 4, 128), NSAConfig.paper()),
    Call("paper hybrid", (64, 4, 128), _PAPER_HYBRID),
    Call("paper hybrid, inference", (64, 4, 128), _PAPER_HYBRID, trains=False),
    Call("paper, top-p", (64, 4, 128), NSAConfig.paper(top_p=0.9)),
    Call("narrow headless, top-p of one", (1, 1, 64), _exact(top_n=4, top_p=0.5), trains=False),
    Call("paper, several pieces", (64, 4, 128), NSAConfig.paper(), lengths=(32768,)),
    Call("headless", (32, 32, 128), _hybrid()),
    Call("headless, exact", (32, 32, 128), _exact()),
    Call("headless, packed, float16", (4, 4, 128), _hybrid(), torch.float16, lengths=_PACKED),
    Call("narrow headless", (4, 4, 64), _hybrid()),
    Call("narrow headless, packed", (4, 4, 64), _hybrid(), lengths=_PACKED),
    Call("wide headless, packed", (4, 4, 256), _hybrid(), lengths=_PACKED),
    Call("gqa4, packed", (32, 8, 128), _hybrid(), lengths=_PACKED),
    Call("given lists", (64, 4, 128), _exact(top_n=13, branches=("selected",)), given="lists"),
    Call("given lists, 64 share", (64, 1, 128), _exact(branches=("selected",)), given="lists"),
    Call("narrow, packed, float16", (6, 2, 64), _hybrid(), torch.float16, lengths=_PACKED),
    Call("narrow, 64 share", (64, 1, 64), _exact()),
    Call("wide", (8, 8, 256), _hybrid()),
    Call("wide, exact", (8, 8, 256), _exact()),
    Call("wide, packed", (6, 2, 256), _hybrid(), lengths=_PACKED),
    Call("narrow blocks of 16", (4, 4, 64), _exact(16, branches=("sliding",)), given="summaries"),
    Call("blocks of 32", (4, 4, 128), _exact(32, branches=("sliding",)), given="summaries"),
    Call("wide blocks of 32", (4, 4, 256), _exact(32, branches=_NO_MEANS), given="lists"),
    Call("blocks of 128", (4, 4, 128), _hybrid(128)),
    Call("narrow blocks of 128, long lists", (4, 4, 64), _exact(128, top_n=128)),
)
"""The manifest, attention."""

EXPERT_CALLS = (
    ExpertCall("64 experts", 64, 2, 1024),
    ExpertCall("16 experts, narrow, float32", 16, 2, 256, torch.float32),
    ExpertCall("256 experts, float16", 256, 8, 1024, torch.float16),
)
"""The manifest, experts."""

ROTARY_CALLS = (
    RotaryCall("32 heads", 32, 128),
    RotaryCall("one head, float32", 1, 64, torch.float32),
)
"""The manifest, positions."""

EVERYTHING: tuple[AnyCall, ...] = (*CALLS, *EXPERT_CALLS, *ROTARY_CALLS)
"""The manifest."""


def launches(target: Target, calls: Sequence[AnyCall] = EVERYTHING) -> list[Launch]:
    """The variants of all kernels that ``calls`` launch on one architecture, each one once.

    Of launches that differ by the value or the alignment of an integer alone, the first stands for
    the others. Each says which calls make it (``Launch.uses``).
    """
    from dynnsiha.attention.architecture import compiled_for

    first: dict[str, Launch] = {}
    uses: dict[str, list[str]] = {}
    for call in calls:
        with captured_launches() as found, compiled_for(target.capability):
            call.run()
        for variant, launch in _variants(found).items():
            first.setdefault(variant, launch)
            uses.setdefault(variant, []).append(call.name)
    return [replace(launch, uses=tuple(uses[variant])) for variant, launch in first.items()]


def _variants(launches: Iterable[Launch]) -> dict[str, Launch]:
    """The first launch of each variant."""
    first: dict[str, Launch] = {}
    for launch in launches:
        first.setdefault(launch.variant, launch)
    return first
