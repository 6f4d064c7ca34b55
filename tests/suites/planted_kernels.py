"""Sources of user's provider files: right ones, and ones that are wrong in one way each."""

DENSE_HEAD = """
import torch
import torch.nn.functional as F

def dense(q, k, v, **options):
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))
    options = {"is_causal": True, "enable_gqa": True} | options
    return F.scaled_dot_product_attention(q, k, v, **options).transpose(1, 2)

def sees(q, k, v, allowed):
    key = torch.arange(q.shape[1])
    mask = allowed(key[:, None], key[None])
    return dense(q, k, v, is_causal=False, attn_mask=mask)

class Spoilt(torch.autograd.Function):
    # The identity, with a gradient that `spoil` gets its hands on.
    @staticmethod
    def forward(ctx, x, spoil):
        ctx.spoil = spoil
        return x.view_as(x)

    @staticmethod
    def backward(ctx, gradient):
        return ctx.spoil(gradient.clone()), None

def put(tensor, index, value):
    tensor = tensor.clone()
    tensor[index] = value
    return tensor

def attention(q, k, v):
"""

RIGHT_DENSE = {
    "plain": "    return dense(q, k, v)",
    "with_lse": "    return dense(q, k, v), None",
}

WRONG_DENSE = {
    "wrong_scale": "    return dense(q, k, v, scale=0.9 * q.shape[-1] ** -0.5)",
    "not_causal": "    return dense(q, k, v, is_causal=False)",
    "future_leak": "    return sees(q, k, v, lambda row, key: key <= row + 1)",
    "leak_inside_block": "    return sees(q, k, v, lambda row, key: key // 64 <= row // 64)",
    "leak_at_block_end": "    return sees(q, k, v, lambda row, key: key <= row + (row % 64 == 63))",
    "own_key_missing": "    return sees(q, k, v, lambda row, key: (key < row) | (key == 0))",
    "first_key_missing": (
        "    return sees(q, k, v, lambda row, key: (key > 0) & (key <= row) | (row == 0))"
    ),
    "unwritten_row": "    return put(dense(q, k, v), (0, 77), float('nan'))",
    "late_rows_zero": "    return put(dense(q, k, v), (0, slice(q.shape[1] // 2, None)), 0.0)",
    "heads_swapped": "    return dense(q, k, v).flip(2)",
    "wrong_dtype": "    return dense(q, k, v).double()",
    "wrong_shape": "    return dense(q, k, v).transpose(1, 2)",
    "no_tensor": "    return 1.0",
    "overwrites_its_inputs": "    v.data.mul_(0.5)\n    return dense(q, k, v)",
}

WRONG_DENSE_BACKWARD = {
    "dq_scaled": "    return dense(Spoilt.apply(q, lambda g: g * 1.01), k, v)",
    "dk_scaled": "    return dense(q, Spoilt.apply(k, lambda g: g * 1.01), v)",
    "dv_first_block_zero": (
        "    return dense(q, k, Spoilt.apply(v, lambda g: put(g, (0, slice(0, 64)), 0.0)))"
    ),
    "dk_middle_block_zero": (
        "    start = q.shape[1] // 128 * 64\n"
        "    block = slice(start, start + 64)\n"
        "    return dense(q, Spoilt.apply(k, lambda g: put(g, (0, block), 0.0)), v)"
    ),
    "dv_last_key_unwritten": (
        "    return dense(q, k, Spoilt.apply(v, lambda g: put(g, (0, -1), float('nan'))))"
    ),
}

SPARSE_HEAD = """
import torch
from dataclasses import replace
from dynnsiha import native_sparse_attention

REFERENCE = "nsa"

def run(q, k, v, gates, config, **options):
    return native_sparse_attention(q, k, v, gates, config, return_aux=True, **options)

def put(lists, rows, slot, value):
    lists = lists.clone()
    lists[:, rows, :, slot] = value
    return lists

def with_lists(q, k, v, gates, config, change):
    _, aux = run(q, k, v, gates, config)
    lists = change(aux.block_indices)
    o, _ = run(q, k, v, gates, config, block_indices=lists)
    return o, lists

def drop_forced(lists):
    return torch.where(lists == 0, -1, lists)

def drop_one(lists):
    return put(lists, slice(None), -1, -1)

def worst(q, k, v, gates, config):
    # The best blocks for the opposite of every query.
    _, aux = run(-q, k, v, gates, config)
    return aux.block_indices

def attention(q, k, v, gates, config):
    o, aux = run(q, k, v, gates, config)
    lists = aux.block_indices
"""

RIGHT_SPARSE = {
    "silent": "    return o",
    "with_lists": "    return o, lists",
    "core_aux": "    return o, aux",
}

WRONG_SPARSE = {
    "no_gates": "    return run(q, k, v, torch.ones_like(gates), config)[0], lists",
    "short_window": "    return run(q, k, v, gates, replace(config, window=500))[0], lists",
    "other_summaries": (
        "    other = replace(config, compress_block=64, compress_stride=64)\n"
        "    return run(q, k, v, gates, other, block_indices=lists)[0], lists"
    ),
    "forced_block_dropped": "    return with_lists(q, k, v, gates, config, drop_forced)",
    "too_few_blocks": "    return with_lists(q, k, v, gates, config, drop_one)",
    "worst_blocks": (
        "    return with_lists(q, k, v, gates, config, lambda _: worst(q, k, v, gates, config))"
    ),
    "worst_blocks_in_silence": (
        "    return with_lists(q, k, v, gates, config, lambda _: worst(q, k, v, gates, config))[0]"
    ),
    "lists_of_another_call": "    return o, worst(q, k, v, gates, config)",
    "future_block": "    return o, put(lists, slice(0, 64), -1, 1)",
    "block_listed_twice": "    return o, put(lists, slice(64, None), -1, 0)",
    "lists_of_wrong_shape": "    return o, lists[:, :-1]",
    "lists_are_no_tensor": "    return o, 'all of them'",
    "unwritten_row": "    o[0, 77] = float('nan')\n    return o, lists",
}


def source(body: str, *, sparse: bool = False) -> str:
    """The text of a provider file whose ``attention`` ends in ``body``."""
    return (SPARSE_HEAD if sparse else DENSE_HEAD) + body + "\n"
