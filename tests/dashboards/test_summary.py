from collections.abc import Callable

import pandas as pd
import pytest

from dynbench.dashboards.model import build_facets
from dynbench.dashboards.summary import FirstScreen, first_screen, status_counts

Build = Callable[..., dict]


def screen_of(frame: pd.DataFrame, baseline: str = "sdpa") -> FirstScreen:
    return first_screen(build_facets(frame, baseline)[0])


def test_the_numbers_are_those_of_plain_pandas(cpu_frame: pd.DataFrame) -> None:
    """Every number of the first screen, recomputed from the rows without code of the report."""
    base = cpu_frame[cpu_frame["provider"] == "sdpa"].set_index("seq_len")
    answers = {answer.heading: answer for answer in screen_of(cpu_frame).answers}
    assert set(answers) == {"Forward · exact lists", "Forward · hybrid lists R=16 m=2"}
    for heading, tile in (("Forward · exact lists", 1), ("Forward · hybrid lists R=16 m=2", 16)):
        rows = cpu_frame[cpu_frame["provider"] == "dynnsiha"]
        own = rows[rows["query_tile"] == tile].set_index("seq_len").sort_index()
        ratios = base["latency_ms"].reindex(own.index) / own["latency_ms"]
        faster = own["latency_q3_ms"] < base["latency_q1_ms"].reindex(own.index)
        slower = own["latency_q1_ms"] > base["latency_q3_ms"].reindex(own.index)
        answer, words = answers[heading], " ".join(answers[heading].sentences)
        from_ = min(t for t in own.index if faster[faster.index >= t].all())
        assert answer.verdict == f"Pays from {from_ // 1024}k"
        assert float(answer.figure.rstrip("×")) == pytest.approx(ratios[131072], rel=5e-3)
        lost = words.partition("It does not pay at ")[2].partition(". ")[0]
        for seq_len, ratio in ratios[slower].items():
            assert f"{seq_len // 1024}k ({ratio:.3f}×)" in lost
        assert lost.count("×") == slower.sum()
        assert ("No clear difference" in words) == (not (faster | slower).all())
        assert "top 16 blocks of 64, window 512" in words
        assert f"{100 * own['sparsity'][131072]:.1f} %" in words
        assert f"at most {own['rms_error'].max():.4f} (0.005 allowed)" in words
        samples = own["sample_count"].sum() + base["sample_count"].sum()
        assert f"5 lengths, 10 cases and {samples} samples" in words


def test_the_headline_names_the_best_of_the_first_pass(cpu_frame: pd.DataFrame) -> None:
    screen = screen_of(cpu_frame)
    assert screen.headline.startswith("dynnsiha (R=16 m=2) pays against sdpa from 32k tokens on")
    assert screen.headline.endswith("at 128k tokens, forward")


def test_a_provider_that_does_not_pay_is_said_so(row: Build) -> None:
    rows = [row("cpu", "sdpa", 8192, latency_ms=1.0), row("cpu", "dynnsiha", 8192, latency_ms=4.0)]
    screen = screen_of(pd.DataFrame(rows))
    assert screen.headline == (
        "dynnsiha (exact) does not pay against sdpa: 0.250× its speed at 8k tokens, forward"
    )
    assert screen.answers[0].outcome == "loses"
    assert screen.answers[0].verdict == "Does not pay at the longest length compared"
    assert "It does not pay at 8k (0.250×)." in screen.answers[0].sentences


def test_a_gain_within_the_noise_is_no_gain(row: Build) -> None:
    noise = {"latency_q1_ms": 0.9, "latency_q3_ms": 1.1}
    rows = [
        row("cpu", "sdpa", 4096, latency_ms=4.0),
        row("cpu", "dynnsiha", 4096, latency_ms=1.0),
        row("cpu", "sdpa", 8192, latency_ms=1.0, **noise),
        row("cpu", "dynnsiha", 8192, latency_ms=0.98, **noise),
    ]
    screen = screen_of(pd.DataFrame(rows))
    (answer,) = screen.answers
    assert screen.headline.startswith("dynnsiha (exact) shows no clear difference from sdpa: 1.02×")
    assert answer.outcome == "ties"
    assert answer.verdict == "No clear difference at the longest length compared"
    assert "No clear difference (quartiles overlap) at 8k (1.02×)." in answer.sentences
    rows += [row("cpu", "sdpa", 16384, latency_ms=4.0), row("cpu", "dynnsiha", 16384, latency_ms=1)]
    (answer,) = screen_of(pd.DataFrame(rows)).answers
    assert answer.verdict == "Pays from 16k", "not at every length compared"


def test_lengths_without_the_baseline_or_without_the_provider_are_named(row: Build) -> None:
    rows = [
        row("gpu", "sdpa", 8192),
        row("gpu", "sdpa", 16384, status="out_of_memory", reason="too large"),
        row("gpu", "dynnsiha", 8192),
        row("gpu", "dynnsiha", 16384, latency_ms=7.0),
        row("gpu", "dynnsiha", 32768, status="timeout", reason="600 s"),
        row("gpu", "sdpa", 65536),
    ]
    words = screen_of(pd.DataFrame(rows)).answers[0].sentences
    assert "It alone has a number at 16k (sdpa: out_of_memory; here 7.00 ms)." in words
    assert "It has no number at 32k (timeout) and 64k (not measured)." in words


@pytest.mark.parametrize(
    ("keep", "headline", "note"),
    [
        (
            lambda f: f["provider"] == "dynnsiha",
            "without a baseline",
            "no row of the baseline sdpa",
        ),
        (lambda f: f["provider"] == "sdpa", "none of dynnsiha", None),
        (lambda f: f["status"] != "ok", "No case could be measured", "no row of the baseline"),
        (lambda f: f["status"] == "incorrect", "No case could be measured: 1 incorrect", None),
    ],
)
def test_frames_without_an_answer_say_why(
    gpu_frame: pd.DataFrame, keep: Callable, headline: str, note: str | None
) -> None:
    screen = screen_of(gpu_frame[keep(gpu_frame)])
    assert headline in screen.headline
    assert screen.answers == ()
    if note:
        assert any(note in line for line in screen.notes)


def test_no_length_in_common(row: Build) -> None:
    rows = [row("gpu", "sdpa", 8192), row("gpu", "dynnsiha", 16384)]
    assert "no length in common" in screen_of(pd.DataFrame(rows)).notes[0]


def test_status_counts_are_the_frames(gpu_frame: pd.DataFrame) -> None:
    counts = status_counts(build_facets(gpu_frame, "sdpa")[0])
    assert counts == gpu_frame["status"].value_counts().to_dict()
    assert next(iter(counts)) == "ok"


def test_several_baseline_lines_of_which_none_selects_as_much(row: Build) -> None:
    rows = [row("gpu", "nsa", 8192, top_n=n) for n in (8, 16)]
    rows += [row("gpu", "dynnsiha", 8192, top_n=32, query_tile=4, private_blocks=2)]
    note = screen_of(pd.DataFrame(rows), "nsa").notes[0]
    assert "nsa has several lines and none selects as much as dynnsiha" in note
