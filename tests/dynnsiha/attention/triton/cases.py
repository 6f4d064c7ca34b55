"""Which inputs the backend is tested on: the whole grid on a GPU, its smallest shapes without.

Every new combination of group, width, dtype and configuration is compiled anew, at seconds each; a
new length or batch costs nothing. So a *kind* fixes the former, and the grid is all kinds times all
lengths. The kinds cover every G, and every pair of (width, list kind), (width, dtype) and
(list kind, dtype); batching rotates from case to case, so that every kind and every length meets
one sequence, three, and packed ones. ``test_cases.py`` proves this coverage.

Without a GPU, Triton's interpreter runs the kernels a thousand times slower, and cannot multiply
bfloat16 matrices: few kinds, short sequences, one batching per case, float16 only.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from dynnsiha import NSAConfig

ON_GPU = torch.cuda.is_available()
DEVICE = "cuda" if ON_GPU else "cpu"

LENGTHS = (1, 15, 31, 32, 33, 63, 64, 65, 111, 1024, 2049, 8192)
GROUPS = (1, 2, 3, 4, 6, 8, 12, 16, 64)
WIDTHS = (64, 128, 256)
BATCHINGS = ("single", "batch", "packed")

MOST_LOGITS = 1 << 28
"""Logits of one call: the float64 reference holds about 15 tensors of them, 2 GiB each."""


@dataclass(frozen=True)
class Case:
    """One shape and configuration; ``packed`` has the lengths of packed sequences, if any."""

    name: str
    group: int
    head_dim: int
    dtype: torch.dtype
    config: NSAConfig
    seq_len: int = 0
    batch: int = 1
    kv_heads: int = 1
    packed: tuple[int, ...] = ()

    def __str__(self) -> str:
        dtype = {torch.bfloat16: "bf16", torch.float16: "fp16"}[self.dtype]
        batching = "packed" if self.packed else f"B{self.batch}"
        size = f"T{self.seq_len}-{batching}-" if self.seq_len else ""
        shape = f"G{self.group}-K{self.kv_heads}-D{self.head_dim}"
        return f"{size}{shape}-{dtype}-{self.name}"

    @property
    def tokens(self) -> int:
        """Length of a batch row."""
        return sum(self.packed) if self.packed else self.seq_len

    @property
    def q_heads(self) -> int:
        """Query heads H."""
        return self.group * self.kv_heads

    @property
    def logits(self) -> int:
        """Logits that dense attention would have."""
        return self.batch * self.q_heads * max(self.packed, default=self.seq_len) ** 2

    @property
    def bounds(self) -> list[tuple[int, int]]:
        """Begin and end of each sequence that has tokens, along the token dimension."""
        if not self.packed:
            return [(0, self.seq_len)]
        ends = list(itertools.accumulate(self.packed, initial=0))
        return [(a, b) for a, b in itertools.pairwise(ends) if a < b]

    def at(self, seq_len: int, batching: str = "single", several: int = 3 if ON_GPU else 2) -> Case:
        """This kind at a length, as one sequence, several, or packed with empty and short ones."""
        if batching == "packed":
            return replace(self, seq_len=seq_len, packed=(0, 1, seq_len, 0, 33 if ON_GPU else 5))
        return replace(self, seq_len=seq_len, batch=several if batching == "batch" else 1)

    def inputs(self, seed: int = 0, structured: bool = False) -> Inputs:
        """Normal q, k, v and gradient, gates in (0, 1).

        Args:
            seed: of the random numbers.
            structured: keys of a block share a direction, so that some blocks matter far more.
        """
        gen = torch.Generator().manual_seed(seed)
        heads = (self.q_heads, self.kv_heads, self.kv_heads, self.q_heads)
        q, k, v, grad = (
            torch.randn(self.batch, self.tokens, n, self.head_dim, generator=gen) for n in heads
        )
        if structured:
            size = self.config.block_size
            blocks = -(-self.tokens // size)
            topics = torch.randn(self.batch, blocks, *k.shape[2:], generator=gen)
            k = k + 1.5 * topics.repeat_interleave(size, 1)[:, : self.tokens]
        gates = torch.rand(self.batch, self.tokens, self.q_heads, 3, generator=gen)
        options: dict[str, Any] = {}
        if self.packed:
            ends = list(itertools.accumulate(self.packed, initial=0))
            options["cu_seqlens"] = torch.tensor(ends, dtype=torch.int32, device=DEVICE)
        operands = [x.to(DEVICE, self.dtype) for x in (q, k, v, gates)]
        return Inputs(operands, grad.to(DEVICE, self.dtype), options)


@dataclass(frozen=True)
class Inputs:
    """q, k, v, gates, the output's gradient, and keyword arguments of the call."""

    operands: list[Tensor]
    grad: Tensor
    options: dict[str, Any] = field(default_factory=dict)

    def gated(self, branch: int | None) -> Inputs:
        """The same with one branch's gate at 1 and the others at 0; unchanged for None."""
        if branch is None:
            return self
        gates = torch.zeros_like(self.operands[3])
        gates[..., branch] = 1.0
        return replace(self, operands=[*self.operands[:3], gates])

    def given(self, **options: Any) -> Inputs:
        """The same with more keyword arguments."""
        return replace(self, options=self.options | options)


