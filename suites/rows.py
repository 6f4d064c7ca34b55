"""The reference of a check: outputs of chosen query rows, in any precision, never T x T.

A ``Slice`` is one key/value head of one sequence, with the query heads that share it; attention
treats slices independently, so a check samples some of them and some of their rows.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from dynnsiha.attention.config import NSAConfig
from dynnsiha.attention.reference import reference_rows

Lists = Tensor | tuple[Tensor, Tensor]
Parts = dict[str, Tensor]
CHUNK_ELEMENTS = {"cpu": 2**22, "cuda": 2**26}
"""Logits of one chunk of rows; a chunk holds about a dozen tensors of this size at once."""


@dataclass(frozen=True)
class Slice:
    """Operands of one K/V head: q [1, T, G, D], k, v [1, T, 1, D], gates [1, T, G, 3] or None.

    ``config`` and ``lists`` (of the public interface, cut to this head) belong to sparse attention;
    lists None lets the reference choose its own.
    """

    q: Tensor
    k: Tensor
    v: Tensor
    gates: Tensor | None = None
    config: NSAConfig | None = None
    lists: Lists | None = None

    @property
    def seq_len(self) -> int:
        """T."""
        return self.q.shape[1]

    @property
    def leaves(self) -> tuple[Tensor, ...]:
        """What is differentiated: q, k, v and the gates if there are any."""
        return (self.q, self.k, self.v) + (() if self.gates is None else (self.gates,))

    def cast(self, dtype: torch.dtype, *, differentiated: bool = False) -> Slice:
        """Copies of the operands in another precision, detached, as new leaves."""
        q, k, v = (_leaf(x, dtype, differentiated) for x in (self.q, self.k, self.v))
        gates = None if self.gates is None else _leaf(self.gates, dtype, differentiated)
        return Slice(q, k, v, gates, self.config, self.lists)

    def attend(self, rows: Tensor) -> Tensor:
        """o [1, N, G, D] of the queries at ``rows`` (int64 [N], ascending); differentiable."""
        if self.config is None:
            return dense_rows(self.q, self.k, self.v, rows)
        assert self.gates is not None
        out = reference_rows(
            self.q, self.k, self.v, self.gates, self.config, rows, block_indices=self.lists
        )
        assert isinstance(out, Tensor)
        return out

    def chunks(self, rows: Tensor) -> Iterator[Tensor]:
        """``rows`` in pieces whose logits fit into CHUNK_ELEMENTS."""
        size = CHUNK_ELEMENTS[self.q.device.type] // (self.seq_len * self.q.shape[2])
        yield from rows.split(max(1, size))


def cut(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    gates: Tensor | None,
    config: NSAConfig | None,
    lists: Lists | None,
    batch: int,
    head: int,
) -> Slice:
    """The slice of one sequence and one key/value head."""
    group = q.shape[2] // k.shape[2]
    queries = slice(head * group, (head + 1) * group)
    one, key = slice(batch, batch + 1), slice(head, head + 1)
    return Slice(
        q[one, :, queries],
        k[one, :, key],
        v[one, :, key],
        None if gates is None else gates[one, :, queries],
        config,
        map_lists(lambda x: x[one, :, key], lists),
    )


def map_lists(function: Callable[[Tensor], Tensor], lists: Lists | None) -> Lists | None:
    """Apply a function to a list tensor, or to both of a hybrid pair."""
    if lists is None or isinstance(lists, Tensor):
        return None if lists is None else function(lists)
    return function(lists[0]), function(lists[1])


def dense_rows(q: Tensor, k: Tensor, v: Tensor, rows: Tensor) -> Tensor:
    """Causal dense attention of the queries at ``rows`` (ascending): o [B, N, H, D].

    q [B, T, H, D], k, v [B, T, K, D]. Every step in the dtype of q, as a plain computation in that
    precision would do it.
    """
    end = int(rows[-1]) + 1
    grouped = q[:, rows].unflatten(2, (k.shape[2], -1)).permute(0, 2, 3, 1, 4)
    keys, values = (x[:, :end].transpose(1, 2)[:, :, None] for x in (k, v))
    logits = grouped @ keys.transpose(-1, -2) * q.shape[-1] ** -0.5
    future = torch.arange(end, device=q.device) > rows[:, None]
    out = logits.masked_fill(future, float("-inf")).softmax(-1) @ values
    return out.permute(0, 3, 1, 2, 4).flatten(2, 3)


def row_reference(part: Slice, d_out: Tensor | None, rows: Tensor, dtype: torch.dtype) -> Parts:
    """What the queries at ``rows`` compute, in ``dtype``.

    o [1, N, G, D]; if there is a gradient d_out [1, T, G, D], also dq and dgates of these rows, and
    dk, dv [1, T, 1, D] of all keys from these rows alone. Sums are no less precise than float32.
    """
    part = part.cast(dtype, differentiated=d_out is not None)
    outputs, gradients = [], []
    wide = torch.promote_types(dtype, torch.float32)
    dk, dv = (torch.zeros_like(x, dtype=wide) for x in (part.k, part.v))
    for chunk in part.chunks(rows):
        with torch.set_grad_enabled(d_out is not None):
            o = part.attend(chunk)
        outputs.append(o.detach())
        if d_out is not None:
            found = torch.autograd.grad(o, part.leaves, d_out[:, chunk].to(o.dtype))
            dk += found[1]
            dv += found[2]
            gradients.append([x[:, chunk] for x in (found[0], *found[3:])])
    result = {"o": torch.cat(outputs, 1)}
    if d_out is None:
        return result
    for name, pieces in zip(("dq", "dgates"), zip(*gradients, strict=True), strict=False):
        result[name] = torch.cat(pieces, 1)
    return result | {"dk": dk, "dv": dv}


def key_reference(
    part: Slice, d_out: Tensor, keys: Tensor, first_query: int, dtype: torch.dtype
) -> Parts:
    """dk and dv of the keys at ``keys``, from all queries that can see them: [1, N, 1, D]."""
    part = part.cast(dtype, differentiated=True)
    wide = torch.promote_types(dtype, torch.float32)
    sums = [
        torch.zeros(1, len(keys), 1, part.q.shape[-1], dtype=wide, device=keys.device) for _ in "kv"
    ]
    for chunk in part.chunks(torch.arange(first_query, part.seq_len, device=keys.device)):
        o = part.attend(chunk)
        gradients = torch.autograd.grad(o, (part.k, part.v), d_out[:, chunk].to(o.dtype))
        for total, gradient in zip(sums, gradients, strict=True):
            total += gradient[:, keys]
    return dict(zip(("dk", "dv"), sums, strict=True))


def _leaf(tensor: Tensor, dtype: torch.dtype, differentiated: bool) -> Tensor:
    return tensor.detach().to(dtype, copy=True).requires_grad_(differentiated)
