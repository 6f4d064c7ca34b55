"""What a language model keeps of the tokens so far: a cache for each of its layers."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager

import torch
from torch import Tensor

from dynnsiha.attention.cache import KVCache
from dynnsiha.forms.block_caches import BlockCaches

LayerCache = KVCache | BlockCaches


class ModelCache:
    """Used like a `KVCache`: ``model.new_cache(batch, max_len)`` makes it, the model fills it.

    Args:
        layers: one cache for each attention layer or form of the model, in order; at least one.

    Attributes:
        shifts: for each layer the last tokens' inputs of its token shift, [B, T, d], None where it
            has none. They are those of the latest call alone.
    """

    def __init__(self, layers: Sequence[LayerCache]) -> None:
        self.layers = tuple(layers)
        self.shifts: list[Tensor | None] = [None] * len(self.layers)
        self._shift_starts = [0] * len(self.lengths)

    @property
    def lengths(self) -> tuple[int, ...]:
        """Tokens of each sequence so far."""
        return self.layers[0].lengths

    @property
    def max_len(self) -> int:
        """Most tokens of a sequence."""
        return self.layers[0].max_len

    @property
    def nbytes(self) -> int:
        """Bytes of all that is kept."""
        return sum(layer.nbytes for layer in self.layers) + sum(
            x.nbytes for x in self.shifts if x is not None
        )

    @property
    def held_bytes(self) -> int:
        """Bytes of what the tokens so far fill, as `KVCache.held_bytes`, without token shifts."""
        return sum(layer.held_bytes for layer in self.layers)

    def positions(self, count: int) -> Tensor:
        """Where the next ``count`` tokens stand, as `KVCache.positions`."""
        return self.layers[0].positions(count)

    def require_room(self, count: int) -> None:
        """Raise ValueError unless ``count`` more tokens fit."""
        self.layers[0].require_room(count)

    @contextmanager
    def unless_it_fails(self) -> Iterator[None]:
        """Take over what a call appends, or nothing of it, as `KVCache.unless_it_fails`."""
        shifts, starts = self.shifts, self._shift_starts
        try:
            with ExitStack() as stack:
                for layer in self.layers:
                    stack.enter_context(layer.unless_it_fails())
                yield
        except BaseException:
            self.shifts, self._shift_starts = shifts, starts
            raise

    def can_cut(self, kept: int, length: int) -> bool:
        """Whether attention lets `truncate` make ``length`` of ``kept`` tokens."""
        return self.layers[0].can_cut(kept, length)

    def previous(self, layer: int) -> Tensor | None:
        """The input of a layer's token shift at the last token of each sequence, [B, d].

        None before the first token.
        """
        inputs, lengths = self.shifts[layer], self.lengths
        if inputs is None or max(lengths) == 0:
            return None
        at = [length - 1 - start for length, start in zip(lengths, self._shift_starts, strict=True)]
        rows = torch.arange(len(at), device=inputs.device)
        last = inputs[rows, torch.tensor(at, device=inputs.device).clamp(min=0)]
        begun = torch.tensor(lengths, device=inputs.device) > 0
        return torch.where(begun[:, None], last, torch.zeros_like(last))

    def keep_shifts(self, shifts: Sequence[Tensor | None], before: Sequence[int]) -> None:
        """Take over the inputs of all token shifts of one call, which began at ``before``."""
        self.shifts = [None if x is None else x.detach() for x in shifts]
        self._shift_starts = list(before)

    def truncate(self, lengths: Sequence[int]) -> None:
        """Forget what stands behind each sequence's length, as `KVCache.truncate`.

        Raises:
            ValueError: as there, or with token shifts a length before the latest call.
        """
        if any(x is not None for x in self.shifts):
            for length, start in zip(lengths, self._shift_starts, strict=False):
                if 0 < length <= start:
                    raise ValueError(
                        f"lengths: {length} lies before the latest call, which began at {start}; "
                        "token shifts are kept for that call alone"
                    )
        for layer in self.layers:
            layer.truncate(lengths)

    def select(self, rows: Sequence[int]) -> None:
        """Keep these sequences, in this order, as `KVCache.select`."""
        rows = [int(row) for row in rows]
        for layer in self.layers:
            layer.select(rows)
        for i, x in enumerate(self.shifts):
            if x is not None:
                self.shifts[i] = x[rows]
        self._shift_starts = [self._shift_starts[row] for row in rows]

    def reset(self) -> None:
        """Forget all tokens; the memory stays."""
        for layer in self.layers:
            layer.reset()
        self.shifts = [None] * len(self.layers)
        self._shift_starts = [0] * len(self.lengths)
