"""What `fit` trains on: batches by number, and drawing them while the device is busy."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Protocol

import torch
from torch import Tensor


class Batches(Protocol):
    """Training data. Batch number n is a function of n alone, so that a run can be resumed."""

    def draw(self, position: int) -> tuple[Tensor, ...]:
        """char_ids and word_ids, int64 [B, T] each, of batch number ``position``.

        Where not every character counts, the characters that the model has to predict follow: bool
        [B, T], of which the first column is not looked at (nothing comes before it).
        """

    def identity(self) -> Mapping[str, int]:
        """Numbers that differ where the batches would; a checkpoint keeps them."""


def drawn_batches(
    batches: Batches, first: int, last: int, device: torch.device
) -> Iterator[tuple[Tensor, ...]]:
    """Batches ``first`` to ``last`` (included) on the device, in order.

    For a GPU the next one is drawn by another thread, into memory that the device reads by itself,
    while the current one is used; on a CPU that thread would take a core from the model.
    """
    if device.type != "cuda":
        for position in range(first, last + 1):
            yield tuple(part.to(device) for part in batches.draw(position))
        return

    def pinned(position: int) -> tuple[Tensor, ...]:
        return tuple(part.pin_memory() for part in batches.draw(position))

    with ThreadPoolExecutor(1) as thread:
        waiting = thread.submit(pinned, first) if first <= last else None
        for position in range(first, last + 1):
            assert waiting is not None
            drawn = waiting.result()
            waiting = thread.submit(pinned, position + 1) if position < last else None
            yield tuple(part.to(device, non_blocking=True) for part in drawn)
