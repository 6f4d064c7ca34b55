"""Training real text: below the bigram model, with a log, and bit by bit the same when resumed."""

from __future__ import annotations

import functools
import math

import pytest
import torch
from torch import nn

from dynnsiha import (
    FisherAwareRoutingShaping,
    RMSuon,
    SparseBayesianLinear,
    SparseProtoLinear,
    SurpriseAwareRoutingShaping,
)
from dynnsiha.forms import ExpertMLP
from dynnsiha.learning import (
    Objective,
    TextWindows,
    evaluate,
    fit,
    kl_divergence_loss,
    output_entropy,
    read_log,
    save_checkpoint,
    warmup_cosine,
)
from dynnsiha.learning.batches import drawn_batches

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def windows(library_source, segmenter) -> TextWindows:
    return TextWindows.of(library_source, segmenter, char_vocab=128, seq_len=48, batch=2)


class _WithDropout(nn.Module):
    """A model that draws random numbers while it trains."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model, self.dropout = model, nn.Dropout(0.2)

    def forward(self, char_ids, word_ids):
        return self.dropout(self.model(char_ids, word_ids))


class _CutOff(Exception):
    pass


OPTIMIZERS = {
    "rmsuon": RMSuon,
    "adamw": torch.optim.AdamW,
    "adam": torch.optim.Adam,
    "sgd": functools.partial(torch.optim.SGD, momentum=0.9),
}


def _objective(model: nn.Module, optimizer: torch.optim.Optimizer) -> Objective:
    """Every auxiliary loss that model and optimizer have."""
    kinds = {type(part) for part in model.modules()}
    has_neurons = not kinds.isdisjoint((SparseBayesianLinear, SparseProtoLinear))
    routed = has_neurons or ExpertMLP in kinds
    second_moments = not isinstance(optimizer, torch.optim.SGD)
    return Objective(
        surprise_weight=0.1 * has_neurons,
        kl_weight=0.1 * (SparseBayesianLinear in kinds),
        sars=SurpriseAwareRoutingShaping() if routed else None,
        sars_weight=0.1,
        fars=FisherAwareRoutingShaping(optimizer) if routed and second_moments else None,
        fars_weight=0.1,
    )


def _run(
    small_model,
    windows,
    *,
    out,
    steps=7,
    kind="rmsuon",
    name="dynnsiha hybrid",
    cut_after=None,
    **options,
):
    model = _WithDropout(small_model(name))
    torch.manual_seed(5)
    optimizer = OPTIMIZERS[kind](model.parameters(), lr=1e-2)
    objective = _objective(model, optimizer)

    def stop(step: int, _: object) -> None:
        if step == cut_after:
            raise _CutOff

    result = fit(
        model,
        windows,
        optimizer,
        steps=steps,
        objective=objective,
        schedule=warmup_cosine(7, warmup=2),
        out=out,
        checkpoint_every=3,
        on_step=stop,
        progress=False,
        **options,
    )
    return model, optimizer, result


@pytest.mark.parametrize(
    ("name", "kind", "cut_after"),
    [("dynnsiha hybrid", kind, 5) for kind in OPTIMIZERS]
    + [("dynnsiha hybrid", "rmsuon", 3), ("deep embed", "adamw", 5)]
    + [(name, "rmsuon", 5) for name in ("nsa", "dimension", "moie", "flat", "recursive sparse")],
)
def test_a_resumed_run_equals_one_that_was_never_cut_off(
    name, kind, cut_after, small_model, windows, tmp_path
):
    small = functools.partial(_run, small_model, windows, kind=kind, name=name)
    whole, optimizer, result = small(out=tmp_path / "whole")
    assert (result.first_step, result.last_step) == (1, 7)
    with pytest.raises(_CutOff):
        small(out=tmp_path / "cut", cut_after=cut_after)
    torch.randn(3)  # whatever happened in between
    resumed, other, result = small(out=tmp_path / "cut", resume=True)
    assert (result.first_step, result.last_step) == (4, 7)
    for a, b in zip(whole.parameters(), resumed.parameters(), strict=True):
        assert torch.equal(a, b)
        for part, value in optimizer.state[a].items():
            assert torch.equal(value, other.state[b][part]), part
    assert optimizer.param_groups[0]["lr"] == other.param_groups[0]["lr"]
    assert torch.equal(torch.load(tmp_path / "whole" / "checkpoint.pt")["random"],
                       torch.load(tmp_path / "cut" / "checkpoint.pt")["random"])  # fmt: skip
    assert read_log(tmp_path / "whole").equals(read_log(tmp_path / "cut"))


def test_the_random_state_and_the_position_matter(small_model, windows, tmp_path):
    """The comparison above can fail: other dropout or other batches give other weights."""
    first, _, _ = _run(small_model, windows, out=tmp_path / "a", steps=3)
    other_data = TextWindows(windows.char_ids, windows.word_ids, seq_len=48, batch=2, seed=9)
    second, _, _ = _run(small_model, other_data, out=tmp_path / "b", steps=3)
    assert not torch.equal(first.model.logits.weight, second.model.logits.weight)
    state = torch.load(tmp_path / "a" / "checkpoint.pt")
    state["random"] = torch.Generator().manual_seed(1234).get_state()
    with_state, _, _ = _run(small_model, windows, out=tmp_path / "a", steps=6, resume=True)
    (tmp_path / "c").mkdir()
    torch.save(state, tmp_path / "c" / "checkpoint.pt")
    without, _, _ = _run(small_model, windows, out=tmp_path / "c", steps=6, resume=True)
    assert not torch.equal(with_state.model.logits.weight, without.model.logits.weight)


def test_the_log_has_a_row_for_each_step_and_layer(small_model, windows, tmp_path):
    _, _, result = _run(small_model, windows, out=tmp_path, steps=4)
    log = read_log(tmp_path)
    layers = [f"model.blocks.{i}.attention" for i in (0, 1)]
    parts = [f"{layer}.{part}" for layer in layers for part in ("qkv", "output")]
    assert set(log.layer) == {"", *layers, *parts}
    assert len(log) == 4 * 7
    steps = log[log.layer == ""].set_index("step")
    assert steps.index.tolist() == [1, 2, 3, 4]
    assert steps.main[4] == pytest.approx(result.main)
    losses = steps[["total", "main", "surprise", "kl", "sars", "fars", "gradient_norm"]]
    assert losses.notna().all(axis=None)
    assert steps.learning_rate[1] == pytest.approx(0.005)
    attention = log[log.layer.isin(layers)]
    gates = attention[["gate_compressed", "gate_selected", "gate_sliding"]]
    assert ((gates > 0) & (gates < 1)).all(axis=None)
    assert (attention.selected_blocks >= 1).all()
    routed = log[log.layer.isin(parts)]
    assert routed.activation_rate.between(0.2, 0.9).all()
    assert (routed.dead_neurons < routed.neurons).all()


def test_log_every_thins_the_log(small_model, windows, tmp_path):
    _run(small_model, windows, out=tmp_path, steps=7, log_every=3)
    assert sorted(set(read_log(tmp_path).step)) == [3, 6]


def test_a_finished_run_has_nothing_to_do(small_model, windows, tmp_path):
    model, _, _ = _run(small_model, windows, out=tmp_path, steps=3)
    again, _, result = _run(small_model, windows, out=tmp_path, steps=3, resume=True)
    assert (result.first_step, result.last_step) == (4, 3)
    assert math.isnan(result.main)
    assert all(
        torch.equal(*pair) for pair in zip(model.parameters(), again.parameters(), strict=True)
    )


def test_resume_starts_where_there_is_no_checkpoint_yet(small_model, windows, tmp_path):
    with pytest.raises(_CutOff):
        _run(small_model, windows, out=tmp_path, cut_after=2)
    _, _, result = _run(small_model, windows, out=tmp_path, steps=3, resume=True)
    assert result.first_step == 1
    assert sorted(set(read_log(tmp_path).step)) == [1, 2, 3]


def test_what_cannot_go_on_names_the_fix(small_model, windows, tmp_path):
    _run(small_model, windows, out=tmp_path, steps=3)
    with pytest.raises(FileExistsError, match="holds a checkpoint; pass resume=True"):
        _run(small_model, windows, out=tmp_path)
    other = TextWindows(windows.char_ids, windows.word_ids, seq_len=47, batch=2)
    with pytest.raises(ValueError, match=r"windows: seq_len=47, but the checkpoint .* with 48"):
        _run(small_model, other, out=tmp_path, resume=True)
    with pytest.raises(ValueError, match="resume=True without out"):
        _run(small_model, windows, out=None, resume=True)
    log = read_log(tmp_path)
    for kind, name in (("adamw", "AdamW"), ("sgd", "SGD")):
        with pytest.raises(ValueError, match=f"is {name}, but the .* was made with RMSuon; give"):
            _run(small_model, windows, out=tmp_path, kind=kind, resume=True)
    assert read_log(tmp_path).equals(log)


def test_another_learning_rate_cannot_go_on(small_model, windows, tmp_path):
    model = small_model("dynsiha")
    schedule = {"steps": 3, "out": tmp_path, "schedule": warmup_cosine(3, warmup=1)}
    first = torch.optim.AdamW(model.parameters(), lr=1e-3)
    fit(model, windows, first, **schedule)
    fit(model, windows, first, **schedule | {"steps": 4, "resume": True})  # one that has moved
    weights = [p.detach().clone() for p in model.parameters()]
    other = torch.optim.AdamW(model.parameters(), lr=0.5)
    with pytest.raises(ValueError, match=r"lr=0\.5, but the .* was made with 0\.001; give"):
        fit(model, windows, other, **schedule | {"steps": 5, "resume": True})
    assert not other.state
    assert all(map(torch.equal, model.parameters(), weights))


@pytest.mark.parametrize("share", [0.0, 0.3, 0.999])
def test_a_checkpoint_that_is_cut_short_names_the_file(share, small_model, windows, tmp_path):
    model = small_model("dynsiha")
    optimizer = torch.optim.AdamW(model.parameters())
    path = save_checkpoint(tmp_path, model, optimizer, step=1, data=windows.identity())
    whole = path.read_bytes()
    path.write_bytes(whole[: int(share * len(whole))])
    with pytest.raises(ValueError, match=r"checkpoint\.pt: cannot be read, .*; remove it to start"):
        fit(model, windows, optimizer, steps=2, out=tmp_path, resume=True)


@pytest.mark.parametrize(
    ("held", "complaint"), [([1], "cannot be read"), ({"step": 1}, r"has no \['data', 'model'")]
)
def test_a_file_that_is_no_checkpoint_is_refused(held, complaint, small_model, windows, tmp_path):
    model = small_model("dynsiha")
    optimizer = torch.optim.AdamW(model.parameters())
    torch.save(held, tmp_path / "checkpoint.pt")
    with pytest.raises(ValueError, match=rf"checkpoint\.pt: {complaint}"):
        fit(model, windows, optimizer, steps=2, out=tmp_path, resume=True)


@pytest.mark.parametrize(
    "name", ["steps", "checkpoint_every", "log_every", "check_every", "evaluate_every"]
)
def test_numbers_below_one_are_refused(name, small_model, windows):
    model = small_model("dynsiha")
    optimizer = torch.optim.AdamW(model.parameters())
    with pytest.raises(ValueError, match=f"{name}=0: must be at least 1"):
        fit(model, windows, optimizer, **{"steps": 1} | {name: 0})
    with pytest.raises(ValueError, match="batches=0: must be at least 1"):
        evaluate(model, windows, batches=0)


def test_a_loss_that_is_not_a_number_stops_before_the_step(small_model, windows):
    model = small_model("dynsiha")
    optimizer = torch.optim.AdamW(model.parameters())
    with torch.no_grad():
        model.logits.weight[0, 0] = torch.nan
    kept = model.norm.weight.detach().clone()
    with pytest.raises(FloatingPointError, match="step 1: loss nan"):
        fit(model, windows, optimizer, steps=1)
    assert torch.equal(model.norm.weight, kept)


def test_gradients_are_clipped_together(small_model, windows):
    model = small_model("dynsiha")
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    before = [p.detach().clone() for p in model.parameters()]
    fit(model, windows, optimizer, steps=1, clip_norm=1e-3)
    moved = [b - p.detach() for p, b in zip(model.parameters(), before, strict=True)]
    norm = torch.cat([m.flatten() for m in moved]).double().norm()
    assert float(norm) == pytest.approx(1e-3, rel=1e-2)


def test_evaluation_is_a_mean_and_leaves_the_model_as_it_was(small_model, windows):
    model = small_model("dynsiha").train()
    expected = sum(float(model.loss(*windows.draw(n)).detach()) for n in range(3)) / 3
    assert evaluate(model, windows, batches=3) == pytest.approx(expected)
    assert model.training
    assert all(p.grad is None for p in model.parameters())


class _Masked:
    """Windows of which one character in three counts."""

    def __init__(self, windows: TextWindows) -> None:
        self.windows = windows

    def draw(self, position):
        chars, words = self.windows.draw(position)
        return chars, words, (torch.arange(chars.numel()) % 3 == 0).view_as(chars)

    def identity(self):
        return self.windows.identity()


def test_only_what_counts_is_learned(small_model, windows):
    model = small_model("dynsiha")
    chars, words, counted = _Masked(windows).draw(0)
    losses = Objective(kl_weight=0.1)(model, chars, words, counted)
    logits = model(chars, words)
    picked = logits[:, :-1][counted[:, 1:]]
    wanted = torch.nn.functional.cross_entropy(picked, chars[:, 1:][counted[:, 1:]])
    assert float(losses.main) == pytest.approx(float(wanted))
    tau = output_entropy(picked)
    assert float(losses.kl) == pytest.approx(float(kl_divergence_loss(model, tau)))
    everything = Objective()(model, chars, words, torch.ones_like(counted))
    assert torch.equal(everything.main, Objective()(model, chars, words).main)


def test_masked_data_is_trained_and_evaluated(small_model, windows):
    model = small_model("dynsiha")
    data = _Masked(windows)
    before = evaluate(model, data, batches=2)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    fit(model, data, optimizer, steps=8)
    assert evaluate(model, data, batches=2) < before


@pytest.mark.parametrize("resumed", [False, True])
def test_evaluations_are_logged_where_they_are_due_and_change_nothing(
    resumed, small_model, windows, tmp_path
):
    seen, heard = [], []

    def evaluation(model):
        model.eval()
        seen.append(evaluate(model, windows, batches=1))
        return {"eval_loss": seen[-1], "eval_accuracy": 0.5}

    def heed(step, rows):
        heard.append((step, [row["layer"] for row in rows]))

    options = {"evaluation": evaluation, "evaluate_every": 2, "log_every": 3, "on_log": heed}
    if resumed:
        with pytest.raises(_CutOff):
            _run(small_model, windows, out=tmp_path, cut_after=5, **options)
        seen.clear(), heard.clear()
    evaluated, _, _ = _run(small_model, windows, out=tmp_path, resume=resumed, **options)
    plain, _, _ = _run(small_model, windows, out=tmp_path / "plain")
    assert all(map(torch.equal, evaluated.parameters(), plain.parameters()))
    log = read_log(tmp_path)
    steps = log[log.layer == ""].set_index("step")
    assert steps.index.tolist() == [2, 3, 4, 6, 7]
    assert steps.eval_loss.dropna().index.tolist() == [2, 4, 6, 7]
    assert steps.eval_loss[7] == seen[-1]
    assert [step for step, _ in heard] == ([4, 6, 7] if resumed else [2, 3, 4, 6, 7])
    assert all(layers[0] == "" and len(layers) == 7 for _, layers in heard)


def test_looking_less_often_trains_the_same_and_still_finds_what_breaks(small_model, windows):
    weights = []
    for check_every in (1, 4):
        model, _, result = _run(small_model, windows, out=None, check_every=check_every)
        assert math.isfinite(result.main)
        weights.append(model.model.logits.weight)
    assert torch.equal(*weights)
    model = small_model("dynsiha")
    with torch.no_grad():
        model.logits.weight[0, 0] = torch.nan
    optimizer = torch.optim.AdamW(model.parameters())
    with pytest.raises(FloatingPointError, match="step 3: loss nan"):
        fit(model, windows, optimizer, steps=9, check_every=3)


def test_what_breaks_between_looks_leaves_the_checkpoint_before_it(small_model, windows, tmp_path):
    model = small_model("dynsiha")

    def poison(step: int) -> None:
        if step == 5:
            with torch.no_grad():
                model.logits.weight[0, 0] = torch.nan

    optimizer = torch.optim.AdamW(model.parameters())
    often = {"checkpoint_every": 2, "log_every": 10, "check_every": 10}
    with pytest.raises(FloatingPointError, match="step 6: loss nan"):
        fit(model, windows, optimizer, steps=10, out=tmp_path, before_step=poison, **often)
    state = torch.load(tmp_path / "checkpoint.pt")
    assert state["step"] == 4
    assert all(x.isfinite().all() for x in state["model"].values())


def test_batches_come_in_order(windows):
    drawn = [batch[0] for batch in drawn_batches(windows, 2, 4, torch.device("cpu"))]
    assert all(map(torch.equal, drawn, (windows.draw(n)[0] for n in (2, 3, 4))))
    assert list(drawn_batches(windows, 2, 1, torch.device("cpu"))) == []
