"""Providers that misbehave on purpose, prepared as a suite would: the case's provider names one."""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import torch

from dynbench.harness.case import Case
from dynbench.harness.graph import CaptureFailed
from dynbench.harness.subject import Correctness, Subject, Unavailable, Unsupported, Work

GIB = 2**30


def prepare(case: Case, provider_files: tuple[str, ...]) -> Subject:
    """The subject of ``case``; the first provider file, if any, gets one line for each case."""
    for log in provider_files[:1]:
        with Path(log).open("a", encoding="utf-8") as lines:
            lines.write(f"{case.provider}/{case.workload['seq_len']} {os.getpid()}\n")
    size = int(case.workload["seq_len"])
    source = torch.arange(size, dtype=torch.float32, device=case.device)

    told: list[Callable[[str], None]] = []

    def run() -> torch.Tensor:
        if told:
            told[0]("half of it")
        action = ACTIONS.get(case.provider)
        if action is not None:
            action()
        return source * 2

    def check(output: torch.Tensor) -> Correctness:
        expected = source * (3 if case.provider == "wrong" else 2)
        error = (output - expected).square().mean().sqrt() / expected.square().mean().sqrt()
        return Correctness(float(error), 1e-4, f"all {size} values")

    def facts() -> dict[str, object]:
        backend = os.environ.get("PLANTED_BACKEND", "planted")
        return {"backend": backend} if case.provider != "misspelt" else {"bakcend": "planted"}

    def keep(folder: Path, run_id: str) -> None:
        if case.provider == "keeps_nothing":
            raise OSError("planted: the disk is full")
        (folder / f"{case.provider}.txt").write_text(f"{run_id} {size}", encoding="utf-8")

    work = Work(2 * size, 8 * size, 4 * size)
    kept = keep if case.provider.startswith("keeps") or case.provider == "wrong" else None
    subject = Subject(
        run, check, work, "planted 1", facts=facts, record_stages=_recording, keep=kept
    )
    if case.provider == "keeps_and_hangs":
        subject.once, subject.follow = True, told.append
    return subject


@contextlib.contextmanager
def _recording() -> Iterator[_Times]:
    yield _Times()


class _Times:
    def milliseconds(self) -> dict[str, float]:
        return {"doubling": 0.25}


def _segfault() -> None:
    ctypes.string_at(0)


def _sleep_for_ever() -> None:
    while True:
        time.sleep(60)


def _leak_stdout() -> None:
    print("a provider's print")
    os.write(1, b'{"kind": "row", "columns": {}}\n' * 100)
    os.write(2, b"noise \xff\n")


def _differentiate() -> None:
    leaf = torch.ones(4, requires_grad=True)
    torch.autograd.grad(leaf * leaf, leaf, torch.ones(4))


def _exceed_address_space() -> None:
    held = [torch.empty(GIB, dtype=torch.uint8) for _ in range(4096)]  # never touched
    raise AssertionError(f"{len(held)} GiB were handed out")


def _raise() -> None:
    raise ValueError("planted\nin two lines")


def _raise_unavailable() -> None:
    raise Unavailable("package planted is not installed; pip install planted")


def _raise_unsupported() -> None:
    raise Unsupported("planted serves no such shape; the nearest is 8k")


def _raise_capture_failed() -> None:
    raise CaptureFailed("planted does not fit into a graph")


def _wait_for_the_device() -> None:
    torch.ones(1, device="cuda").item()


def _change_globals() -> None:
    torch.set_num_threads(7)
    torch.set_default_dtype(torch.float64)
    torch.set_grad_enabled(False)


def _expect_defaults() -> None:
    if torch.get_default_dtype() != torch.float32 or not torch.is_grad_enabled():
        raise AssertionError("a case sees what the case before it set")
    if torch.get_num_threads() == 7:
        raise AssertionError("a case sees the threads that the case before it set")


def _write_to_pipes() -> None:
    for descriptor in range(3, 64):
        try:
            os.write(descriptor, b"garbage\n")
        except OSError:
            continue


def _close_pipes() -> None:
    os.closerange(3, 64)
    time.sleep(60)


def _fault_on_device() -> None:
    index = torch.tensor([1 << 30], device="cuda")
    torch.zeros(4, device="cuda")[index].sum().item()  # a device-side assertion: sticky


def _run_out_of_device_memory() -> None:
    torch.empty(1 << 42, dtype=torch.uint8, device="cuda")


def _leave_child_behind() -> None:
    if os.fork() == 0:  # holds every inherited pipe open
        time.sleep(60)
        os._exit(0)
    os._exit(5)


ACTIONS = {
    "exits": lambda: os._exit(3),
    "sys_exits": lambda: sys.exit(4),
    "segfaults": _segfault,
    "hangs": _sleep_for_ever,
    "keeps_and_hangs": _sleep_for_ever,
    "prints": _leak_stdout,
    "oom_slowly": _exceed_address_space,
    "raises": _raise,
    "unavailable": _raise_unavailable,
    "unsupported": _raise_unsupported,
    "fails_in_capture": _raise_capture_failed,
    "waits_for_device": _wait_for_the_device,
    "killed": lambda: os.kill(os.getpid(), signal.SIGKILL),
    "changes_globals": _change_globals,
    "expects_defaults": _expect_defaults,
    "writes_to_pipes": _write_to_pipes,
    "leaves_child": _leave_child_behind,
    "closes_pipes": _close_pipes,
    "faults_on_device": _fault_on_device,
    "oom_on_device": _run_out_of_device_memory,
    "differentiates": _differentiate,
    "slow": lambda: time.sleep(0.2),
}
