"""How many neurons of synthesis layers the input opens, as a row tells it."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from dynnsiha.synthesis import activation_rate

ACTIVATION_TOKENS = 4096
"""The rate is that of each sequence's first tokens, so many at most."""


def open_share(weights: Sequence[Tensor]) -> float:
    """Share of open neurons over all layers, of their weights [B, T, neurons]."""
    opened = sum(activation_rate(part).item() * part.numel() for part in weights)
    return opened / sum(part.numel() for part in weights)
