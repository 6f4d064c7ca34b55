"""How busy others keep the CPUs: told by the kernel, and by a process that is made busy."""

from __future__ import annotations

import multiprocessing
import time

import pytest

from dynbench.harness import cpuload
from dynbench.harness.cpuload import CpuLoad


def _spin(stop) -> None:
    while not stop.is_set():
        sum(range(10_000))


@pytest.mark.skipif(not cpuload._STAT.exists(), reason="needs /proc/stat")
def test_another_process_counts_and_this_one_does_not():
    context = multiprocessing.get_context("fork")
    stop = context.Event()
    process = context.Process(target=_spin, args=(stop,), daemon=True)
    process.start()
    try:
        load = CpuLoad()
        time.sleep(0.5)
        share = load.others_share()
    finally:
        stop.set()
        process.join()
    cpus = cpuload.os.cpu_count()
    assert share is not None
    assert 0.3 / cpus < share <= 1


def test_from_the_counters(monkeypatch, tmp_path):
    stat = tmp_path / "stat"
    monkeypatch.setattr(cpuload, "_STAT", stat)
    monkeypatch.setattr(cpuload.os, "sysconf", lambda name: 100)
    own_s = iter([5.0, 5.5])
    monkeypatch.setattr(cpuload, "_own_seconds", lambda: next(own_s))
    stat.write_text("cpu  1000 0 0 5000 0 0 0 0 0 0\ncpu0 1 2 3\n")
    load = CpuLoad()
    # of 4 s in all: 2 s busy (user, nice, system, irq, softirq, steal), half a second our own
    stat.write_text("cpu  1100 10 30 5150 50 20 10 30 7 7\ncpu0 1 2 3\n")
    assert load.others_share() == pytest.approx((2.0 - 0.5) / 4.0)


@pytest.mark.parametrize("text", [None, "", "intr 1 2 3\n", "cpu 1 2 3\n"])
def test_a_system_that_does_not_tell(text, monkeypatch, tmp_path):
    monkeypatch.setattr(cpuload, "_STAT", tmp_path / "stat")
    if text is not None:
        (tmp_path / "stat").write_text(text)
    assert CpuLoad().others_share() is None


def test_too_short_a_time_tells_nothing(monkeypatch, tmp_path):
    monkeypatch.setattr(cpuload, "_STAT", tmp_path / "stat")
    (tmp_path / "stat").write_text("cpu  1000 0 0 5000 0 0 0 0 0 0\n")
    assert CpuLoad().others_share() is None
