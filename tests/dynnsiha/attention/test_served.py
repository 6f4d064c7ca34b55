"""What the Triton backend is asked for, told without running it."""

import pytest
import torch

from dynnsiha import NSAConfig
from dynnsiha.attention import served

pytest.importorskip("triton")

ON_GPU = torch.cuda.is_available()


@pytest.fixture(autouse=True)
def _without_a_gpu_by_the_interpreter(monkeypatch):
    if not ON_GPU:
        monkeypatch.setenv("TRITON_INTERPRET", "1")


def refusal(config, q_heads=4, kv_heads=1, dtype=torch.float16, tokens=64, lists=None):
    device = "cuda" if ON_GPU else "cpu"
    q = torch.zeros(1, 1, q_heads, 64, dtype=dtype, device=device).expand(-1, tokens, -1, -1)
    return served.refusal(q, q[:, :, :kv_heads], config, None, lists)


def empty_lists(*slots, tokens=64):
    made = [torch.zeros(()).int().sub(1).expand(1, tokens, 1, n) for n in slots]
    return made[0] if len(made) == 1 else tuple(made)


def test_a_trained_choice_is_refused_where_gradients_may_be_wanted():
    config = NSAConfig(differentiable_topk=True)
    error = refusal(config)
    assert isinstance(error, ValueError)
    assert str(error).startswith("differentiable_topk=True: the Triton kernels")
    assert "\n" not in str(error)
    with torch.no_grad():
        assert refusal(config) is None


def test_lists_per_head_are_served_and_make_groups_small():
    assert refusal(NSAConfig(per_head_lists=True)) is None
    assert refusal(NSAConfig(per_head_lists=True), 128) is None
    assert "q: has 128 heads a key/value head" in str(refusal(NSAConfig(), 128))


@pytest.mark.parametrize("slots", [(129,), (64, 65)])
def test_given_lists_are_counted_as_chosen_ones_are(slots):
    config = NSAConfig(top_n=5, query_tile=len(slots))
    error = refusal(config, lists=empty_lists(*slots))
    assert isinstance(error, ValueError)
    assert str(error) == (
        "block_indices: has 129 slots a query; the Triton kernels take 128 at most"
    )
    assert refusal(config, lists=empty_lists(*slots[:-1], slots[-1] - 1)) is None


def test_pairs_are_those_of_the_given_lists():
    tokens, config = 1 << 24, NSAConfig(top_n=16)
    assert refusal(config, tokens=tokens) is None
    many = refusal(config, tokens=tokens, lists=empty_lists(128, tokens=tokens))
    assert str(many).startswith(f"q: {1 << 31} pairs of queries and blocks")
    config = NSAConfig(top_n=128)
    assert refusal(config, tokens=tokens) is not None
    assert refusal(config, tokens=tokens, lists=empty_lists(16, tokens=tokens)) is None


def test_the_interpreter_does_not_take_what_it_cannot_multiply(monkeypatch):
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    error = refusal(NSAConfig(), dtype=torch.bfloat16)
    assert isinstance(error, TypeError)
    assert str(error).startswith("q: has dtype torch.bfloat16, which Triton's interpreter")
    assert "\n" not in str(error)
    assert refusal(NSAConfig(), dtype=torch.float16) is None
