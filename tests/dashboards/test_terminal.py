from __future__ import annotations

import io
import re

import pytest
from rich.console import Console

from dynbench.dashboards.terminal import (
    RunDisplay,
    change_text,
    duration_text,
    facts_table,
    latency_text,
    plan_table,
    row_line,
    rows_table,
    verdicts_table,
)
from dynbench.harness.schema import complete_row
from dynbench.harness.store import frame_of


def row(**columns):
    base = {
        "run_id": "r",
        "workload_id": "w",
        "suite": "attention",
        "provider": "sdpa",
        "pass": "forward",
        "status": "ok",
        "seq_len": 8192,
        "q_heads": 1,
        "kv_heads": 1,
        "head_dim": 64,
        "latency_ms": 12.0,
        "latency_q1_ms": 11.5,
        "latency_q3_ms": 12.5,
        "peak_memory_bytes": 3 * 2**20,
    }
    return complete_row(base | columns)


def text_of(renderable) -> str:
    console = Console(file=io.StringIO(), width=200, markup=False)
    console.print(renderable)
    return console.file.getvalue()


def test_speedups_refer_to_the_same_run_and_workload():
    rows = [
        row(),
        row(provider="nsa", latency_ms=3.0),
        row(provider="nsa", latency_ms=3.0, workload_id="other"),
        row(provider="nsa", latency_ms=3.0, run_id="other"),
    ]
    assert re.findall(r"\S+×", text_of(rows_table(frame_of(rows)))) == ["1.00×", "4.00×"]
    some = frame_of(rows[1:2])
    assert "×" not in text_of(rows_table(some))
    assert "4.00×" in text_of(rows_table(some, among=frame_of(rows)))
    assert "vs nsa" in text_of(rows_table(frame_of(rows), baseline="nsa"))


@pytest.mark.parametrize(
    "other",
    [
        {"timer": "graph"},
        {"machine_id": "m2"},
        {"cpu_threads": 2},
        {"torch_version": "2.14"},
        {"git_commit": "c2"},
    ],
)
def test_a_resumed_run_is_not_compared_across_its_conditions(other):
    same = {"machine_id": "m", "cpu_threads": 1, "torch_version": "2.13", "git_commit": "c"}
    rows = [row(**same), row(provider="nsa", latency_ms=3.0, **{**same, **other})]
    assert re.findall(r"\S+×", text_of(rows_table(frame_of(rows)))) == ["1.00×"]


def test_a_baseline_of_several_rows_is_none():
    rows = [
        row(provider="dynnsiha", query_tile=1),
        row(provider="dynnsiha", query_tile=16, latency_ms=6.0),
        row(provider="nsa", latency_ms=3.0),
        row(provider="nsa", latency_ms=3.0, workload_id="other"),
        row(provider="dynnsiha", workload_id="other"),
        row(provider="dynnsiha", workload_id="other", status="error", latency_ms=None),
    ]
    shown = text_of(rows_table(frame_of(rows), baseline="dynnsiha"))
    assert re.findall(r"\S+×", shown) == ["4.00×", "1.00×"]


def test_a_failed_baseline_gives_no_speedup():
    rows = [row(status="incorrect", reason="beyond its tolerance"), row(provider="nsa")]
    shown = text_of(rows_table(frame_of(rows)))
    assert "×" not in shown
    assert "incorrect: beyond its tolerance" in shown


def test_only_settings_that_differ_are_shown():
    rows = [
        row(),
        row(provider="dynnsiha", query_tile=1, private_blocks=0, window=512),
        row(provider="dynnsiha", query_tile=16, private_blocks=2, window=512),
    ]
    header, _, exact, hybrid = text_of(rows_table(frame_of(rows))).splitlines()
    assert re.findall(r"\S+", header)[:5] == ["provider", "pass", "R", "m", "T"]
    assert exact.split()[:5] == ["dynnsiha", "forward", "1", "0", "8k"]
    assert hybrid.split()[:5] == ["dynnsiha", "forward", "16", "2", "8k"]


def test_branches_are_shown_wherever_a_row_leaves_one_out():
    rows = [row(), row(provider="fla", branches="compressed,selected")]
    header, _, few = text_of(rows_table(frame_of(rows))).splitlines()
    assert header.split()[2] == "branches"
    assert few.split()[2] == "compressed,selected"
    assert row_line(rows[1]).startswith("attention/fla forward T=8k (compressed + selected): ")


