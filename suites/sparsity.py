"""How many keys a query is expected to see, and the top_n that leaves out a given share of them.

A pair counts as attended when the sliding window or a selected block covers it (their union). How
much they overlap depends on the blocks chosen; a plan knows none, so it expects every candidate to
be equally likely. The share that a run reaches is measured from its lists.
"""

from __future__ import annotations

from dynbench.suites.settings import BLOCK_SIZE, FORCED_BLOCKS, INIT_BLOCKS, LOCAL_BLOCKS

SLACK = 0.005
"""A target this far beyond the largest sparsity still counts as reached."""


def expected_attended_pairs(
    seq_len: int,
    window: int,
    top_n: int,
    *,
    block_size: int = BLOCK_SIZE,
    init_blocks: int = INIT_BLOCKS,
    local_blocks: int = LOCAL_BLOCKS,
) -> float:
    """Pairs in the union of selected and window keys over one sequence, candidates equally likely.

    Query t sees the window, the forced blocks and f of its c candidate blocks (those between the
    forced ones), so it expects window-or-forced keys plus f / c of the candidates' keys outside the
    window. O(T), on whole arrays.
    """
    import numpy as np

    t = np.arange(seq_len, dtype=np.int64)
    own = t // block_size
    window_start = np.maximum(t - window + 1, 0)
    head_end = np.minimum(init_blocks * block_size, t + 1)
    tail_start = np.maximum(own - local_blocks + 1, 0) * block_size
    dense_start = np.maximum(np.minimum(tail_start, window_start), head_end)
    certain = head_end + (t + 1 - dense_start)
    candidates = np.maximum(own - local_blocks + 1 - init_blocks, 0)
    chosen = np.clip(top_n - init_blocks - local_blocks, 0, candidates)
    outside = np.maximum(dense_start - head_end, 0)
    expected = chosen / np.maximum(candidates, 1) * outside
    return float(certain.sum() + expected.sum())


def expected_sparsity(seq_len: int, window: int, top_n: int, block_size: int = BLOCK_SIZE) -> float:
    """1 - expected attended pairs / causal pairs."""
    attended = expected_attended_pairs(seq_len, window, top_n, block_size=block_size)
    return 1 - attended / (seq_len * (seq_len + 1) / 2)


def solve_top_n(seq_len: int, window: int, target: float, block_size: int = BLOCK_SIZE) -> int:
    """The top_n whose expected sparsity is nearest to the target, by bisection.

    A target beyond reach gives the nearest end of the range: no blocks but the forced ones, or all
    blocks. Between equally near values the smaller one wins.
    """
    low, high = FORCED_BLOCKS, max(FORCED_BLOCKS, -(-seq_len // block_size))
    while high - low > 1:
        middle = (low + high) // 2
        if expected_sparsity(seq_len, window, middle, block_size) >= target:
            low = middle
        else:
            high = middle
    reached = {n: expected_sparsity(seq_len, window, n, block_size) for n in (low, high)}
    return min(reached, key=lambda n: abs(reached[n] - target))


def unreachable(seq_len: int, window: int, target: float, block_size: int = BLOCK_SIZE) -> str:
    """Why a target sparsity cannot be reached, naming the nearest; empty if it can."""
    largest = expected_sparsity(seq_len, window, FORCED_BLOCKS, block_size)
    if target <= largest + SLACK:
        return ""
    return (
        f"sparsity {target:g} cannot be reached at T={seq_len} with window {window}: "
        f"the nearest is {largest:.3f} (top_n={FORCED_BLOCKS})"
    )
