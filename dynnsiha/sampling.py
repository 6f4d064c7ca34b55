"""From logits to the next token: temperature, top-k and top-p."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Sampling:
    """How the next token is drawn.

    Attributes:
        temperature: logits are divided by it; 0 takes the most probable token.
        top_k: only that many of the most probable tokens; None for all.
        top_p: the fewest of the most probable tokens whose probabilities reach it; None for all.
            Applied after top_k.

    Raises:
        ValueError: a number out of range.
    """

    temperature: float = 1.0
    top_k: int | None = None
    top_p: float | None = None

    def __post_init__(self) -> None:
        if not self.temperature >= 0:
            raise ValueError(f"temperature={self.temperature}: must be at least 0")
        if self.top_k is not None and self.top_k < 1:
            raise ValueError(f"top_k={self.top_k}: must be at least 1, or None")
        if self.top_p is not None and not 0 < self.top_p <= 1:
            raise ValueError(f"top_p={self.top_p}: must lie in (0, 1], or be None")

    def probabilities(self, logits: Tensor) -> Tensor:
        """logits [..., V] → the distribution that is drawn from, float32 [..., V]."""
        logits = logits.float()
        if self.temperature == 0:
            winner = logits.argmax(-1, keepdim=True)
            return torch.zeros_like(logits).scatter_(-1, winner, 1.0)
        # The best at 0, so that none overflows; no device need divide by a subnormal number.
        divisor = max(self.temperature, torch.finfo(logits.dtype).tiny)
        logits = (logits - logits.amax(-1, keepdim=True)) / divisor
        if self.top_k is not None and self.top_k < logits.shape[-1]:
            # Of equals the first ones, as argmax takes them; topk may take any.
            ranked, order = logits.sort(stable=True, dim=-1, descending=True)
            best, order = ranked[..., : self.top_k], order[..., : self.top_k]
            logits = torch.full_like(logits, -torch.inf).scatter_(-1, order, best)
        p = logits.softmax(-1)
        if self.top_p is not None:
            ranked, order = p.sort(stable=True, dim=-1, descending=True)
            # What stands ahead of a token decides: the one that reaches top_p is still in.
            ahead = ranked.cumsum(-1) - ranked
            p = torch.zeros_like(p).scatter_(-1, order, ranked.masked_fill(ahead >= self.top_p, 0))
            p = p / p.sum(-1, keepdim=True)
        return p

    def draw(self, logits: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """logits [B, V] → tokens, int64 [B]."""
        if self.temperature == 0:
            return logits.argmax(-1)
        return torch.multinomial(self.probabilities(logits), 1, generator=generator)[:, 0]
