"""Operands and gradients in the branches' layout, step sizes, and products with wide sums."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, fields
from typing import Self

import torch
from torch import Tensor

from ..config import BRANCHES, NSAConfig

_STEP_ELEMENTS = {"cpu": 1 << 20, "cuda": 1 << 27}
"""Logits of one step: a CPU's fit its second-level cache, a GPU's fill the machine."""

_PARTIAL_BYTES = {"cpu": 64 << 20, "cuda": 2 << 30}
"""Partial outputs of one chunk of queries in the selected branch."""

_CHUNK_TOKENS = 32768
"""Longest chunk: beyond it a block serves enough queries, and heads fill the budget better."""


@dataclass(frozen=True)
class Problem:
    """Sizes of one call: N = B K rows of heads, G query heads a row, T padded to whole blocks."""

    config: NSAConfig
    scale: float
    heads: int  # N
    group: int  # G
    head_dim: int  # D
    seq_len: int  # T of the keys, before padding
    padded_len: int
    tile: int  # R
    differentiate: bool  # whether grad mode is on for the call
    step_elements: int
    partial_bytes: int
    first: int = 0  # position of query 0 among the keys; another one only in ``selected.forward``

    @classmethod
    def of(cls, q: Tensor, k: Tensor, config: NSAConfig, scale: float, first: int = 0) -> Problem:
        """The problem that q [B, n, H, D], from position ``first`` on, and k [B, T, K, D] pose."""
        batch, seq_len, kv_heads, head_dim = k.shape
        q_heads = q.shape[2]
        kind = "cuda" if q.device.type == "cuda" else "cpu"
        assert isinstance(config.query_tile, int)
        return cls(
            config=config,
            scale=scale,
            heads=batch * kv_heads,
            group=q_heads // config.list_heads(q_heads, kv_heads),
            head_dim=head_dim,
            seq_len=seq_len,
            padded_len=-(-seq_len // config.block_size) * config.block_size,
            tile=config.query_tile,
            differentiate=torch.is_grad_enabled(),
            step_elements=_STEP_ELEMENTS[kind],
            partial_bytes=_PARTIAL_BYTES[kind],
            first=first,
        )

    @property
    def blocks(self) -> int:
        """Selection blocks of a sequence."""
        return self.padded_len // self.config.block_size

    def windows_ended(self, position: int) -> int:
        """Summary windows whose last token is at or before ``position``."""
        c = self.config
        whole = min(position, self.seq_len - 1) - c.compress_block + 1
        return whole // c.compress_stride + 1 if whole >= 0 else 0

    def blocks_of_windows(self, windows: int) -> int:
        """Selection blocks that the first ``windows`` >= 1 summary windows reach."""
        c = self.config
        last = (windows - 1) * c.compress_stride + c.compress_block
        return -(-last // c.block_size)

    def chunks(self, slots: int) -> Iterator[tuple[slice, int, int]]:
        """(heads, begin, end), so that ``slots`` partial outputs a query stay within the budget."""
        size = self.config.block_size
        row_bytes = slots * self.group * self.head_dim * 4
        tokens = max(size, min(self.partial_bytes // row_bytes, _CHUNK_TOKENS, self.padded_len))
        tokens = tokens // size * size
        heads = max(1, self.partial_bytes // (row_bytes * tokens))
        for first in range(0, self.heads, heads):
            for begin in range(0, self.padded_len, tokens):
                chosen = slice(first, min(first + heads, self.heads))
                yield chosen, begin, min(begin + tokens, self.padded_len)

    def steps(self, begin: int, end: int, elements_per_block: int) -> Iterator[tuple[int, int]]:
        """[begin, end) cut into whole blocks of queries, each step within the element budget."""
        size = self.config.block_size
        length = max(1, self.step_elements // elements_per_block) * size
        for first in range(begin, end, length):
            yield first, min(first + length, end)


def accumulation_dtype(dtype: torch.dtype) -> torch.dtype:
    """Where sums and softmaxes are held."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def operand_dtype(x: Tensor) -> torch.dtype:
    """What matrix products read: low precision only where float32 accumulates it."""
    return x.dtype if x.device.type == "cuda" else accumulation_dtype(x.dtype)


def heads_first(x: Tensor, kv_heads: int, length: int) -> Tensor:
    """[B, T, K G, D] as [B K, length, G, D], zero-padded behind, in the operand dtype."""
    x = x.to(operand_dtype(x)).unflatten(2, (kv_heads, -1)).transpose(1, 2).flatten(0, 1)
    pad = length - x.shape[1]
    return torch.nn.functional.pad(x, (0, 0, 0, 0, 0, pad)) if pad else x.contiguous()