_BF16, _FP16 = torch.bfloat16, torch.float16

_GPU_KINDS = (
    Case("hybrid R64 m2", 1, 64, _BF16, NSAConfig(query_tile=64, private_blocks=2), kv_heads=2),
    Case("hybrid R32 m1", 2, 128, _FP16, NSAConfig(query_tile=32, private_blocks=1, top_n=7)),
    Case("exact", 3, 64, _BF16, NSAConfig(top_n=7), kv_heads=2),
    Case("hybrid R16 m2", 4, 128, _BF16, NSAConfig(query_tile=16, private_blocks=2), kv_heads=2),
    Case("paper", 6, 64, _FP16, NSAConfig.paper(top_n=6)),
    Case("paper", 8, 128, _BF16, NSAConfig.paper()),
    Case("shared R4", 12, 64, _FP16, NSAConfig(query_tile=4, top_n=5)),
    Case("exact", 16, 128, _BF16, NSAConfig(), kv_heads=2),
    Case("exact", 64, 64, _BF16, NSAConfig(top_n=6)),
    Case("paper", 1, 256, _BF16, NSAConfig.paper(top_n=8)),
    Case("hybrid R8 m2", 4, 256, _FP16, NSAConfig(query_tile=8, private_blocks=2, top_n=8)),
    Case("exact", 2, 256, _FP16, NSAConfig(top_n=5)),
)

_CPU_KINDS = (
    Case(
        "hybrid R16 m1",
        2,
        64,
        _FP16,
        NSAConfig(query_tile=16, private_blocks=1, top_n=4, local_blocks=1),
    ),
    Case("exact", 3, 64, _FP16, NSAConfig(top_n=4, window=70)),
    Case("paper", 1, 64, _FP16, NSAConfig.paper(top_n=4, window=40), kv_heads=2),
)

KINDS = _GPU_KINDS if ON_GPU else _CPU_KINDS

SHAPES = [replace(kind, dtype=_FP16).at(33) for kind in _GPU_KINDS]
"""Every G and every D, as short as it may be, in the one dtype that the interpreter knows."""

HYBRID, EXACT, PAPER = (
    (_GPU_KINDS[3], _GPU_KINDS[7], _GPU_KINDS[5])
    if ON_GPU
    else (_CPU_KINDS[0], replace(_CPU_KINDS[1], group=1), _CPU_KINDS[2])
)
"""The kinds that tests of one property use: on a GPU, compiled already by the grid."""

LIGHT_EXACT = _GPU_KINDS[2] if ON_GPU else _CPU_KINDS[1]
LIGHT_HYBRID = replace(HYBRID, head_dim=64, kv_heads=1)
"""For tests of many configurations: narrow heads compile fastest. The first has three heads, which
tiles pad to four."""


def grid() -> list[Case]:
    """All kinds at all lengths that fit, batching rotated; a few of them without a GPU."""
    if not ON_GPU:
        few = [(1, 33, 200), (64, 15, 200), (65, 111, 200)]
        return [
            kind.at(seq_len, "single" if seq_len == 200 else BATCHINGS[(i + j) % 3])
            for i, kind in enumerate(KINDS)
            for j, seq_len in enumerate(few[i])
        ]
    memory = torch.cuda.get_device_properties(0).total_memory
    return gpu_grid(min(MOST_LOGITS, memory // (8 * 24)))


def gpu_grid(most_logits: int = MOST_LOGITS) -> list[Case]:
    """All kinds at all lengths; one sequence and one head where more would not fit, or none."""
    cases = []
    for i, kind in enumerate(_GPU_KINDS):
        for j, seq_len in enumerate(LENGTHS):
            wanted = kind.at(seq_len, BATCHINGS[(i + j) % 3], several=3)
            smallest = replace(kind.at(seq_len), kv_heads=1)
            fitting = [c for c in (wanted, smallest) if c.logits <= 1.01 * most_logits]
            cases += fitting[:1]
    return cases
