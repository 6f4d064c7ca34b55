"""What a training costs in closed form, by the conventions of work.py. Imports no torch.

A step is a forward and a backward pass of the whole model: matrix products of every weight with
every token, three times, and the attention of each block. The optimizer, the evaluations,
compression networks and auxiliary losses count nothing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from dynbench.harness.case import Case, Value
from dynbench.harness.subject import Work
from dynbench.suites.formwork import FormShape
from dynbench.suites.quality.variants import variant_values
from dynbench.suites.quality.warmups import Stage, dense_steps, length_stages
from dynbench.suites.work import BACKWARD_FLOPS, FORWARD_FLOPS, attended_pairs, dense_pairs

CHAR_VOCAB = 256
_EXPERTS, _ACTIVE = 16, 2  # of the model's forms of experts
_LINEAR_FLOPS = 6  # of a weight and a token, forward and backward
_LEAST_STEP_S = {"cpu": 0.01, "cuda": 0.02}  # launching and bookkeeping, whatever the sizes
_ID_BYTES, _WEIGHT_BYTES = 16, 4  # of a character with its word, of a trained number


def training_work(case: Case, parameters: int = 0) -> Work:
    """Cost of the case's training: batches in, ``parameters`` trained numbers out."""
    size = {name: int(value) for name, value in case.workload.items() if isinstance(value, int)}
    variant = variant_values(str(case.settings.get("variant", "")))
    stages = length_stages(size["train_steps"], size["batch"], size["seq_len"], variant)
    tokens = sum(stage.steps * stage.batch * stage.seq_len for stage in stages)
    pair_flops = (FORWARD_FLOPS + BACKWARD_FLOPS) * size["q_heads"] * size["head_dim"]
    products = size["layers"] * block_products(case) + size["model_dim"] * CHAR_VOCAB
    linear = _LINEAR_FLOPS * tokens * products
    moved = tokens * _ID_BYTES + parameters * _WEIGHT_BYTES
    attended = _attended(stages, dense_steps(size["train_steps"], variant), case.settings)
    dense = sum(stage.steps * stage.batch * dense_pairs(stage.seq_len) for stage in stages)
    return Work(
        flops=linear + size["layers"] * pair_flops * attended,
        bytes=moved,
        dense_flops=linear + size["layers"] * pair_flops * dense,
    )


def _attended(stages: Sequence[Stage], dense: int, settings: Mapping[str, Value]) -> int:
    """Pairs of queries and keys over all steps, of which the first ``dense`` have all blocks."""
    all_blocks = {**settings, "top_n": stages[-1].seq_len}
    total = 0
    for stage in stages:
        whole = min(stage.steps, dense)
        dense -= whole
        for steps, chosen in ((whole, all_blocks), (stage.steps - whole, settings)):
            if steps:
                total += steps * stage.batch * attended_pairs(stage.seq_len, chosen)
    return total


def block_products(case: Case) -> int:
    """Weights of one block of the model that meet each token in a matrix product."""
    variant = variant_values(str(case.settings.get("variant", "")))
    name = case.provider.partition(":")[0]
    heads = (int(case.workload[key]) for key in ("q_heads", "kv_heads", "head_dim"))
    shape = FormShape(int(case.workload["model_dim"]), *heads)
    gates = 3 * shape.q_heads if case.settings["lists"] != "dense" else 0
    return _projections(name, shape, variant) + gates * shape.model_dim


def least_training_s(case: Case) -> float | None:
    """Fewest seconds that the case's training takes, whatever its FLOPs; None in other suites."""
    if case.suite != "quality":
        return None
    return int(case.workload["train_steps"]) * _LEAST_STEP_S[case.device]


def _projections(name: str, shape: FormShape, variant: Mapping[str, str]) -> int:
    d = shape.model_dim
    if name in ("flat", "recursive") or variant["form"] != "blocks":
        experts = _ACTIVE * (shape.heads_weights + 2 * d * (4 * d // _ACTIVE))
        return experts + 2 * _EXPERTS * d  # two routers
    attention = shape.heads_weights
    if name in ("dynsiha", "dynnsiha"):  # a synthesised map has two matrices
        if variant["synthesis"] == "sbl":
            attention *= 2
        elif variant["synthesis"] == "values":
            attention += d * (shape.q_heads + shape.kv_heads) * shape.head_dim
    if variant["feed_forward"] == "moie":
        return attention + 2 * 2 * 4 * d * d
    return attention + 3 * d * 64 * -(-8 * d // (3 * 64))
