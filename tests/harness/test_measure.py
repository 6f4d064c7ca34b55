"""The order of the steps, how often a subject is called, and the columns that come out."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from dataclasses import replace

import pytest
import torch

from dynbench.harness.case import Case
from dynbench.harness.ceilings import Ceilings
from dynbench.harness.measure import Limits, measure, rate_columns, work_columns
from dynbench.harness.schema import complete_row, disturbance
from dynbench.harness.subject import Correctness, Subject, Work
from dynbench.harness.timing import StoppingCriterion

MIB = 2**20
CASE = Case("planted", "plain", "forward", "cpu", "float32", "wall", {"seq_len": 1000})
CEILINGS = Ceilings(copy_gb_s=10.0, matmul_tflops=0.1)
FAST = Limits(warmup_s=0.0, criterion=StoppingCriterion(min_samples=3, max_samples=3))
SLOW = Limits(slow_call_s=0.02, warmup_s=0.0)


class Recorder:
    """A subject that counts its calls; ``durations_s`` are slept through, the last one for ever."""

    def __init__(self, *durations_s: float, errors: tuple[float, ...] = (0.0,)) -> None:
        self.calls = 0
        self.checks = 0
        self.events: list[str] = []
        self._durations_s = durations_s or (0.0,)
        self._errors = errors

    def run(self) -> torch.Tensor:
        self.events.append("run")
        time.sleep(self._durations_s[min(self.calls, len(self._durations_s) - 1)])
        self.calls += 1
        return torch.ones(2 * MIB, dtype=torch.uint8)

    def check(self, outputs: torch.Tensor) -> Correctness:
        self.events.append("check")
        assert outputs.numel() == 2 * MIB
        error = self._errors[min(self.checks, len(self._errors) - 1)]
        self.checks += 1
        return Correctness(error, 0.5, "everything", dense_error=0.25)

    def subject(self, **more) -> Subject:
        work = Work(flops=1000, bytes=10, dense_flops=4000)
        return Subject(self.run, self.check, work, "recorder 1", **more)


def measured(subject: Subject, limits: Limits = FAST, **more) -> dict:
    return complete_row(measure(subject, CASE, {}, CEILINGS, limits, **more))


def test_tokens_a_second_are_those_of_a_call_over_the_median():
    row = measured(Recorder(0.01).subject(tokens=7))
    assert row["tokens_per_s"] == pytest.approx(7 / row["latency_ms"] * 1e3)
    assert measured(Recorder().subject())["tokens_per_s"] is None


def test_the_usual_order():
    recorder = Recorder()
    stages: list[str] = []
    subject = recorder.subject(
        setup=lambda: recorder.events.append("setup"),
        facts=lambda: {"backend": "none", "sparsity": 0.5},
    )
    row = measured(subject, on_stage=stages.append)
    # first, checked, memory, three samples, checked
    expected = ["setup", "run", "run", "check", "run", "run", "run", "run", "run", "check"]
    assert recorder.events == expected
    head, tail = ["setup", "first call", "check"], ["sampling", "check", "facts"]
    assert stages == [*head, "memory", "warm-up", *tail]
    assert row["status"] == "ok"
    assert row["reason"] is None
    assert (row["sample_count"], row["warmup_count"], row["rest"]) == (3, 2, 0.0)
    assert row["samples_at_s"][0] == 0
    assert row["samples_at_s"] == sorted(row["samples_at_s"])
    assert (row["backend"], row["sparsity"], row["dense_error"]) == ("none", 0.5, 0.25)
    assert row["peak_memory_bytes"] == pytest.approx(2 * MIB, abs=MIB)


def test_warm_up_fills_its_time():
    recorder = Recorder(0.01)
    row = measured(recorder.subject(), Limits(warmup_s=0.1, criterion=FAST.criterion))
    assert 6 <= row["warmup_count"] <= 12


def test_a_slow_case_is_called_twice_altogether():
    recorder = Recorder(0.3)  # a tenth of that is room for a busy machine
    row = measured(recorder.subject(), SLOW)
    assert recorder.events == ["run", "run", "check"]
    assert row["status"] == "ok"
    assert (row["sample_count"], row["warmup_count"]) == (2, 0)
    assert row["samples_ms"][0] == row["compile_ms"]
    assert row["latency_ms"] == pytest.approx(sum(row["samples_ms"]) / 2)
    assert row["precision"] is None
    assert row["peak_memory_bytes"] == pytest.approx(2 * MIB, abs=MIB)


def test_a_slow_case_whose_first_call_compiles_is_called_three_times():
    recorder = Recorder(0.2, 0.05)
    row = measured(recorder.subject(), SLOW)
    assert recorder.events == ["run", "run", "check", "run", "check"]
    assert (row["sample_count"], row["warmup_count"]) == (2, 0)
    assert row["compile_ms"] >= 200
    assert max(row["samples_ms"]) < 150


def test_compilation_alone_does_not_make_a_case_slow():
    recorder = Recorder(0.3, 0.0)
    row = measured(recorder.subject(), Limits(0.2, warmup_s=0.0, criterion=FAST.criterion))
    assert row["sample_count"] == 3
    assert row["latency_ms"] < 20
    assert row["compile_ms"] > 200


def test_a_failed_check_ends_the_case_and_says_why():
    recorder = Recorder(errors=(0.75,))
    row = measured(recorder.subject(facts=lambda: pytest.fail("no facts of a wrong output")))
    assert recorder.calls == 2
    assert row["status"] == "incorrect"
    assert row["reason"] == "rms error 0.75 is beyond its tolerance 0.5 (everything)"
    assert row["rms_error"] == 0.75
    assert row["latency_ms"] is None
    assert row["flops"] == 1000


@pytest.mark.parametrize("error", [float("nan"), float("inf")])
def test_what_is_not_finite_never_passes(error):
    assert measured(Recorder(errors=(error,)).subject())["status"] == "incorrect"


def test_outputs_that_go_wrong_while_sampling_are_found():
    row = measured(Recorder(errors=(0.1, 0.9)).subject())
    assert row["status"] == "incorrect"
    assert row["reason"].startswith("after sampling: rms error 0.9")


def test_the_larger_error_stands():
    assert measured(Recorder(errors=(0.1, 0.2)).subject())["rms_error"] == 0.2
    assert measured(Recorder(errors=(0.2, 0.1)).subject())["rms_error"] == 0.2


def test_a_broken_invariant_is_the_reason():
    recorder = Recorder()
    subject = recorder.subject()
    subject.check = lambda outputs: Correctness(0.0, 0.5, "lists", problem="a block of the future")
    assert measured(subject)["reason"] == "a block of the future (lists)"


@pytest.mark.parametrize("limits", [FAST, SLOW])
@pytest.mark.parametrize("size", [4096, MIB, 16 * MIB])
def test_an_output_left_unwritten_is_incorrect(size, limits):
    """The first call writes, the others hand out whatever the memory held."""
    calls = []

    def run() -> torch.Tensor:
        calls.append(1)
        time.sleep(limits.slow_call_s if limits is SLOW else 0)
        return torch.full((size,), 3.0) if len(calls) == 1 else torch.empty(size)

    def check(output: torch.Tensor) -> Correctness:
        return Correctness(float((output - 3).square().mean().sqrt() / 3), 1e-3, "all")

    assert measured(Subject(run, check, Work(1, 1, 1), "lazy"), limits)["status"] == "incorrect"


def kept_answer(how: str, source: torch.Tensor, limits: Limits) -> Subject:
    """A subject that computes once and hands out what it kept: itself, or a view of it."""
    kept: list[torch.Tensor] = []

    def run() -> torch.Tensor:
        time.sleep(limits.slow_call_s if limits is SLOW else 0)
        if how == "honest":
            return source * 1
        if how == "input":
            return source[:]
        if not kept:
            kept.append(source * 1)
        return kept[0] if how == "memo" else kept[0].view(1, -1)[0]

    def check(output: torch.Tensor) -> Correctness:
        return Correctness(float((output - 3).square().mean().sqrt() / 3), 1e-3, "all")

    return Subject(run, check, Work(1, 1, 1), how, inputs=source)


@pytest.mark.parametrize("limits", [FAST, SLOW])
@pytest.mark.parametrize(
    ("how", "status"),
    [("honest", "ok"), ("input", "ok"), ("memo", "incorrect"), ("view", "incorrect")],
)
def test_a_kept_answer_is_no_answer(how, status, limits):
    row = measured(kept_answer(how, torch.full((4096,), 3.0), limits), limits)
    assert row["status"] == status


def test_an_answer_kept_while_sampling_is_found_as_well():
    """Honest until the check has passed, then the sample before is handed out again."""
    calls: list[torch.Tensor] = []
    subject = kept_answer("honest", torch.full((4096,), 3.0), FAST)
    honest = subject.run

    def run() -> torch.Tensor:
        calls.append(honest() if len(calls) < 4 else calls[-1])
        return calls[-1]

    subject.run = run
    row = measured(subject)
    assert row["status"] == "incorrect"
    assert row["reason"].startswith("after sampling: ")


def test_memory_that_setup_holds_counts():
    held = []
    recorder = Recorder()
    subject = recorder.subject(setup=lambda: held.append(torch.ones(32 * MIB, dtype=torch.uint8)))
    assert measured(subject)["peak_memory_bytes"] == pytest.approx(34 * MIB, abs=2 * MIB)


def test_memory_that_the_check_holds_does_not_count():
    held = []
    recorder = Recorder()
    subject = recorder.subject()

    def check(outputs: torch.Tensor) -> Correctness:
        held.append(torch.ones(32 * MIB, dtype=torch.uint8))
        return recorder.check(outputs)

    subject.check = check
    assert measured(subject)["peak_memory_bytes"] == pytest.approx(2 * MIB, abs=MIB)


def test_rates():
    columns = rate_columns(Work(flops=10**12, bytes=10**9, dense_flops=4 * 10**12), 2e4, CEILINGS)
    assert columns["effective_tflops"] == pytest.approx(0.05)
    assert columns["dense_equivalent_tflops"] == pytest.approx(0.2)
    assert columns["roofline_share"] == pytest.approx(0.5)  # 10 s of arithmetic in 20 s
    bound_by_copy = rate_columns(Work(1, 10**11, 1), 2e4, CEILINGS)
    assert bound_by_copy["roofline_share"] == pytest.approx(0.5)  # 10 s of copying
    assert rate_columns(Work(1, 1, 1), 1.0, None)["roofline_share"] is None


def test_work_is_known_before_anything_runs():
    columns = work_columns(Recorder().subject())
    assert columns["arithmetic_intensity"] == 100.0
    assert columns["provider_version"] == "recorder 1"


def test_quick_limits_take_fewer_samples():
    quick, usual = Limits.quick(), Limits()
    assert quick.criterion.max_seconds < usual.criterion.max_seconds
    assert quick.criterion.min_samples < usual.criterion.min_samples
    assert usual.slow_call_s == 5.0
    assert (quick.rest, usual.rest) == (2.0, 0.0)


def test_a_short_call_has_many_samples_with_quick_limits_a_long_one_few():
    short = measured(Recorder(0.001).subject(), Limits.quick())
    assert short["sample_count"] >= 20 or short["samples_at_s"][-1] >= 0.09
    long = measured(Recorder(0.06).subject(), Limits.quick())
    assert 3 <= long["sample_count"] <= 20


@pytest.mark.parametrize("timer", ["wall", "event"])
def test_what_runs_once_is_called_once(timer):
    """A training cannot be repeated; whatever timer the case names, the host's clock is right."""
    recorder = Recorder(0.05)
    stages: list[str] = []
    subject = recorder.subject(
        once=True,
        setup=lambda: recorder.events.append("setup"),
        follow=lambda tell: tell("it follows"),
        facts=lambda: {"eval_loss": 1.5},
    )
    case, told = replace(CASE, timer=timer), []
    row = measure(subject, case, {}, CEILINGS, FAST, stages.append, on_progress=told.append)
    row = complete_row(row)
    assert recorder.events == ["setup", "run", "check"]
    assert stages == ["setup", "run", "check", "facts"]
    assert told == ["it follows"]
    assert (row["status"], row["checked"], row["eval_loss"]) == ("ok", "everything", 1.5)
    assert row["samples_ms"] == [row["latency_ms"]]
    assert 50 <= row["latency_ms"] < 5000
    assert (row["sample_count"], row["warmup_count"], row["compile_ms"]) == (1, 0, None)
    assert row["rms_error"] is row["rms_tolerance"] is row["dense_error"] is None
    assert row["peak_memory_bytes"] == pytest.approx(2 * MIB, abs=MIB)
    assert row["effective_tflops"] == pytest.approx(1000 / (row["latency_ms"] / 1e3) / 1e12)


