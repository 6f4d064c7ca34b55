"""Whether tokens took the right experts, by the logits that a reference gives them.

Near ties, rounding decides, and in low precision a few tokens round far off: one whose norm divides
by a small number, and from block to block those that attend to it. So a few tokens may take an
expert that is clearly not among the best: a small share always, and where a plain computation in
the same precision errs more often, as many times that as an output's error may be.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from dynbench.suites.compare import OUTPUT_FACTOR, TIE_TOLERANCE

MISROUTED_SHARE = 1e-3
"""Tokens that may always take an expert clearly worse than one left out."""


def misrouted(logits: Tensor, indices: Tensor) -> int:
    """Tokens that took an expert clearly worse, by logits [B, T, E], than one left out."""
    taken = torch.zeros_like(logits, dtype=torch.bool).scatter(-1, indices, True)
    worst_taken = logits.masked_fill(~taken, torch.inf).amin(-1)
    best_left = logits.masked_fill(taken, -torch.inf).amax(-1)
    return int((worst_taken < best_left - TIE_TOLERANCE[torch.bfloat16]).sum())


def routing_problem(
    reference: Sequence[Tensor], taken: Sequence[Tensor], plain: Sequence[Tensor] | None
) -> str:
    """What is wrong with the experts that were taken; empty if nothing is.

    Args:
        reference: logits [B, T, E] of each router's calls, in high precision.
        taken: the experts taken in them, int64 [B, T, k].
        plain: logits of the same calls by a plain computation in the case's own precision; None
            where that is the reference's.
    """
    if not reference:
        return ""
    found = [misrouted(*call) for call in zip(reference, taken, strict=True)]
    tokens = reference[0][..., 0].numel()
    allowed = MISROUTED_SHARE * tokens
    if plain is not None:
        pairs = zip(plain, taken, strict=True)
        best = [logits.topk(indices.shape[-1], -1).indices for logits, indices in pairs]
        erring = max(misrouted(*call) for call in zip(reference, best, strict=True))
        allowed = max(allowed, OUTPUT_FACTOR * (erring + 1))  # a lone token's rounding is luck
    if max(found) <= allowed:
        return ""
    share = max(found) / tokens
    return f"{share:.2%} of the tokens took an expert that was not among the best"
