"""Which part of a large output a check looks at: rows, slices and blocks of keys."""

from __future__ import annotations

import random
from dataclasses import dataclass

import torch
from torch import Tensor

WHOLE_PAIRS = {"cpu": 2**22, "cuda": 2**26}
"""(query, key) pairs of all heads up to which everything is compared."""

GRADIENT_PAIRS = {"cpu": 2**27, "cuda": 2**35}
"""Pairs that the reference may compute to get the gradient of sampled keys."""

SPARSE_COST = 4
"""A pair costs this much more in the sparse reference: three branches, explicit masks."""

RANDOM_ROWS = 40
SLICES = 4
KEY_BLOCK = 64
KEY_BLOCKS = 6


@dataclass(frozen=True)
class Sample:
    """What is compared.

    Attributes:
        whole: everything is; the other fields then cover all rows, slices and keys.
        rows: ascending int64 positions of queries, for o, dq and dgates.
        slices: pairs (sequence, key/value head).
        keys: ascending int64 positions of keys, for dk and dv, all at ``first_query`` or later.
        first_query: every query from here on is needed for the gradient of these keys.
        key_slices: the slices in which these keys are compared.
    """

    whole: bool
    rows: Tensor
    slices: list[tuple[int, int]]
    keys: Tensor
    first_query: int
    key_slices: list[tuple[int, int]]


def affordable_pairs(device: str, *, sparse: bool) -> int:
    """Pairs that the gradient of sampled keys may cost."""
    return GRADIENT_PAIRS[device] // (SPARSE_COST if sparse else 1)


def sample(
    batch: int,
    seq_len: int,
    q_heads: int,
    kv_heads: int,
    device: str,
    seed: int,
    *,
    sparse: bool = False,
) -> Sample:
    """Choose by seed, so that the check before timing and the one after look at the same places.

    Rows: the first and the last, those around the edges of blocks, tiles and windows, and random
    ones of every order of magnitude. Keys: the first block that the budget of pairs allows, the
    last, and random ones between.
    """
    positions = torch.arange(seq_len)
    everything = [(b, h) for b in range(batch) for h in range(kv_heads)]
    if batch * q_heads * seq_len**2 <= WHOLE_PAIRS[device]:
        return Sample(True, positions, everything, positions, 0, everything)
    rng = random.Random(seed)
    slices = everything
    if len(everything) > SLICES:
        inner = rng.sample(everything[1:-1], SLICES - 2)
        slices = sorted([everything[0], *inner, everything[-1]])
    per_slice = q_heads // kv_heads * seq_len
    affordable = affordable_pairs(device, sparse=sparse) // per_slice
    key_slices = slices if affordable >= seq_len * len(slices) else [rng.choice(slices)]
    queries = max(affordable // len(key_slices), 2 * KEY_BLOCK)
    first = max(0, seq_len - queries + KEY_BLOCK - 1) // KEY_BLOCK * KEY_BLOCK
    last = (seq_len - 1) // KEY_BLOCK * KEY_BLOCK
    inner_blocks = range(first + KEY_BLOCK, last, KEY_BLOCK)
    chosen = rng.sample(inner_blocks, min(len(inner_blocks), KEY_BLOCKS - 2))
    starts = sorted({first, *chosen, last})
    keys = torch.cat([positions[start : start + KEY_BLOCK] for start in starts])
    return Sample(False, _rows(seq_len, rng), slices, keys, first, key_slices)


def _rows(seq_len: int, rng: random.Random) -> Tensor:
    edges = [0, 1, 15, 16, 31, 32, 63, 64, 65, 127, 128, 511, 512, 513]
    edges += [seq_len - 1 - x for x in (0, 1, 63, 64)]
    # Uniform in the logarithm and uniform: early rows see few keys, late ones many.
    spread = [int(seq_len ** rng.random()) for _ in range(RANDOM_ROWS // 2)]
    spread += [rng.randrange(seq_len) for _ in range(RANDOM_ROWS - len(spread))]
    return torch.tensor(sorted({r for r in edges + spread if 0 <= r < seq_len}))