def test_a_single_call_that_fails_its_check_has_no_facts():
    recorder = Recorder()
    subject = recorder.subject(once=True, facts=lambda: pytest.fail("no facts"))
    subject.check = lambda outputs: Correctness(0.0, 0.0, "all", problem="held-out loss nan")
    row = measured(subject)
    assert (row["status"], row["reason"]) == ("incorrect", "held-out loss nan (all)")
    assert row["latency_ms"] is not None


def test_machine_facts_pass_through():
    columns = measure(Recorder().subject(), CASE, {"cpu_name": "x"}, None, FAST)
    assert columns["cpu_name"] == "x"
    assert columns["ceiling_copy_gb_s"] is None


@pytest.mark.skipif(not os.path.exists("/proc/stat"), reason="needs /proc/stat")
def test_a_row_taken_on_a_loaded_cpu_is_flagged():
    program = "print(flush=True)\nwhile True: pass"
    count = (os.cpu_count() or 1) // 4 + 1  # a quarter of the CPUs, where a tenth counts
    spinners = [
        subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE)
        for _ in range(count)
    ]
    try:
        for spinner in spinners:
            assert spinner.stdout is not None
            spinner.stdout.readline()
        row = measured(Recorder(0.1).subject())
    finally:
        for spinner in spinners:
            spinner.kill()
            spinner.communicate()
    assert row["status"] == "ok"
    assert "% of the CPUs busy" in disturbance({**row, "device": "cpu"})
