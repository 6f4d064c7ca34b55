"""The choice of blocks, taught: importance learns to point where dense attention looks."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dynnsiha.attention.config import NSAConfig
from dynnsiha.attention.importance import compressed_probabilities, importance
from dynnsiha.attention.lists import only_candidates
from dynnsiha.attention.summaries import mean_summaries
from dynnsiha.forms.nsa import SparseCore

CHUNK_NUMBERS = 1 << 26
"""Dense probabilities that are in memory at once, in the queries of a chunk."""

_FLOOR = 1e-30
"""Importance below which nothing is taught: its inverse, times a number of blocks, is finite."""


@dataclass(frozen=True)
class SelectionCall:
    """A call of sparse attention: what it chose blocks by.

    Attributes:
        core: the module that was called.
        q, k: [B, T, H, D] and [B, T, K, D], rotated, in the graph of the output.
    """

    core: SparseCore
    q: Tensor
    k: Tensor


@contextmanager
def record_selection(model: nn.Module) -> Iterator[list[SelectionCall]]:
    """Inside the block, collect every `SelectionCall` of ``model``, in the order of the calls.

    Calls that read a cache do not count, nor layers without a selected branch. A compiled model
    runs uncompiled meanwhile. The list keeps the tensors, and with them the graph, alive.
    """
    calls: list[SelectionCall] = []

    def report(core: SparseCore, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if kwargs.get("cache") is None:
            calls.append(SelectionCall(core, args[0], args[1]))

    handles = [
        module.register_forward_pre_hook(report, with_kwargs=True)
        for module in model.modules()
        if isinstance(module, SparseCore) and "selected" in module.config.branches
    ]
    try:
        with torch.compiler.set_stance("force_eager"):
            yield calls
    finally:
        for handle in handles:
            handle.remove()


def selection_alignment_loss(calls: Sequence[SelectionCall]) -> Tensor:
    """Mean over calls, lists and queries of mass * KL(looked || pointed), >= 0.

        looked   where the query's dense attention looks: its probabilities, added up in each block
        pointed  importance of the blocks, by which they are chosen
        mass     share of its attention that the query has on the candidates

    Looked and pointed are those of the candidates alone, the blocks that a query may choose
    (complete and not forced), divided by their sums; of the heads that share a list, the mean.
    Looked and mass are constants: q and k learn that a block's summary gives it away, and dense
    attention does not come towards what the summaries see. A query that looks at no candidate does
    not count. Every query is taught as if it chose for itself, whoever shares its list.

    Costs dense attention, in chunks of queries: its probabilities are never held whole.

    Args:
        calls: what `record_selection` collected.

    Returns:
        A scalar, in float32 or wider; 0 for sequences too short for a candidate.

    Raises:
        ValueError: ``calls`` is empty.

    Source: docs/learning.md; distilling attention into the choice of blocks is SeerAttention's
    (arXiv 2410.13276), here for the means that NSA has anyway.
    """
    if not calls:
        raise ValueError("calls is empty: record a model with sparse attention (record_selection)")
    return torch.stack([_alignment(call) for call in calls]).mean()


def _alignment(call: SelectionCall) -> Tensor:
    """The loss of one call."""
    core, config = call.core, call.core.config
    batch, seq_len, heads, _ = call.q.shape
    if core.compress_k is None:
        k_cmp = mean_summaries(call.k, config.compress_block, config.compress_stride)
    else:
        k_cmp = core.compress_k(call.k)
    list_heads = config.list_heads(heads, call.k.shape[2])
    by_token = replace(config, compress_block=1, compress_stride=1)  # windows of a token: dense
    q, k, k_cmp = (x.transpose(1, 2) for x in (call.q, call.k, k_cmp))
    total = q.new_zeros((), dtype=torch.promote_types(q.dtype, torch.float32))
    chunk = max(1, CHUNK_NUMBERS // (batch * heads * seq_len))
    for rows in torch.arange(seq_len, device=q.device).split(chunk):
        with torch.no_grad():
            looked = _on_blocks(q[:, :, rows], k, rows, by_token, list_heads)
            looked = only_candidates(looked, rows, config, first=0)
        chosen_from, looked = looked >= 0, looked.clamp(min=0)
        pointed = _on_blocks(q[:, :, rows], k_cmp, rows, config, list_heads)
        pointed = F.pad(pointed, (0, looked.shape[-1] - pointed.shape[-1]))
        total = total + _divergence(looked, pointed * chosen_from)
    return total / (batch * heads * seq_len)


def _on_blocks(
    q: Tensor, k_cmp: Tensor, rows: Tensor, config: NSAConfig, list_heads: int
) -> Tensor:
    """Probabilities of the queries at ``rows`` over summaries, as importance of blocks."""
    p = compressed_probabilities(q, k_cmp, rows[None], config, q.shape[-1] ** -0.5)
    return importance(p, list_heads, config)


def _divergence(looked: Tensor, pointed: Tensor) -> Tensor:
    """Σ looked (log of looked's share - log of pointed's share) over all queries and blocks.

    Both [..., blocks] >= 0 and 0 off the candidates; only ``pointed`` has a gradient.
    """
    # Logs of sums, not of a quotient: the gradients of the two factors overflow where importance on
    # all candidates is next to nothing. An importance below the floor has no gradient.
    wanted, found = (
        part.clamp(min=_FLOOR).log() - part.sum(-1, keepdim=True).clamp(min=_FLOOR).log()
        for part in (looked, pointed)
    )
    return (looked * (wanted - found)).sum()
