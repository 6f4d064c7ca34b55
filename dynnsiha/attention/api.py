"""The public operator: validation once, choice of backend, packed sequences."""

from __future__ import annotations

import warnings
from collections.abc import Iterable
from typing import Any, Literal, overload

import torch
from torch import Tensor

from dynnsiha.uncompiled import uncompiled

from .blockwise import blockwise
from .checks import check_operands, check_summaries, checked_lists, well_formed
from .config import NSAConfig
from .outputs import BlockIndices, NSAAux
from .packed import Part, bounds_of, joined, split
from .per_head import query_heads_apart
from .reference import reference
from .served import refusal


def _flex(*operands: Any, **options: Any) -> tuple[Tensor, NSAAux]:
    """FlexAttention, imported where it runs; as ``flex``."""
    from .flex import flex

    return flex(*operands, **options)


_SEQUENCE_BY_SEQUENCE = {"reference": reference, "blockwise": blockwise, "flex": _flex}
BACKENDS = (*_SEQUENCE_BY_SEQUENCE, "triton")
_DATA_DEPENDENT = "sizes depend on the block lists"


@overload
def native_sparse_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    gates: Tensor,
    config: NSAConfig | None = None,
    *,
    backend: str = "auto",
    block_indices: BlockIndices | None = None,
    cu_seqlens: Tensor | None = None,
    k_cmp: Tensor | None = None,
    v_cmp: Tensor | None = None,
    scale: float | None = None,
    return_aux: Literal[False] = False,
) -> Tensor: ...


@overload
def native_sparse_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    gates: Tensor,
    config: NSAConfig | None = None,
    *,
    backend: str = "auto",
    block_indices: BlockIndices | None = None,
    cu_seqlens: Tensor | None = None,
    k_cmp: Tensor | None = None,
    v_cmp: Tensor | None = None,
    scale: float | None = None,
    return_aux: Literal[True],
) -> tuple[Tensor, NSAAux]: ...


def native_sparse_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    gates: Tensor,
    config: NSAConfig | None = None,
    *,
    backend: str = "auto",
    block_indices: BlockIndices | None = None,
    cu_seqlens: Tensor | None = None,
    k_cmp: Tensor | None = None,
    v_cmp: Tensor | None = None,
    scale: float | None = None,
    return_aux: bool = False,
) -> Tensor | tuple[Tensor, NSAAux]:
    """Causal native sparse attention: o = g_cmp o_cmp + g_slc o_slc + g_win o_win.

    NSA (arXiv 2502.11089, equations 5-12) with hybrid block lists (docs/architecture.md).

    Args:
        q: [B, T, H, D].
        k, v: [B, T, K, D], K dividing H; H / K query heads share a block list, unless
            ``config.per_head_lists``.
        gates: [B, T, H, 3] in (0, 1): compressed, selected, sliding.
        config: what a query attends to; ``NSAConfig()`` if None.
        backend: "reference", "blockwise", "flex" (torch's FlexAttention; no backward pass on a
            CPU), "triton" (NVIDIA GPUs, 16-bit dtypes) or "auto": Triton on a GPU, with a warning
            and "blockwise" where Triton's kernels don't serve the input; "blockwise" elsewhere.
            "reference" alone has second-order gradients: "blockwise" and "triton" raise
            RuntimeError where they are asked for.
        block_indices: lists to use instead of choosing them: int32 [B, T, K, n], -1 empty; for
            query_tile > 1 a pair of shared [B, ceil(T / query_tile), K, s] (forced blocks
            included) and private [B, T, K, m] lists; of packed sequences, the tiles of each one
            after the other's. H stands in place of K with ``config.per_head_lists``.
        cu_seqlens: int [S + 1], boundaries of sequences packed into one batch row of length T;
            blocks, tiles and lists count from each sequence's own start.
        k_cmp, v_cmp: summaries [B, n, K, D] made by a compression network, instead of block means;
            of packed sequences, those of each sequence one after the other.
        scale: of the logits; 1 / sqrt(D) if None.
        return_aux: also return the lists, counts and log-sum-exps.

    Returns:
        o [B, T, H, D] in the dtype of q, or (o, NSAAux).

    Raises:
        ValueError: a shape, list or setting is wrong; the message names the argument, its value and
            the fix.
        TypeError: dtypes or devices differ, or are not served.
    """
    config = NSAConfig() if config is None else config
    check_operands(q, k, v, gates)
    config = config.resolved(q.shape[2], k.shape[2])
    check_backend(backend)
    if (k_cmp is None) != (v_cmp is None):
        raise ValueError("k_cmp and v_cmp: give both or neither")
    bounds = None if cu_seqlens is None else bounds_of(cu_seqlens, q.shape[0], q.shape[1])
    block_indices = None if block_indices is None else well_formed(block_indices, config)
    operands, summaries = (q, k, v, gates), (k_cmp, v_cmp)
    call = bounds, operands, config, block_indices, summaries
    with torch.no_grad():  # a backend that takes packed sequences as they are needs no views
        checked = [_checked(*part, config) for part in _sequences(*call)]
    # A backend chooses the precision of each product itself: autocast would rank blocks in 16 bits.
    with torch.autocast(q.device.type, enabled=False):
        if _chosen(backend, q, k, config, scale, block_indices) == "triton":
            out, aux = uncompiled(_on_triton, _DATA_DEPENDENT)(
                *operands,
                config,
                bounds=bounds,
                block_indices=block_indices if bounds is not None else checked[0],
                k_cmp=k_cmp,
                v_cmp=v_cmp,
                scale=scale,
            )
        else:
            name = "blockwise" if backend in ("auto", "triton") else backend
            run = _SEQUENCE_BY_SEQUENCE[name]
            if name == "blockwise":
                run = uncompiled(run, _DATA_DEPENDENT)
            results = []
            for (x, _, (keys, values)), lists in zip(_sequences(*call), checked, strict=True):
                result = run(
                    *(x[0], x[1], x[2], x[3], config),
                    block_indices=lists,
                    k_cmp=keys,
                    v_cmp=values,
                    scale=scale,
                )
                results.append(result)
            out, aux = results[0] if bounds is None else joined(results)
    return (out, aux) if return_aux else out


