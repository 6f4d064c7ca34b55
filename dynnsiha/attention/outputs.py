"""What the core returns beside its output."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

from torch import Tensor

BlockIndices = Tensor | tuple[Tensor, Tensor]
"""Exact lists: int32 [B, T, K, n]. Hybrid lists: the shared ones [B, ceil(T / R), K, s], which
begin with the forced blocks, and the private ones [B, T, K, m]. -1 is an empty slot. With
``per_head_lists`` H stands in place of K."""


@dataclass(frozen=True)
class NSAAux:
    """Lists, counts and log-sum-exps of one call.

    Attributes:
        block_indices: the lists that were used; they can be given back as ``block_indices``.
        counts: ``block_counts``, or what counts them when somebody asks.
        lse: float [B, T, H], natural log of the sum of exponentials of the scaled logits in the
            selected branch; -inf where a query has no blocks, or the branch is off.
        backend: the backend that ran; "cached" for tokens that came after others in a cache.
    """

    block_indices: BlockIndices
    counts: Tensor | Callable[[], Tensor]
    lse: Tensor
    backend: str

    @cached_property
    def block_counts(self) -> Tensor:
        """int32 [B, T, K] (or H), blocks per query; 0 where the selected branch is off."""
        return self.counts if isinstance(self.counts, Tensor) else self.counts()
