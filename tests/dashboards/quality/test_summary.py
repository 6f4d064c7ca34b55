"""Words: within reach, not within, not sure, and single seeds."""

import re
from collections.abc import Callable

import pandas as pd
import pytest

from dynbench.dashboards import frame as frames
from dynbench.dashboards.quality.model import quality_groups
from dynbench.dashboards.quality.summary import first_screen
from dynbench.dashboards.summary import FirstScreen

Build = Callable[..., dict]
HYBRID = {"query_tile": 16, "private_blocks": 2}


def screen(*rows: dict) -> FirstScreen:
    (group,) = quality_groups(frames.prepare(pd.DataFrame(list(rows))))
    return first_screen(group)


def seeds(training: Build, provider: str, values: list[float], **more) -> list[dict]:
    column = more.pop("column", "eval_loss")
    return [training(provider, at, **{column: value}, **more) for at, value in enumerate(values)]


@pytest.mark.parametrize(
    ("losses", "outcome", "verdict", "figure"),
    [
        ([2.01, 2.012, 2.008], "pays", "Within 2 % of sdpa's loss", "+0.50 %"),
        ([2.3, 2.31, 2.29], "loses", "Not within 2 % of sdpa's loss", "+15.0 %"),
        ([2.0, 2.2, 1.9], "ties", "Not sure to be within 2 % of sdpa's loss", "+1.67 %"),
        ([2.01], "ties", "One seed: not sure to be within 2 % of sdpa's loss", "+0.50 %"),
        ([1.9, 1.901, 1.899], "pays", "Within 2 % of sdpa's loss", "−5.00 %"),
    ],
)
def test_verdicts_of_a_loss(
    training: Build, losses: list[float], outcome: str, verdict: str, figure: str
) -> None:
    dense = seeds(training, "sdpa", [2.0, 2.001, 1.999])
    first = screen(*dense, *seeds(training, "dynnsiha", losses, **HYBRID))
    (answer,) = first.answers
    assert (answer.outcome, answer.verdict, answer.figure) == (outcome, verdict, figure)
    assert figure in first.headline
    assert ("no interval" in " ".join(answer.sentences)) == (len(losses) == 1)


def test_of_questions_the_accuracy_decides_in_points(training: Build) -> None:
    more = {"task": "recall", "column": "eval_accuracy"}
    dense = seeds(training, "sdpa", [1.0, 1.0, 1.0], **more)
    (near,) = screen(
        *dense, *seeds(training, "dynnsiha", [0.995, 0.996, 0.994], **HYBRID, **more)
    ).answers
    assert (near.outcome, near.figure) == ("pays", "−0.50 points")
    assert "accuracy against sdpa: 99.5 % against 100 %" in near.figure_note
    (far,) = screen(
        *dense, *seeds(training, "dynnsiha", [0.7, 0.71, 0.69], **HYBRID, **more)
    ).answers
    assert (far.outcome, far.figure) == ("loses", "−30.0 points")
    assert "Beside it: loss" in " ".join(far.sentences)


def test_kinds_of_lists_have_cards_of_their_own(text_rows: list[dict]) -> None:
    first = screen(*text_rows)
    headings = [answer.heading for answer in first.answers]
    assert headings[0] == "Exact lists"
    assert headings[1].startswith("Hybrid lists R=")
    assert headings[2] == "Shared lists R=16 shared"
    hybrid = " ".join(first.answers[1].sentences)
    assert "Difference to exact lists of the same settings (dynnsiha · exact" in hybrid
    assert "Parameters: 1.31 M against 1.2 M of sdpa" in hybrid
    assert "Basis: 3 seeds against 3 of sdpa, 4096 held-out answers each" in hybrid
    assert re.search(r"leaves out [\d.]+ % of the pairs", hybrid)
    assert first.headline.startswith("Text at 1k tokens, 400 steps: dynnsiha (")


def test_without_dense_attention_exact_lists_are_the_reference(training: Build) -> None:
    exact = seeds(training, "nsa", [2.0, 2.001, 1.999], query_tile=1)
    first = screen(*exact, *seeds(training, "dynnsiha", [2.01, 2.011, 2.009], **HYBRID))
    (answer,) = first.answers
    assert answer.verdict == "Within 2 % of nsa's loss"


def test_nothing_to_compare_is_said(training: Build) -> None:
    alone = screen(training("dynnsiha", 0, **HYBRID))
    assert alone.answers == ()
    assert "No dense attention and no exact lists" in alone.notes[0]
    changed = screen(training("dynnsiha", 0, query_tile=4, variant="lr=0.003,synthesis=linear"))
    assert changed.notes == alone.notes
    assert changed.lead[0].endswith(", all with lr=0.003, synthesis=linear.")
    dense = screen(training("sdpa", 0))
    assert "None of them is dynnsiha" in dense.notes[0]
    failed = screen(training("sdpa", 0, status="error", reason="x"))
    assert "no training has a number (1 error)" in failed.headline


def test_a_recipe_is_named(training: Build) -> None:
    recipe = {"variant": "lr=0.003,optimizer=rmsuon"}
    dense = seeds(training, "sdpa", [2.0, 2.001, 1.999], **recipe)
    first = screen(*dense, *seeds(training, "dynnsiha", [2.01, 2.011, 2.009], **HYBRID, **recipe))
    (answer,) = first.answers
    assert answer.outcome == "pays"
    assert "trained with lr=0.003, optimizer=rmsuon." in " ".join(answer.sentences)


def test_where_every_model_was_changed_the_commonest_change_is_spoken_of(training: Build) -> None:
    recipe, few = "lr=0.003,optimizer=rmsuon", "router=capr"
    dense = seeds(training, "sdpa", [2.0, 2.001, 1.999], variant=recipe)
    linear = {"variant": f"{recipe},synthesis=linear", "query_tile": 16}
    first = screen(
        *dense,
        *seeds(training, "dynnsiha", [2.3, 2.31, 2.29], **linear, private_blocks=0),
        *seeds(training, "dynnsiha", [2.01, 2.011, 2.009], **linear, private_blocks=2),
        *seeds(training, "dynnsiha", [1.5, 1.5, 1.5], variant=f"{recipe},{few}", **HYBRID),
    )
    assert [answer.figure for answer in first.answers] == ["+0.50 %", "+15.0 %"]
    assert "dynnsiha (R=16 m=2, synthesis=linear) is within 2 %" in first.headline
    assert "; changed: synthesis=linear; trained with lr=0.003" in " ".join(first.lead)
    plain = seeds(training, "dynnsiha", [2.4, 2.4, 2.4], variant=recipe, **HYBRID)
    both = screen(*dense, *plain, *seeds(training, "dynnsiha", [2.0, 2.0], **linear))
    assert [answer.figure for answer in both.answers] == ["+20.0 %"]
    assert "changed" not in " ".join(both.lead)
