"""Lists per query head, for backends whose lists serve all query heads of a key/value head."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from .config import NSAConfig
from .outputs import BlockIndices, NSAAux


def query_heads_apart(
    run: Callable[..., tuple[Tensor, NSAAux]],
    q: Tensor,
    k: Tensor,
    v: Tensor,
    gates: Tensor,
    config: NSAConfig,
    *,
    block_indices: BlockIndices | None,
    **options: Any,
) -> tuple[Tensor, NSAAux]:
    """One call of ``run`` for each of the G query heads that a key/value head serves.

    Every call reads k and v as they are, so nothing is repeated; each is a call without groups.

    Args:
        run: the core, as ``native_sparse_attention`` with ``return_aux``; it need not know
            ``per_head_lists``.
        q, k, v, gates, config: as in ``native_sparse_attention``.
        block_indices: lists per query head, [B, ..., H, n], or None.
        options: for ``run``, the same in each call.

    Returns:
        o [B, T, H, D] and NSAAux with one list a query head.
    """
    kv_heads = k.shape[2]
    group = q.shape[2] // kv_heads
    config = replace(config, per_head_lists=False)
    given = (block_indices,) if isinstance(block_indices, Tensor) else block_indices or ()

    def one_of(x: Tensor, head: int) -> Tensor:
        return x.unflatten(2, (kv_heads, group))[:, :, :, head]

    results = []
    for head in range(group):
        lists = tuple(one_of(x, head) for x in given)
        results.append(
            run(
                *(one_of(q, head), k, v, one_of(gates, head), config),
                block_indices=(lists[0] if len(lists) == 1 else lists) if lists else None,
                **options,
            )
        )

    def together(parts: list[Tensor]) -> Tensor:
        return torch.stack(parts, 3).flatten(2, 3)

    auxes = [aux for _, aux in results]
    chosen = [
        x.block_indices if isinstance(x.block_indices, tuple) else (x.block_indices,) for x in auxes
    ]
    parts = [together(list(part)) for part in zip(*chosen, strict=True)]
    indices: BlockIndices = parts[0] if len(parts) == 1 else (parts[0], parts[1])
    counts = together([aux.block_counts for aux in auxes])
    lse = together([aux.lse for aux in auxes])
    out = together([out for out, _ in results])
    return out, NSAAux(indices, counts, lse, auxes[0].backend)