def heads_last(x: Tensor, batch: int, seq_len: int) -> Tensor:
    """[B K, length, G, D] as [B, seq_len, K G, D]: the inverse of ``heads_first``."""
    return x[:, :seq_len].unflatten(0, (batch, -1)).transpose(1, 2).flatten(2, 3)


def product(a: Tensor, b: Tensor, scale: float = 1.0) -> Tensor:
    """scale a b for [n, i, j] x [n, j, k], accumulated and returned in the accumulation dtype."""
    if a.dtype in (torch.float16, torch.bfloat16):
        out = torch.bmm(a, b, out_dtype=torch.float32)
    else:
        out = torch.bmm(a, b)
    # Scaling the result while it is in cache costs less than the scratch that baddbmm fills first.
    return out if scale == 1.0 else out.mul_(scale)


class _RowsOfHeads:
    """Tensors whose first dimension is the rows of heads (N = B K); a dataclass of them."""

    def of(self, heads: slice) -> Self:
        """The same tensors, as views on some rows of heads."""
        parts = {f.name: getattr(self, f.name) for f in fields(self)}  # type: ignore[arg-type]
        return type(self)(**{n: x[heads] if isinstance(x, Tensor) else x for n, x in parts.items()})


@dataclass(frozen=True)
class Operands(_RowsOfHeads):
    """q [N, T, G, D], k, v [N, T, D], k_cmp, v_cmp [N, n, D], gates [N, T, G, 3]; T padded."""

    problem: Problem
    q: Tensor
    k: Tensor
    v: Tensor
    k_cmp: Tensor
    v_cmp: Tensor
    gates: Tensor

    @classmethod
    def of_call(
        cls,
        problem: Problem,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        k_cmp: Tensor,
        v_cmp: Tensor,
        gates: Tensor,
    ) -> Operands:
        """From the public layout, [B, T, heads, D]."""
        kv_heads, length = k.shape[2], problem.padded_len
        k, v = (heads_first(x, kv_heads, length)[:, :, 0] for x in (k, v))
        k_cmp, v_cmp = (heads_first(x, kv_heads, x.shape[1])[:, :, 0] for x in (k_cmp, v_cmp))
        gates = heads_first(gates.to(accumulation_dtype(q.dtype)), kv_heads, length)
        return cls(problem, heads_first(q, kv_heads, length), k, v, k_cmp, v_cmp, gates)

    @property
    def dtype(self) -> torch.dtype:
        """Where sums are held."""
        return accumulation_dtype(self.q.dtype)

    def gate(self, branch: str, begin: int, end: int) -> Tensor:
        """Gate of a branch for the queries [begin, end): [N, C, G, 1]."""
        return self.gates[:, begin:end, :, BRANCHES.index(branch), None]

    def empty(self, begin: int, end: int) -> Tensor:
        """Room for the output of the queries [begin, end): [N, C, G, D]."""
        return torch.empty(self.q[:, begin:end].shape, dtype=self.dtype, device=self.q.device)


@dataclass(frozen=True)
class Gradients(_RowsOfHeads):
    """``out``, the gradient of the output [N, T, G, D], and what it becomes, as in Operands."""

    out: Tensor
    q: Tensor
    k: Tensor
    v: Tensor
    k_cmp: Tensor
    v_cmp: Tensor
    gates: Tensor

    @classmethod
    def zeros(cls, operands: Operands, out: Tensor) -> Gradients:
        """Zeros in the accumulation dtype; the branches add to them in place."""
        x = operands
        likes = (x.q, x.k, x.v, x.k_cmp, x.v_cmp, x.gates)
        return cls(out, *(torch.zeros_like(like, dtype=x.dtype) for like in likes))


class Scratch:
    """A buffer that grows to the largest request and is handed out again and again.

    Fresh memory of this size comes page by page from the system, which on a CPU costs more than the
    products that fill it.
    """

    def __init__(self) -> None:
        self._buffer: Tensor | None = None

    def empty(self, *shape: int, like: Tensor, dtype: torch.dtype) -> Tensor:
        """Uninitialised memory; it is valid until the next call."""
        size = math.prod(shape)
        if self._buffer is None or self._buffer.numel() < size:
            self._buffer = torch.empty(size, dtype=dtype, device=like.device)
        return self._buffer[:size].view(shape)
