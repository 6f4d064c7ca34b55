"""Lists of all blocks at first, so that what is selected later can be learned."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

from torch import nn

from dynnsiha.attention.config import NSAConfig
from dynnsiha.forms.nsa import SparseCore


class DenseWarmup:
    """In the first steps of a training every query selects all blocks, then those of its list.

    Where a key lies is learned from blocks that are selected, and blocks are selected by what was
    learned. With all of them in the list the selected branch is dense attention, which learns what
    to look for; importance, a query against the means of blocks, is made of the same q and k.

        warmup = DenseWarmup(model, seq_len=1024, steps=500)
        fit(model, windows, optimizer, steps=1000, before_step=warmup.before_step)

    Args:
        model: those of its layers that have sparse attention are changed; dense ones have all
            blocks anyway.
        seq_len: tokens of the longest sequences, at least 1.
        steps: how many steps have all blocks, at least 0.

    Raises:
        ValueError: a number out of range.

    Source: docs/findings.md, recall.
    """

    def __init__(self, model: nn.Module, seq_len: int, steps: int) -> None:
        for name, number, least in (("seq_len", seq_len, 1), ("steps", steps, 0)):
            if number < least:
                raise ValueError(f"{name}={number}: must be at least {least}")
        cores = [module for module in model.modules() if isinstance(module, SparseCore)]
        self._sparse = [(core, core.config) for core in cores]
        self._dense = [(core, _with_all_blocks(core.config, seq_len)) for core in cores]
        self._now = self._sparse
        self.steps = steps

    def before_step(self, step: int) -> None:
        """Let hold what does in ``step``, counted from 1."""
        self._now = self._dense if step <= self.steps else self._sparse
        _use(self._now)

    @contextmanager
    def ended(self) -> Iterator[None]:
        """Meanwhile queries select as they will in the end: for asking what was learned."""
        _use(self._sparse)
        try:
            yield
        finally:
            _use(self._now)


def _with_all_blocks(config: NSAConfig, seq_len: int) -> NSAConfig:
    return replace(config, top_n=max(config.top_n, -(-seq_len // config.block_size)), top_p=None)


def _use(configs: list[tuple[SparseCore, NSAConfig]]) -> None:
    for core, config in configs:
        core.config = config
