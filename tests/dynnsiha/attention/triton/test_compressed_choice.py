"""Private blocks chosen on the way through the summaries, beside the two passes it replaces."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from dynnsiha import NSAConfig
from dynnsiha.attention import native_sparse_attention
from dynnsiha.attention.triton import choice, compressed_choice

from .cases import LIGHT_HYBRID, ON_GPU, Case
from .lists_oracle import assert_lists
from .oracle import BACKEND, lists_of

pytestmark = pytest.mark.skipif(BACKEND != "triton", reason="of Triton's kernels alone")

SMALL = NSAConfig(
    block_size=16, compress_block=16, compress_stride=16, window=20, query_tile=16, top_n=6
)
"""Blocks that a short sequence has many of."""

CONFIGS = {
    "a tile a block": replace(SMALL, private_blocks=2),
    "several lists a program": replace(SMALL, query_tile=4, private_blocks=1),
    "nothing shared but forced": replace(SMALL, private_blocks=3),
    "one forced": replace(SMALL, init_blocks=0, local_blocks=1, private_blocks=2),
}
HEADLESS = replace(LIGHT_HYBRID, group=1, kv_heads=2)


def both(case: Case, config: NSAConfig, monkeypatch, sharp: float = 1.0):
    """(o, aux) of the one pass and of the two, on the same inputs; and the inputs."""
    inputs = case.inputs(seed=5, structured=True)
    inputs.operands[0].mul_(sharp)
    passes: list[bool] = []
    found = []
    forward = compressed_choice.forward

    def counted(*args):
        passes.append(True)
        return forward(*args)

    monkeypatch.setattr(compressed_choice, "forward", counted)
    for one_pass in (True, False):
        if not one_pass:
            monkeypatch.setattr(compressed_choice, "serves", lambda problem: False)
        with torch.no_grad():
            o, aux = native_sparse_attention(
                *inputs.operands, config, backend=BACKEND, return_aux=True, **inputs.options
            )
        found.append((o, aux))
    assert passes == [True]
    return (*found, inputs)


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
@pytest.mark.parametrize("batching", ["batch", "packed"])
def test_one_pass_is_both(config, batching, monkeypatch):
    case = replace(HEADLESS, config=config).at(150, batching)
    (o, aux), (two_o, two_aux), inputs = both(case, config, monkeypatch)
    for one, two in zip(lists_of(aux), lists_of(two_aux), strict=True):
        assert torch.equal(one, two)
    assert (lists_of(aux)[1] >= 0).any()
    assert torch.allclose(o, two_o, rtol=1e-3, atol=1e-4)
    assert_lists(aux, case, inputs)


def test_lists_go_on_from_chunk_to_chunk(monkeypatch):
    """What is taken is looked up anew behind every so many tiles of summaries."""
    config = CONFIGS["a tile a block"]
    monkeypatch.setattr(choice, "CHUNK", 1)
    case = replace(HEADLESS, config=config, kv_heads=1).at(1100)
    (_, aux), (_, two_aux), inputs = both(case, config, monkeypatch)
    for one, two in zip(lists_of(aux), lists_of(two_aux), strict=True):
        assert torch.equal(one, two)
    assert (lists_of(aux)[1] >= 64).any()
    assert_lists(aux, case, inputs)


def test_logits_that_need_a_maximum(monkeypatch):
    """The softmax is computed again, the ranking is not."""
    config = CONFIGS["a tile a block"]
    case = replace(HEADLESS, config=config, kv_heads=1).at(100)
    (o, aux), (two_o, two_aux), _ = both(case, config, monkeypatch, sharp=40.0)
    assert torch.equal(lists_of(aux)[1], lists_of(two_aux)[1])
    assert torch.isfinite(o).all()
    assert torch.allclose(o, two_o, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize(
    "changes",
    [
        {"private_blocks": 0},
        {"compress_stride": 8},
        {"top_p": 0.5},
        {"branches": ("selected", "sliding")},
    ],
    ids=lambda changes: next(iter(changes)),
)
def test_what_needs_two_passes_gets_them(changes, monkeypatch):
    config = replace(CONFIGS["a tile a block"], **changes)

    def refuse(*args):
        raise AssertionError("one pass does not serve this")

    monkeypatch.setattr(compressed_choice, "forward", refuse)
    case = replace(HEADLESS, config=config, kv_heads=1).at(70)
    inputs = case.inputs()
    with torch.no_grad():
        aux = native_sparse_attention(
            *inputs.operands, config, backend=BACKEND, return_aux=True, **inputs.options
        )[1]
    assert_lists(aux, case, inputs)


@pytest.mark.skipif(not ON_GPU, reason="too long for the interpreter")
@pytest.mark.parametrize("head_dim", [64, 128, 256])
def test_heads_without_groups(head_dim, monkeypatch):
    config = NSAConfig(query_tile=64, private_blocks=1)
    case = replace(HEADLESS, head_dim=head_dim, dtype=torch.bfloat16, config=config).at(3000)
    (o, aux), (two_o, two_aux), inputs = both(case, config, monkeypatch)
    for one, two in zip(lists_of(aux), lists_of(two_aux), strict=True):
        assert torch.equal(one, two)
    assert torch.allclose(o, two_o, rtol=1e-2, atol=1e-2)
    assert_lists(aux, case, inputs)
