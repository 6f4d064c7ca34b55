"""What a case costs in closed form: FLOPs, fewest bytes, and FLOPs of dense attention beside it.

Conventions, for every provider alike, whatever it computes on top:

- A (query, key) pair costs 4 D FLOPs forward in every query head: q k^T and p v, a multiply-add
  being two. Causal halves are counted exactly. Softmax, masks, rotary positions, gates' activation
  and block means count nothing.
- Backward costs 2.5 times the forward's matrix products (five instead of two: the recomputation of
  q k^T included); a linear layer's backward costs twice its forward.
- Sparse attention attends to the sum of its branches: windows that have ended (compressed), the
  tokens of its blocks up to the query (selected), and the last ``window`` tokens (sliding); those
  left out count nothing. Ranking the blocks reuses the compressed branch's logits and counts
  nothing.
- ``dense_flops`` is the same case with dense attention: in suite ``layer``, projections included.
- Of experts, those that a token takes count; a layer of several blocks attends once in each.
- Bytes: every input once, every output once. Forward reads q, k, v (and gates) and writes o;
  backward reads these and do and writes a gradient of each; a layer adds its parameters.

All pair counts are exact integers and agree with counts over explicit masks.
"""

from __future__ import annotations

from collections.abc import Mapping

from dynbench.harness.case import Case, Value
from dynbench.harness.subject import Work
from dynbench.suites.catalog import provider_info
from dynbench.suites.formwork import FormCost, FormShape, form_cost
from dynbench.suites.settings import branches_of

ITEM_BYTES = {"float32": 4, "float16": 2, "bfloat16": 2}
FORWARD_FLOPS = 4
BACKWARD_FLOPS = 10
_PAIR_FLOPS = {
    "forward": FORWARD_FLOPS,
    "backward": BACKWARD_FLOPS,
    "forward_backward": FORWARD_FLOPS + BACKWARD_FLOPS,
}
_LINEAR_FLOPS = {"forward": 2, "backward": 4, "forward_backward": 6}


def dense_pairs(seq_len: int) -> int:
    """Causal (query, key) pairs of one head: T (T + 1) / 2."""
    return seq_len * (seq_len + 1) // 2


def sliding_pairs(seq_len: int, window: int) -> int:
    """Pairs of one head whose key is among the last ``window`` tokens, the query's own included."""
    ramp = min(seq_len, window)
    return dense_pairs(ramp) + (seq_len - ramp) * window


def compressed_pairs(seq_len: int, compress_block: int, compress_stride: int) -> int:
    """Pairs (query, window) of one head whose window has ended: last token of it <= query."""
    after_first = seq_len - compress_block + 1  # queries that see at least one window
    if after_first <= 0:
        return 0
    full, rest = divmod(after_first, compress_stride)
    return compress_stride * full * (full + 1) // 2 + rest * (full + 1)


def selected_pairs(seq_len: int, block_size: int, top_n: int) -> int:
    """Pairs of one head inside selected blocks: min(top_n, blocks so far), the own one up to t.

    It depends on no choice: every block but the own one is complete.
    """
    full, rest = divmod(seq_len, block_size)
    # Queries of block b see min(b, top_n - 1) complete blocks beside their own.
    ramp = min(full, top_n - 1)
    complete = ramp * (ramp - 1) // 2 + (full - ramp) * (top_n - 1)
    complete_pairs = complete * block_size * block_size
    complete_pairs += min(full, top_n - 1) * block_size * rest
    return complete_pairs + full * dense_pairs(block_size) + dense_pairs(rest)


def attended_pairs(seq_len: int, settings: Mapping[str, Value]) -> int:
    """Pairs that one query head computes over one sequence: dense, or the sum of the branches."""
    if settings["lists"] == "dense":
        return dense_pairs(seq_len)
    number = {name: int(value) for name, value in settings.items() if isinstance(value, int)}
    branches = branches_of(settings)
    pairs = 0
    if "compressed" in branches:
        pairs += compressed_pairs(seq_len, number["compress_block"], number["compress_stride"])
    if "selected" in branches:
        pairs += selected_pairs(seq_len, number["block_size"], number["top_n"])
    if "sliding" in branches:
        pairs += sliding_pairs(seq_len, number["window"])
    return pairs


def case_work(case: Case) -> Work:
    """Cost of one call of a case."""
    shape = {name: int(value) for name, value in case.workload.items() if isinstance(value, int)}
    gates = 0 if case.settings["lists"] == "dense" else len(branches_of(case.settings))
    rate = _PAIR_FLOPS[case.pass_] * shape["batch"] * shape["q_heads"] * shape["head_dim"]
    flops = rate * attended_pairs(shape["seq_len"], case.settings)
    dense_flops = rate * dense_pairs(shape["seq_len"])
    tokens = shape["batch"] * shape["seq_len"]
    if case.suite == "layer":
        cost = layer_cost(case)
        synthesis = _LINEAR_FLOPS[case.pass_] * tokens * cost.products
        flops = cost.attentions * flops + synthesis
        dense_flops = cost.attentions * dense_flops + synthesis
        inputs, outputs = tokens * shape["model_dim"], tokens * shape["model_dim"]
        inputs += cost.parameters
    else:
        width = shape["head_dim"]
        inputs = tokens * (shape["q_heads"] + 2 * shape["kv_heads"]) * width
        inputs += tokens * gates * shape["q_heads"]
        outputs = tokens * shape["q_heads"] * width
    elements = {
        "forward": inputs + outputs,
        "backward": 2 * inputs + outputs,
        "forward_backward": 2 * inputs + 2 * outputs,
    }[case.pass_]
    return Work(flops, elements * ITEM_BYTES[case.dtype], dense_flops)


def layer_cost(case: Case) -> FormCost:
    """What a layer costs a token, and its parameters.

    Projections to q, k, v (and to three gates a head where the attention is gated) and back. A
    synthesis layer has two matrices of the same size, each used in one product, and per output a
    gate and, in a sparse Bayesian one, a bias; a plain projection has its one matrix. Forms of
    several blocks are in formwork.py.
    """
    name = case.provider.partition(":")[0]
    d, heads, kv_heads, width = (
        int(case.workload[key]) for key in ("model_dim", "q_heads", "kv_heads", "head_dim")
    )
    found = form_cost(name, FormShape(d, heads, kv_heads, width))
    if found is not None:
        return found
    inner, qkv = heads * width, (heads + 2 * kv_heads) * width
    gates = 3 * heads if case.settings["lists"] != "dense" else 0
    info = provider_info(case.provider)
    matrices, vectors = 1, 0
    if info is not None and info.synthesised:
        matrices, vectors = 2, (1 if name == "dimension" else 2) * (qkv + d)
    products = matrices * (d * qkv + inner * d) + gates * d
    return FormCost(products, products + vectors + gates)
