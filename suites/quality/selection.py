"""Dense warm-up: how many blocks a query selects, from step to step of a training."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

from torch import nn

from dynnsiha.attention.config import NSAConfig
from dynnsiha.forms.nsa import SparseCore


class DenseWarmup:
    """At first every query selects all blocks, and from then on as many as its configuration says.

    Which block holds what is asked for can only be learned from blocks that are selected, and they
    are by what was learned. With all of them in the list, the selected branch is dense attention:
    it learns what to look for, which is what importance is made of.

    Args:
        model: its cores' configurations are exchanged.
        seq_len: tokens of the longest sequences.
        steps: how many steps have all blocks; 0 for none.
    """

    def __init__(self, model: nn.Module, seq_len: int, steps: int) -> None:
        cores = [module for module in model.modules() if isinstance(module, SparseCore)]
        self._sparse = [(core, core.config) for core in cores]
        self._dense = [
            (core, replace(config, top_n=max(config.top_n, -(-seq_len // config.block_size))))
            for core, config in self._sparse
        ]
        self.steps = steps
        self.before_step(1)

    def before_step(self, step: int) -> None:
        """What holds in ``step``, counted from 1."""
        self._is_dense = step <= self.steps
        self._use(self._dense if self._is_dense else self._sparse)

    @contextmanager
    def ended(self) -> Iterator[None]:
        """Meanwhile the model selects as it will in the end: what is asked is asked of that."""
        self._use(self._sparse)
        try:
            yield
        finally:
            self._use(self._dense if self._is_dense else self._sparse)

    @staticmethod
    def _use(configs: list[tuple[SparseCore, NSAConfig]]) -> None:
        for core, config in configs:
            core.config = config
