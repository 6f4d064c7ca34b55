"""Which trainings a request means."""

from __future__ import annotations

from dataclasses import replace

import pytest

from dynbench.harness.gate.conditions import case_label
from dynbench.harness.schema import complete_row
from dynbench.suites.plan import PlanOptions, plan
from dynbench.suites.request import wanted
from dynbench.suites.settings import config_from
from dynbench.suites.shapes import UsageError

QUALITY = PlanOptions((256,), "cpu", suite="quality")


def test_the_default_is_small_and_complete():
    cases = plan(wanted(suite="quality", device="cpu"))
    assert {c.workload["seq_len"] for c in cases} == {256}
    assert [c.provider for c in cases[:5]] == ["sdpa", "sliding", "nsa", "dynsiha", "dynnsiha"]
    assert {c.workload["task"] for c in cases} == {"text", "recall"}
    assert len(cases) == 10
    assert {(c.pass_, c.timer, c.dtype) for c in cases} == {("train_step", "wall", "float32")}
    assert all("inputs" not in c.workload for c in cases)
    gpu = plan(replace(QUALITY, device="cuda"))
    assert {(c.dtype, c.timer) for c in gpu} == {("bfloat16", "wall")}


@pytest.mark.parametrize(
    ("device", "heads", "sizes"),
    [
        ("cpu", {}, (16, 2, 2, 32, 64)),
        ("cpu", {"q_heads": 4}, (16, 4, 4, 32, 128)),
        ("cpu", {"kv_heads": 1}, (16, 2, 1, 32, 64)),
        ("cpu", {"head_dim": 64}, (16, 2, 2, 64, 128)),
        ("cpu", {"q_heads": 4, "batch": 3}, (3, 4, 4, 32, 128)),
        ("cpu", {"shape": "single"}, (16, 1, 1, 256, 256)),
        ("cpu", {"shape": "single", "batch": 3}, (3, 1, 1, 256, 256)),
        ("cuda", {"q_heads": 8}, (32, 8, 8, 64, 512)),
        ("cuda", {"head_dim": 32}, (32, 4, 4, 32, 128)),
        ("cuda", {"shape": "gqa4"}, (32, 32, 8, 128, 4096)),
    ],
)
def test_one_option_of_the_heads_leaves_the_other_sizes(device, heads, sizes, monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    names = ("batch", "q_heads", "kv_heads", "head_dim", "model_dim")
    for case in plan(wanted(suite="quality", device=device, **heads)):
        assert tuple(case.workload[name] for name in names) == sizes


def test_providers_of_one_task_and_seed_share_their_workload():
    cases = plan(replace(QUALITY, tasks=("recall",), seeds=(0, 1), train_steps=50))
    assert len({c.workload_id for c in cases}) == 2
    assert [c.workload["seed"] for c in cases] == [0] * 5 + [1] * 5
    assert len({c.case_id for c in cases}) == 10


def test_settings_lead_to_their_configuration():
    cases = plan(replace(QUALITY, tasks=("copy",), block_size=32, window=40, top_n=6))
    config = {c.provider: config_from(c.settings) for c in cases}
    assert config["sdpa"] is None
    windows = {p: (c.compress_block, c.compress_stride) for p, c in config.items() if c}
    assert windows["nsa"] == (16, 8)
    assert windows["dynnsiha"] == (32, 32)
    assert (config["dynnsiha"].query_tile, config["dynnsiha"].private_blocks) == (32, 1)
    assert config["sliding"].branches == ("sliding",)
    assert {c.window for c in config.values() if c} == {40}
    assert {config[p].block_size for p in ("nsa", "dynnsiha")} == {32}
    sliding = next(c for c in cases if c.provider == "sliding")
    assert dict(sliding.settings) == {"lists": "none", "branches": "sliding", "window": 40}


def test_axes_and_variants_multiply():
    cases = plan(
        replace(
            QUALITY,
            tasks=("recall",),
            providers=("nsa", "dynnsiha"),
            query_tiles=(1, 4),
            private_blocks=(0, 1),
            variants=("none", "kl=0.10", "kl=0.1"),
        )
    )
    kinds = {
        (c.provider, c.settings["query_tile"], c.settings["private_blocks"], v)
        for c in cases
        for v in [c.settings.get("variant")]
    }
    tiles = [("nsa", 1, 0), ("dynnsiha", 1, 0), ("dynnsiha", 4, 0), ("dynnsiha", 4, 1)]
    assert kinds == {(*tile, v) for tile in tiles for v in (None, "kl=0.1")}
    assert len(cases) == 8


def test_tiles_of_one_query_have_one_scoring():
    options = replace(
        QUALITY,
        tasks=("text",),
        providers=("dynnsiha",),
        query_tiles=(1, 4),
        variants=("tile_scoring=aggregate,kl=0.1", "kl=0.1", "tile_scoring=aggregate"),
    )
    kinds = [(c.settings["query_tile"], c.settings.get("variant")) for c in plan(options)]
    assert kinds.count((1, "kl=0.1")) == 1
    assert set(kinds) == {
        (1, "kl=0.1"),
        (1, None),
        (4, "kl=0.1,tile_scoring=aggregate"),
        (4, "kl=0.1"),
        (4, "tile_scoring=aggregate"),
    }
    assert len(kinds) == 5


def test_a_sparsity_is_solved_with_the_blocks_of_the_case():
    options = replace(QUALITY, seq_lens=(1024,), tasks=("recall",), sparsities=(0.5, 0.75))
    cases = [c for c in plan(options) if c.provider == "nsa"]
    half, quarter = (c.settings["top_n"] for c in cases)
    assert 3 < quarter < half < 64
    assert [c.provider for c in plan(options)].count("sliding") == 1


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"tasks": ("recal",)}, "unknown task 'recal': did you mean 'recall'"),
        ({"timer": "graph", "device": "cuda"}, "--timer graph: a training is timed by the host"),
        ({"passes": ("forward",)}, "suite quality has one: train_step"),
        ({"block_size": 18}, "block_size=18: must be a multiple of 4"),
        ({"block_size": 2}, "block_size=2: must be at least 4"),
        ({"query_tiles": (32,)}, "query_tile=32 does not divide blocks of 16"),
        ({"variants": ("kll=1",)}, "did you mean 'kl'"),
        ({"inputs": "text"}, "suite quality takes no inputs"),
        ({"seq_lens": (1,)}, "needs at least 2"),
        ({"seed": -1}, "seed=-1: must be at least 0"),
        ({"train_steps": 0}, "train_steps=0: must be at least 1"),
        ({"layers": 0}, "layers=0: must be at least 1"),
        ({"suite": "attention", "tasks": ("text",)}, "only suite quality takes it"),
        ({"suite": "layer", "block_size": 16}, "block_size=16: only suite quality takes it"),
    ],
)
def test_what_no_training_could_be_is_refused(changes, message):
    with pytest.raises(UsageError) as refusal:
        plan(replace(QUALITY, **changes))
    assert message in str(refusal.value)


def test_a_trainings_label_tells_task_seed_and_variant():
    (case,) = plan(
        replace(QUALITY, providers=("sdpa",), tasks=("copy",), seeds=(3,), variants=("kl=0.1",))
    )
    label = case_label(complete_row(case.columns()))
    assert label == "quality/sdpa train_step T=256 2/2/32 B=16 float32 copy seed=3 kl=0.1"
