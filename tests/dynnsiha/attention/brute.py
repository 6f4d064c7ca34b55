"""Attention, importance and lists of one query, by the words of docs/architecture.md."""

import math

import torch


def attend(q, keys, values):
    """One query, a list of keys: output and lse; zeros if there are none."""
    if not keys:
        return torch.zeros_like(q), -math.inf
    logits = torch.stack([q @ k for k in keys]) / math.sqrt(len(q))
    return logits.softmax(0) @ torch.stack(values), logits.logsumexp(0)


def brute_importance(q, k, t, head, c):
    """Importance of every block for query t of a K/V head, by equation 9, term by term."""
    group = q.shape[1] // k.shape[1]
    starts = range(0, t - c.compress_block + 2, c.compress_stride)
    blocks = [0.0] * (len(k) // c.block_size + 1)
    for g in range(group if len(starts) else 0):
        row = q[t, head * group + g]
        means = [k[s : s + c.compress_block, head].mean(0) for s in starts]
        p = (torch.stack(means) @ row / math.sqrt(len(row))).softmax(0)
        for i, s in enumerate(starts):
            for stride in range(s, s + c.compress_block, c.compress_stride):
                blocks[stride // c.block_size] += p[i].item()
    return blocks


def brute_list(q, k, t, head, c):
    """Forced, shared and private blocks of query t, by the words of docs/architecture.md."""
    own, tile = t // c.block_size, c.query_tile
    forced = {j for j in range(own + 1) if j < c.init_blocks or j > own - c.local_blocks}
    leader = t // tile * tile
    scorers = (
        [leader] if c.tile_scoring == "leader" else range(max(0, leader - tile + 1), leader + 1)
    )
    scores = [brute_importance(q, k, s, head, c) for s in scorers]
    total = [sum(column) for column in zip(*scores, strict=True)]
    rest = sorted((j for j in range(own) if j not in forced), key=lambda j: -total[j])
    private_count = 0 if tile == 1 else c.private_blocks
    shared = rest[: max(0, c.top_n - c.init_blocks - c.local_blocks - private_count)]
    mine = brute_importance(q, k, t, head, c)
    left = sorted((j for j in rest if j not in shared), key=lambda j: -mine[j])
    return forced | set(shared) | set(left[:private_count])
