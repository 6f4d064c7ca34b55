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


def refusal(config, q_heads=4, kv_heads=1):
    device = "cuda" if ON_GPU else "cpu"
    q = torch.zeros(1, 64, q_heads, 64, dtype=torch.bfloat16, device=device)
    return served.refusal(q, q[:, :, :kv_heads], config, None)


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
