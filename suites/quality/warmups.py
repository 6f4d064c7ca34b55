"""What a training begins with: shorter sequences, lists of all blocks. Imports no torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Stage:
    """So many steps in a row, each on ``batch`` sequences of ``seq_len`` tokens."""

    steps: int
    batch: int
    seq_len: int


def length_stages(
    steps: int, batch: int, seq_len: int, variant: Mapping[str, str]
) -> tuple[Stage, ...]:
    """The stages of a training; one, unless the variant has a sequence length warm-up.

    With ``length_warmup=f`` sequences have T / f tokens at first and double until they have T. The
    shorter lengths share the first half of the steps; a step has the same number of tokens at each,
    rounded. Only stages with steps count.
    """
    factor = int(variant["length_warmup"])
    factors = [factor >> place for place in range(factor.bit_length() - 1)]
    each = steps // 2 // max(1, len(factors))
    warming = [Stage(each, batch * f, seq_len // f) for f in factors if each]
    done = sum(stage.steps for stage in warming)
    return (*warming, Stage(steps - done, batch, seq_len))


def dense_steps(steps: int, variant: Mapping[str, str]) -> int:
    """How many steps, at first, have every block in each list: a share ``dense_warmup`` of all.

    Rounded down: the last step has the lists that are asked about.
    """
    return int(steps * float(variant["dense_warmup"]))
