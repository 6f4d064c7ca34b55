"""All blocks selected at first, so that what is selected later can be learned."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn

from dynnsiha.forms.nsa import SparseCore


class DenseWarmup:
    """In the first steps of a training every query selects all blocks, then those of its list.

    Where a key lies is learned from blocks that are selected, and blocks are selected by what was
    learned. With all of them selected that branch is dense attention, which learns what to look
    for; importance, a query against the means of blocks, is made of the same q and k.

        warmup = DenseWarmup(model, steps=500)
        fit(model, windows, optimizer, steps=1000, before_step=warmup.before_step)

    Args:
        model: those of its layers that have sparse attention are changed (`SparseCore`); dense ones
            have all blocks anyway.
        steps: how many steps have all blocks, at least 0.

    Raises:
        ValueError: ``steps`` is out of range.

    Source: docs/findings.md, recall.
    """

    def __init__(self, model: nn.Module, steps: int) -> None:
        if steps < 0:
            raise ValueError(f"steps={steps}: must be at least 0")
        self._cores = [module for module in model.modules() if isinstance(module, SparseCore)]
        self._warm = False
        self.steps = steps

    def before_step(self, step: int) -> None:
        """Let hold what does in ``step``, counted from 1."""
        self._warm = step <= self.steps
        self._select_all(self._warm)

    @contextmanager
    def ended(self) -> Iterator[None]:
        """Meanwhile queries select as they will in the end: for asking what was learned."""
        self._select_all(False)
        try:
            yield
        finally:
            self._select_all(self._warm)

    def _select_all(self, on: bool) -> None:
        for core in self._cores:
            core.selects_all = on