def test_rows_of_models_tell_tokens_first_token_and_cache():
    step = {"suite": "generation", "pass": "decode", "layers": 2, "tokens_per_s": 512.4}
    rows = [
        row(),
        row(**step, first_token_ms=1234.0, cache_bytes=3 * 2**20),
        row(**step | {"layers": 4, "status": "error", "tokens_per_s": None}),
    ]
    header, *lines = text_of(rows_table(frame_of(rows))).splitlines()
    titles = re.split(r" {2,}", header.strip())
    assert {"layers", "tokens/s", "first token", "cache"} <= set(titles)
    for part in ("512", "1.23 s", "3.00 MiB"):
        assert part in lines[1]
    assert "tokens/s" not in text_of(rows_table(frame_of(rows[:1])))
    assert row_line(rows[1]).endswith(", 512 tokens/s")
    assert "tokens/s" not in row_line(rows[0])


def test_text_from_rows_is_neither_markup_nor_control_code():
    rows = [row(provider="[red]x\x1b[31m", status="error", reason="[/bold] \x07 twice\nlines")]
    shown = text_of(rows_table(frame_of(rows)))
    assert "[red]x" in shown
    assert "[/bold]" in shown
    assert not {"\x1b", "\x07"} & set(shown)
    assert len(shown.splitlines()) == 2


def test_a_plan_shows_cases_and_times():
    planned = {"case_id": "abc", "provider": "nsa", "pass": "forward", "seq_len": 1024}
    shown = text_of(plan_table([planned, planned | {"seq_len": 2048}], [3.2, 600])).splitlines()
    assert shown[1].split() == ["abc", "nsa", "forward", "1k", "3", "s"]
    assert shown[2].split() == ["abc", "nsa", "forward", "2k", "10", "min"]


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.2, "0 s"),
        (40, "40 s"),
        (99.4, "99 s"),
        (100, "2 min"),
        (5900, "98 min"),
        (7260, "2 h 1 min"),
    ],
)
def test_durations(seconds, text):
    assert duration_text(seconds) == text


@pytest.mark.parametrize(
    ("scale", "text"),
    [
        (1, "12.0 ms [11.5, 12.5]"),
        (1000, "12.0 s [11.5, 12.5]"),
        (0.001, "12.0 µs [11.5, 12.5]"),
    ],
)
def test_median_and_quartiles_share_a_unit(scale, text):
    latencies = {"latency_ms": 12.0, "latency_q1_ms": 11.5, "latency_q3_ms": 12.5}
    assert latency_text(row(**{name: ms * scale for name, ms in latencies.items()})) == text


def test_one_row_in_one_line():
    assert row_line(row()) == "attention/sdpa forward T=8k: 12.0 ms [11.5, 12.5], peak 3.00 MiB"
    tiled = row_line(row(provider="dynnsiha", query_tile=16, private_blocks=2))
    assert tiled.startswith("attention/dynnsiha forward T=8k R=16 m=2: ")
    failed = row(status="timeout", reason="10 s\nare over", latency_ms=None)
    assert row_line(failed) == "attention/sdpa forward T=8k: timeout: 10 s are over"


def test_facts_name_units_and_leave_hashes_out():
    facts = {"host_memory_bytes": 2**33, "host_hash": "beef", "gpu_name": None, "git_dirty": False}
    shown = text_of(facts_table(facts))
    assert re.search(r"host memory +8\.00 GiB", shown)
    assert re.search(r"git dirty +no", shown)
    assert "beef" not in shown
    assert "gpu" not in shown


@pytest.mark.parametrize("terminal", [False, True])
def test_a_run_is_quiet_unless_on_a_terminal(terminal):
    file = io.StringIO()
    console = Console(file=file, width=120, force_terminal=terminal, highlight=False)
    with RunDisplay(console) as display:
        display.run_started(total=2, already_done=1, predicted_s=90)
        display.case_started("attention/sdpa forward T=8192", seconds_left=90)
        display.stage_started("attention/sdpa forward T=8192: sampling")
        display.row_finished(row(), done=1, seconds_left=40)
        display.row_finished(row(), done=2, seconds_left=0)
    shown = file.getvalue()
    assert "2 cases, predicted: 90 s (1 finished before)" in shown
    if terminal:
        assert "2/2" in shown
        assert "left" in shown
    else:
        assert shown.splitlines()[1:] == [
            "[1/2] attention/sdpa forward T=8k: 12.0 ms [11.5, 12.5], peak 3.00 MiB, 40 s left",
            "[2/2] attention/sdpa forward T=8k: 12.0 ms [11.5, 12.5], peak 3.00 MiB",
        ]


