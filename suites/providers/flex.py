"""torch's FlexAttention, compiled, with a causal block mask."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, flex_attention

from dynbench.suites.providers.base import Provider, require_cuda, torch_version
from dynbench.suites.spec import Spec

MASK_BLOCK = 128


def load(spec: Spec, variant: str = "") -> Provider:
    """FlexAttention through torch.compile. Raises Unavailable without a GPU."""
    require_cuda(spec, "flex")
    _keep_backward_buffers()
    # Every case has its own lengths. Without a reset the cases of a sweep would reach torch's limit
    # of recompilations, and fullgraph makes that an error instead of a silent T x T fallback.
    torch.compiler.reset()
    compiled = torch.compile(flex_attention, dynamic=False, fullgraph=True)
    mask = causal_block_mask(spec.seq_len, spec.device)
    grouped = spec.group > 1

    def attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        qh, kh, vh = (x.transpose(1, 2) for x in (q, k, v))
        o = compiled(qh, kh, vh, block_mask=mask, enable_gqa=grouped)
        return o.transpose(1, 2)

    return Provider(f"{torch_version()} flex_attention", attention, heads_first=True)


def causal_block_mask(seq_len: int, device: torch.device) -> BlockMask:
    """The causal mask in blocks, written down directly.

    ``create_block_mask`` finds the blocks from the whole T x T mask, unless compiled; here row i
    has the full blocks 0 ... i - 1 and the partial block i.
    """
    blocks = -(-seq_len // MASK_BLOCK)
    row = torch.arange(blocks, dtype=torch.int32, device=device)
    columns = row.expand(blocks, blocks)
    # Row i lists the partial block first; what follows is ignored but must be a permutation.
    partial = torch.where(
        columns == 0, row[:, None], torch.where(columns <= row[:, None], columns - 1, columns)
    )
    return BlockMask.from_kv_blocks(
        torch.ones_like(row)[None, None],
        partial[None, None].contiguous(),
        row[None, None].contiguous(),
        columns[None, None].contiguous(),
        BLOCK_SIZE=MASK_BLOCK,
        mask_mod=_causal,
        seq_lengths=(seq_len, seq_len),
    )


def _causal(batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
    return query >= key


def _keep_backward_buffers() -> None:
    """Let a compiled backward run more than once on one graph, as timing it demands."""
    import torch._functorch.config as functorch_config

    if hasattr(functorch_config, "donated_buffer"):
        functorch_config.donated_buffer = False
