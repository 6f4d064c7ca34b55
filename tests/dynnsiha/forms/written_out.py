"""The expert forms written out: every token's composed matrices are made, one token at a time."""

from __future__ import annotations

import torch
from torch import Tensor

from dynnsiha.forms import ExpertBlock
from dynnsiha.synthesis import PrototypeRouter


def expert_weights(prototypes: PrototypeRouter, x: Tensor, active: int) -> Tensor:
    """Weights [E] for one token x [d]: the router's own, for the ``active`` highest logits."""
    logits = prototypes.logits(x)
    weights = prototypes.weights(logits)
    taken = sorted(range(len(logits)), key=lambda e: logits[e].item(), reverse=True)[:active]
    return torch.stack([w if e in taken else 0 * w for e, w in enumerate(weights)])


def composed(bank: Tensor, weights: Tensor) -> Tensor:
    """A token's own matrix Σ_e w_e W_e, bank [E, d_in, d_out] → [d_out, d_in]."""
    return sum(w * matrix.T for w, matrix in zip(weights, bank, strict=True))


def normalised(x: Tensor, gain: Tensor) -> Tensor:
    return gain * x / (x.square().mean(-1, keepdim=True) + 1e-6).sqrt()


def rotated(x: Tensor, position: int) -> Tensor:
    """One head's x [D] turned by its position, as complex numbers."""
    half = len(x) // 2
    angle = position * 10_000 ** (-torch.arange(half, dtype=x.dtype) / half)
    turned = torch.complex(x[:half], x[half:]) * torch.polar(torch.ones_like(angle), angle)
    return torch.cat((turned.real, turned.imag))


def block_update(
    block: ExpertBlock, stream: Tensor, resident: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Update and resident stream of one sequence, stream and resident [T, d]."""
    heads, mlp, layout = block.heads, block.mlp, block.heads.layout
    alpha = block.resident.alpha
    x = normalised(stream, block.heads_norm.weight)
    resident = x if resident is None else x + alpha * resident
    routed = [expert_weights(heads.router.prototypes, p, heads.router.active) for p in resident]
    q, k, v = [], [], []
    for t, weights in enumerate(routed):
        parts = (composed(heads.qkv.weight, weights) @ x[t]).reshape(-1, layout.head_dim)
        q.append([rotated(one, t) for one in parts[: layout.q_heads]])
        k.append([rotated(one, t) for one in parts[layout.q_heads :][: layout.kv_heads]])
        v.append(parts[layout.q_heads + layout.kv_heads :])
    attended = []
    for t, weights in enumerate(routed):
        outs = []
        for head in range(layout.q_heads):
            own = head * layout.kv_heads // layout.q_heads
            logits = torch.stack([q[t][head] @ k[s][own] for s in range(t + 1)])
            p = (logits / layout.head_dim**0.5).softmax(0)
            outs.append(sum(p[s] * v[s][own] for s in range(t + 1)))
        attended.append(composed(heads.output.weight, weights) @ torch.cat(outs))
    update = torch.stack(attended)
    x = normalised(stream + update, block.mlp_norm.weight)
    resident = x + alpha * resident
    mapped = []
    for t, p in enumerate(resident):
        weights = expert_weights(mlp.router.prototypes, p, mlp.router.active)
        hidden = [x[t] @ matrix for matrix in mlp.inner.weight]
        outs = [h * torch.sigmoid(h) @ w for h, w in zip(hidden, mlp.output.weight, strict=True)]
        mapped.append(sum(w * out for w, out in zip(weights, outs, strict=True)))
    return update + torch.stack(mapped), resident


def refined(blocks: list[ExpertBlock], x: Tensor) -> Tensor:
    """What the blocks add to x [B, T, d], one sequence at a time."""
    updates = []
    for sequence in x:
        stream, resident = sequence, None
        for block in blocks:
            update, resident = block_update(block, stream, resident)
            stream = stream + update
        updates.append(stream - sequence)
    return torch.stack(updates)
