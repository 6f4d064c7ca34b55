"""Running lists of the best blocks, in registers.

A candidate is a 32-bit integer, its *key*: the bits of its score above, those of its block, counted
down, below. So the best are found by integer maxima, ties fall to the lower block, and the least
key stands for no candidate.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def merged(run, key):
    """The best of the rows' lists ``run`` [BQ, RUN] and of new candidates [BQ, J], unordered."""
    LOWEST: tl.constexpr = -2147483648
    best, low = tl.max(key, 1), tl.min(run, 1)
    while tl.max((best > low).to(tl.int32), 0) > 0:
        enters = (best > low)[:, None] & (run == low[:, None])
        run = tl.where(enters, best[:, None], run)
        key = tl.where(key == best[:, None], LOWEST, key)
        best, low = tl.max(key, 1), tl.min(run, 1)
    return run


@triton.jit
def ranked(levels, key):
    """Sorted candidates of every place, and a new one: the least falls out."""
    out = ()
    for i in tl.static_range(len(levels)):
        out = out + (tl.maximum(levels[i], key),)  # noqa: RUF005
        key = tl.minimum(levels[i], key)
    return out


@triton.jit
def nothing_ranked(
    BQ: tl.constexpr, J: tl.constexpr, CHOSEN: tl.constexpr, RUN: tl.constexpr, LEVELS: tl.constexpr
):
    """Empty lists of the rows [BQ, RUN], and LEVELS empty candidates [J, BQ] of every place."""
    LOWEST: tl.constexpr = -2147483648
    slot = tl.arange(0, RUN)
    run = tl.where(slot < CHOSEN, LOWEST + slot, 2147483647)[None, :] + tl.zeros([BQ, 1], tl.int32)
    levels = ()
    for _ in tl.static_range(LEVELS):
        levels = levels + (tl.full([J, BQ], LOWEST, tl.int32),)  # type: ignore[assignment] # noqa: RUF005
    return run, levels


@triton.jit
def best_first(run, levels, CHOSEN: tl.constexpr, RUN: tl.constexpr):
    """The lists [BQ, RUN] with the candidates of all places, best first, empty slots last.

    So what walks a list can stop at the first empty slot.
    """
    LOWEST: tl.constexpr = -2147483648
    for i in tl.static_range(len(levels)):
        run = merged(run, tl.trans(levels[i]))
    filled = (tl.arange(0, RUN) < CHOSEN)[None, :] & (run >= LOWEST + RUN)
    return tl.sort(tl.where(filled, run, LOWEST), descending=True)


@triton.jit
def blocks_of(run, index_mask):
    """The blocks of keys; -1 for no candidate."""
    LOWEST: tl.constexpr = -2147483648
    return tl.where(run > LOWEST, index_mask - (run & index_mask), -1)


@triton.jit
def candidates(
    scores, column, taken, tile, stop, crosses, index_mask,
    INIT: tl.constexpr, EXCLUDED: tl.constexpr, RAW: tl.constexpr,
):  # fmt: skip
    """Keys of the blocks ``column`` [J] by their scores [J, BQ]; the lowest where one is none.

    That is: forced, in the bit of this ``tile`` of what is ``taken`` if lists are EXCLUDED, or from
    ``stop`` [BQ] on, which matters only if the tile ``crosses`` it. RAW scores may be negative.
    """
    LOWEST: tl.constexpr = -2147483648
    fits = (column >= INIT)[:, None]
    if EXCLUDED > 0:
        fits &= ((taken >> tile) & 1) == 0
    bits = scores.to(tl.int32, bitcast=True)
    if RAW:
        bits = bits ^ ((bits >> 31) & 0x7FFFFFFF)
    key = (bits & ~index_mask) | (index_mask - column)[:, None]
    key = tl.where(fits, key, LOWEST)
    if crosses:
        key = tl.where(column[:, None] < stop[None, :], key, LOWEST)
    return key


@triton.jit
def taken_before(
    lists, base, some,
    J: tl.constexpr, EXCLUDED: tl.constexpr, CHUNK: tl.constexpr, ONE_LIST: tl.constexpr,
):  # fmt: skip
    """Bit i of place [j, q] tells that block ``base + i J + j`` is in the list of query q.

    [J, BQ], or [J, 1] where all queries have one list.
    """
    place = tl.arange(0, J)[:, None]
    bits = tl.zeros([J, 1], tl.int32)
    for i in tl.static_range(EXCLUDED):
        if ONE_LIST:
            ahead = tl.load(lists + i) - base
        else:
            ahead = (tl.load(lists + i, mask=some, other=-1) - base)[None, :]
        here = (ahead >= 0) & (ahead < CHUNK * J)
        tile = tl.where(here, ahead, 0) // J
        mine = here & (ahead - tile * J == place)
        bits |= tl.where(mine, tl.full([1, 1], 1, tl.int32) << tile, 0)
    return bits