def test_disturbed_rows_are_flagged():
    busy = row(device="cpu", other_cpu_share=0.42)
    assert "ok: disturbed, other processes kept 42 % of the CPUs busy" in text_of(
        rows_table(frame_of([busy]))
    )
    assert row_line(busy).endswith(" (disturbed, other processes kept 42 % of the CPUs busy)")
    shared = row(device="cuda", other_gpu_processes=2, other_cpu_share=0.42)
    assert row_line(shared).endswith(" (disturbed, 2 other processes used the GPU)")
    for calm in (row(device="cuda", other_cpu_share=0.42), row(device="cpu", other_cpu_share=0.05)):
        assert "disturbed" not in row_line(calm)
        assert "disturbed" not in text_of(rows_table(frame_of([calm])))


def test_several_lanes_are_shown_by_name():
    file = io.StringIO()
    with RunDisplay(Console(file=file, width=200, highlight=False)) as display:
        display.run_started(total=3, already_done=0, predicted_s=90)
        display.case_started("one", 90, "GPU 1")
        display.case_started("two", 90, "GPU 0")
        display.stage_started("one: sampling", "GPU 1")
        assert display._bar.tasks[0].description == "GPU 0: two | GPU 1: one: sampling"
        display.row_finished(row(), 1, 0, "GPU 1")
        display.lane_ended("GPU 1", "no worker can be started: broken")
        display.stage_started("two: check", "GPU 0")
        assert display._bar.tasks[0].description == "GPU 0: two: check"
    assert "[1/3] GPU 1: attention/sdpa forward T=8k: " in file.getvalue()
    assert "GPU 1 is left out: no worker can be started: broken" in file.getvalue()


def test_the_gpu_is_a_column_where_there_are_several():
    rows = [row(gpu_index=index, provider=f"p{index}") for index in (0, 1)]
    assert "GPU" in text_of(rows_table(frame_of(rows)))
    assert "GPU" not in text_of(rows_table(frame_of(rows[:1])))


VERDICT = {
    "verdict": "regressed",
    "case_id": "abcdef0123456789",
    "label": "attention/nsa forward T=8k",
    "blocks": True,
    "reason": "slower by more than 3 %",
    "notes": ("once", "and again\u202e"),
    "baseline_ms": 1.0,
    "candidate_ms": 1.1,
    "change": 0.1,
    "low": 0.08,
    "high": 0.123,
}


def test_verdicts_say_what_changed_and_why():
    unknown = dict.fromkeys(("baseline_ms", "candidate_ms", "change", "low", "high"))
    missing = VERDICT | unknown | {"verdict": "missing", "notes": ()}
    first, second = text_of(verdicts_table([VERDICT, missing])).splitlines()[1:]
    assert first.split()[0] == "regressed"
    assert "attention/nsa forward T=8k [abcdef01]" in first
    assert "1.00 ms    1.10 ms  +10.0 % (+8.0, +12.3)" in first
    assert "slower by more than 3 %; once; and again⟨U+202E⟩" in first
    assert "%" not in second.replace("slower by more than 3 %", "")


def test_changes_with_and_without_bounds():
    assert change_text(None, None, None) == ""
    assert change_text(-0.05, None, None) == "-5.0 %"
    assert change_text(0.0, -0.01, 0.01) == "+0.0 % (-1.0, +1.0)"


def test_a_training_says_what_it_reached():
    training = {"suite": "quality", "pass": "train_step", "task": "recall", "seed": 1}
    rows = [
        row(**training, eval_loss=0.12345, eval_accuracy=0.9735, variant="kl=0.1"),
        row(**training | {"provider": "nsa"}, status="timeout", latency_ms=None, reason="stopped"),
    ]
    table = text_of(rows_table(frame_of(rows)))
    assert re.search(r"task +variant +T +latency.* +loss +accuracy +peak memory", table)
    assert "0.1235   97.35 %" in table
    assert "vs sdpa" not in table
    mixed = text_of(rows_table(frame_of([row(workload_id="other"), *rows])))
    assert "vs sdpa" in mixed
    assert mixed.count("1.00×") == 1  # a training's duration is no speed
    assert row_line(rows[0]) == (
        "quality/sdpa train_step T=8k recall seed 1 (kl=0.1): 12.0 ms [11.5, 12.5], "
        "peak 3.00 MiB, loss 0.1235, accuracy 97.35 %"
    )
    assert row_line(rows[1]).endswith("recall seed 1: timeout: stopped")