def _on_triton(*operands: Any, **options: Any) -> tuple[Tensor, NSAAux]:
    """The kernels, imported where they run; (q, k, v, gates, config) and their options."""
    from .triton import triton_kernels

    config: NSAConfig = operands[-1]
    if config.per_head_lists:
        return query_heads_apart(triton_kernels, *operands, **options)
    return triton_kernels(*operands, **options)


def check_backend(name: str) -> None:
    """Raise ValueError for a name that is neither "auto" nor a backend's."""
    if name != "auto" and name not in BACKENDS:
        raise ValueError(f"backend={name!r}: must be 'auto' or one of {sorted(BACKENDS)}")


def _chosen(
    backend: str,
    q: Tensor,
    k: Tensor,
    config: NSAConfig,
    scale: float | None,
    block_indices: BlockIndices | None,
) -> str:
    """The backend that runs: under "auto", Triton's kernels where they serve the call."""
    if backend not in ("auto", "triton"):
        return backend
    if backend == "auto" and q.device.type != "cuda":
        return "blockwise"
    error = refusal(q, k, config, scale, block_indices)
    if error is None:
        return "triton"
    if backend == "triton":
        raise error
    warnings.warn(f"{error}; using the slower backend 'blockwise'", UserWarning, stacklevel=3)
    return "blockwise"


def _sequences(
    bounds: list[int] | None,
    operands: tuple[Tensor, ...],
    config: NSAConfig,
    block_indices: BlockIndices | None,
    summaries: tuple[Tensor | None, Tensor | None],
) -> Iterable[Part]:
    """The call as it is, or each of the sequences that are packed in it."""
    if bounds is None:
        return [(list(operands), block_indices, list(summaries))]
    return split(bounds, operands, config, block_indices, summaries)


def _checked(
    operands: list[Tensor],
    lists: BlockIndices | None,
    summaries: list[Tensor | None],
    config: NSAConfig,
) -> BlockIndices | None:
    """The lists of one sequence a batch row, after the checks of lists and summaries."""
    check_summaries(summaries[0], summaries[1], operands[1], config)
    return None if lists is None else checked_lists(lists, operands[0], operands[1], config)
