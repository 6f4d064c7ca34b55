"""The bigram model: what a language model must beat before it has read anything twice."""

from __future__ import annotations

import torch
from torch import Tensor


def bigram_loss(char_ids: Tensor, counted: Tensor | None = None, smoothing: float = 0.0) -> float:
    """Mean cross-entropy, in nats a character, of a bigram model on a text.

    p(b | a) = (count(a b) + smoothing) / (count(a ·) + smoothing * V), V the highest id plus 1.

    Args:
        char_ids: the text that is predicted, int64 [N], N >= 2.
        counted: the text in which pairs are counted; ``char_ids`` itself if None, which no bigram
            model of that text can beat.
        smoothing: added to every count; above 0 where ``counted`` is another text.

    Returns:
        Nats a character; infinite where a pair has probability 0 (0 / 0 for an unseen first
        character without smoothing gives NaN).

    Raises:
        ValueError: a text of fewer than 2 characters, or a negative smoothing.
    """
    source = char_ids if counted is None else counted
    if min(len(source), len(char_ids)) < 2:
        raise ValueError("char_ids: a pair needs at least 2 characters")
    if smoothing < 0:
        raise ValueError(f"smoothing={smoothing}: must be at least 0")
    vocabulary = 1 + int(max(source.max(), char_ids.max()))
    pairs, counts = (source[:-1] * vocabulary + source[1:]).unique(return_counts=True)
    firsts = torch.bincount(source[:-1], minlength=vocabulary)
    wanted = char_ids[:-1] * vocabulary + char_ids[1:]
    place = torch.searchsorted(pairs, wanted).clamp(max=len(pairs) - 1)
    count = torch.where(pairs[place] == wanted, counts[place], 0).double()
    of_first = firsts[char_ids[:-1]].double()
    return -float(((count + smoothing) / (of_first + smoothing * vocabulary)).log().mean())
