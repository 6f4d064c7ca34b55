"""Experts that were taken, judged by a reference's logits: rounding passes, wrong ones do not."""

from __future__ import annotations

import pytest
import torch

from dynbench.suites.routecheck import MISROUTED_SHARE, misrouted, routing_problem


def logits_of(tokens=4000, experts=16):
    generator = torch.Generator().manual_seed(0)
    return torch.randn(1, tokens, experts, generator=generator, dtype=torch.float64)


def best_of(logits, count=2):
    return logits.topk(count, -1).indices


def with_worst(logits, tokens):
    """The best experts, but for the first ``tokens`` tokens one that is the worst."""
    taken = best_of(logits)
    taken[:, :tokens, 1] = logits[:, :tokens].argmin(-1)
    return taken


@pytest.mark.parametrize("wrong", [0, 1, 40, 4000])
def test_each_token_with_a_clearly_worse_expert_counts(wrong):
    logits = logits_of()
    assert misrouted(logits, with_worst(logits, wrong)) == wrong


def test_a_tie_broken_the_other_way_is_no_mistake():
    logits = logits_of(100, 4)
    logits[..., 3] = logits[..., :3].amax(-1) - 0.05
    assert misrouted(logits, torch.full((1, 100, 1), 3)) == 0
    assert misrouted(logits - 0.2 * torch.eye(4)[3], torch.full((1, 100, 1), 3)) == 100


def test_a_small_share_may_always_be_wrong():
    logits = logits_of()
    few = int(MISROUTED_SHARE * 4000)
    assert routing_problem([logits], [with_worst(logits, few)], None) == ""
    found = routing_problem([logits] * 2, [best_of(logits), with_worst(logits, few + 1)], None)
    assert found == "0.12% of the tokens took an expert that was not among the best"


def test_where_a_plain_computation_errs_more_may_be_wrong():
    logits = logits_of()
    plain = logits.clone()
    plain[:, :30] = -plain[:, :30]  # its own choice is wrong for these
    erring = misrouted(logits, best_of(plain))
    assert 20 < erring <= 30
    allowed = 2 * (erring + 1)
    taken = [best_of(logits), with_worst(logits, allowed)]
    assert routing_problem([logits] * 2, taken, [plain, logits]) == ""
    assert routing_problem([logits] * 2, taken, [logits] * 2) != ""
    taken = [best_of(logits), with_worst(logits, allowed + 1)]
    assert routing_problem([logits] * 2, taken, [plain, logits]) != ""


def test_a_model_without_experts_has_no_problem():
    assert routing_problem([], [], None) == ""
    assert routing_problem([], [], []) == ""
