"""The caches of a form that attends several times: one `KVCache` a block or step."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager

from torch import Tensor

from dynnsiha.attention.cache import KVCache


class BlockCaches:
    """Used like a `KVCache`: a form makes it (``form.new_cache(batch, max_len)``) and fills it.

    Args:
        caches: one for each attention of the form, in its order; at least one.
    """

    def __init__(self, caches: Sequence[KVCache]) -> None:
        self.caches = tuple(caches)

    def __iter__(self) -> Iterator[KVCache]:
        return iter(self.caches)

    def __len__(self) -> int:
        return len(self.caches)

    @property
    def max_len(self) -> int:
        """Most tokens of a sequence."""
        return self.caches[0].max_len

    @property
    def lengths(self) -> tuple[int, ...]:
        """Tokens of each sequence so far."""
        return self.caches[0].lengths

    @property
    def uniform(self) -> bool:
        """Whether all sequences are equally long."""
        return self.caches[0].uniform

    @property
    def nbytes(self) -> int:
        """Bytes of all that is kept."""
        return sum(cache.nbytes for cache in self.caches)

    @property
    def held_bytes(self) -> int:
        """Bytes of what the tokens so far fill, as `KVCache.held_bytes`."""
        return sum(cache.held_bytes for cache in self.caches)

    def positions(self, count: int) -> Tensor:
        """Where the next ``count`` tokens stand, as `KVCache.positions`."""
        return self.caches[0].positions(count)

    def require_room(self, count: int) -> None:
        """Raise ValueError unless ``count`` more tokens fit."""
        self.caches[0].require_room(count)

    @contextmanager
    def unless_it_fails(self) -> Iterator[None]:
        """Take over what is appended within, or nothing of it, as `KVCache.unless_it_fails`."""
        with ExitStack() as stack:
            for cache in self.caches:
                stack.enter_context(cache.unless_it_fails())
            yield

    def can_cut(self, kept: int, length: int) -> bool:
        """Whether `truncate` can make ``length`` of ``kept`` tokens, as `KVCache.can_cut`."""
        return self.caches[0].can_cut(kept, length)

    def truncate(self, lengths: Sequence[int]) -> None:
        """Forget what stands behind each sequence's length, as `KVCache.truncate`."""
        for cache in self.caches:
            cache.truncate(lengths)

    def select(self, rows: Sequence[int]) -> None:
        """Keep these sequences, in this order, as `KVCache.select`."""
        for cache in self.caches:
            cache.select(rows)

    def reset(self) -> None:
        """Forget all tokens; the memory stays."""
        for cache in self.caches:
            cache.reset()
