"""What a step of a language model costs in closed form, by the conventions of work.py.

A token costs its products with the weights of every block (projections and their gates, SwiGLU or
the experts that it takes, routers) and with the matrix of logits, and its pairs in every block.
Embeddings, norms and the optimizer's arithmetic count nothing.

- ``decode``: one token a sequence, after ``seq_len`` others: the pairs of one row. Bytes are the
  weights that a token meets (of experts as many as it takes: others may meet others), the rows of
  its embeddings, of every cache the keys and values that the query must see (of selected blocks
  and window, which overlap, the larger one), the new token's keys and values, and the logits.
- ``train_step``: forward and backward over all tokens. Bytes are the ids, and of every parameter
  seven numbers: it and AdamW's two moments read and written, and its gradient.

``dense_flops`` is the same model with dense attention.
"""

from __future__ import annotations

from collections.abc import Mapping

from dynbench.harness.case import Case, Value
from dynbench.harness.subject import Work
from dynbench.suites.formwork import ACTIVE, FormCost, FormShape, form_cost
from dynbench.suites.settings import branches_of
from dynbench.suites.vocabulary import CHAR_VOCAB, WORD_VOCAB
from dynbench.suites.work import (
    BACKWARD_FLOPS,
    FORWARD_FLOPS,
    ITEM_BYTES,
    attended_pairs,
    compressed_pairs,
    dense_pairs,
    layer_cost,
    selected_pairs,
    sliding_pairs,
)

MODEL_EXPERTS = 16
"""Experts of the flat and the recursive form of a model; a token takes formwork.ACTIVE of them."""

_ID_BYTES = 8
_LOOKUPS = 2  # of an embedding: the character's row and the word's
_NUMBERS_PER_PARAMETER = 7


def model_cost(case: Case) -> FormCost:
    """The model's products with a token, its parameters, and how often it attends."""
    shape, layers = _shape(case), int(case.workload["layers"])
    d, norms = shape.model_dim, 2 * shape.model_dim
    # Tables and bias of the embedding, the last norm, logits.
    outside = (CHAR_VOCAB + WORD_VOCAB + 1) * d + d + CHAR_VOCAB * d
    experts = form_cost(_name(case), shape, blocks=layers, experts=MODEL_EXPERTS)
    if experts is not None:
        products, held = experts.products, experts.parameters
    else:
        layer, feed_forward = layer_cost(case), 3 * d * feed_forward_width(d)
        products = layers * (layer.products + feed_forward)
        held = layers * (layer.parameters + feed_forward + norms)
    return FormCost(products + CHAR_VOCAB * d, held + outside, layers)


def model_work(case: Case) -> Work:
    """Cost of one call of a case of suite ``generation`` or ``training``."""
    return _decode_work(case) if case.pass_ == "decode" else _training_work(case)


def prefill_flops(case: Case) -> int:
    """FLOPs of reading ``seq_len`` tokens into an empty cache, logits of each included."""
    tokens = int(case.workload["batch"]) * int(case.workload["seq_len"])
    cost, pairs = model_cost(case), attended_pairs(int(case.workload["seq_len"]), case.settings)
    return 2 * tokens * cost.products + FORWARD_FLOPS * _heads(case) * cost.attentions * pairs


def feed_forward_width(model_dim: int) -> int:
    """Hidden width of the SwiGLU: 8/3 of the model's, rounded up to 64."""
    return 64 * -(-8 * model_dim // (3 * 64))


def _decode_work(case: Case) -> Work:
    shape, cost = _shape(case), model_cost(case)
    batch, seq_len = int(case.workload["batch"]), int(case.workload["seq_len"])
    rate = FORWARD_FLOPS * _heads(case) * cost.attentions
    products = 2 * batch * cost.products
    row = attended_pairs(seq_len + 1, case.settings) - attended_pairs(seq_len, case.settings)
    key_value = 2 * batch * shape.kv_heads * shape.head_dim * cost.attentions
    elements = _met_parameters(case, cost) + batch * _LOOKUPS * shape.model_dim
    elements += key_value * (_keys_read(seq_len, case.settings) + 1) + batch * CHAR_VOCAB
    return Work(
        flops=products + rate * row,
        bytes=elements * ITEM_BYTES[case.dtype] + batch * _LOOKUPS * _ID_BYTES,
        dense_flops=products + rate * (seq_len + 1),
    )


def _training_work(case: Case) -> Work:
    cost, seq_len = model_cost(case), int(case.workload["seq_len"])
    tokens = int(case.workload["batch"]) * seq_len
    rate = (FORWARD_FLOPS + BACKWARD_FLOPS) * _heads(case) * cost.attentions
    products = 6 * tokens * cost.products
    numbers = _NUMBERS_PER_PARAMETER * cost.parameters
    return Work(
        flops=products + rate * attended_pairs(seq_len, case.settings),
        bytes=numbers * ITEM_BYTES[case.dtype] + tokens * _LOOKUPS * _ID_BYTES,
        dense_flops=products + rate * dense_pairs(seq_len),
    )


def _met_parameters(case: Case, cost: FormCost) -> int:
    """Parameters that a token must meet, those of the embeddings aside."""
    shape = _shape(case)
    d = shape.model_dim
    met = cost.parameters - (CHAR_VOCAB + WORD_VOCAB) * d
    repositories = {"flat": cost.attentions, "recursive": 1}.get(_name(case), 0)
    expert = shape.heads_weights + 2 * d * shape.expert_width
    return met - repositories * (MODEL_EXPERTS - ACTIVE) * expert


def _keys_read(seq_len: int, settings: Mapping[str, Value]) -> int:
    """Keys (and summaries) of one head in the cache that the query after them must see."""
    if settings["lists"] == "dense":
        return seq_len
    number = {name: int(value) for name, value in settings.items() if isinstance(value, int)}
    branches = branches_of(settings)
    window, block, top_n = (number[name] for name in ("window", "block_size", "top_n"))
    compress = number["compress_block"], number["compress_stride"]
    end = seq_len + 1
    seen = {
        "compressed": compressed_pairs(end, *compress) - compressed_pairs(seq_len, *compress),
        "selected": selected_pairs(end, block, top_n) - selected_pairs(seq_len, block, top_n) - 1,
        "sliding": sliding_pairs(end, window) - sliding_pairs(seq_len, window) - 1,
    }
    of_tokens = (seen[name] for name in branches if name != "compressed")
    return max(of_tokens, default=0) + seen["compressed"] * ("compressed" in branches)


def _heads(case: Case) -> int:
    """Numbers in the queries of one token of every sequence, in one block: B H D."""
    sizes = (case.workload[name] for name in ("batch", "q_heads", "head_dim"))
    batch, heads, width = map(int, sizes)
    return batch * heads * width


def _shape(case: Case) -> FormShape:
    names = ("model_dim", "q_heads", "kv_heads", "head_dim")
    return FormShape(*(int(case.workload[name]) for name in names))


def _name(case: Case) -> str:
    return case.provider.partition(":")[0]
