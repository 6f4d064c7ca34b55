"""What went wrong becomes a status and one line."""

from __future__ import annotations

import signal

import pytest
import torch

from dynbench.harness.failure import (
    death_columns,
    failure_columns,
    is_device_fault,
    is_out_of_memory,
    is_untaken,
    timeout_columns,
    unstarted_columns,
    untaken_columns,
)
from dynbench.harness.schema import complete_row
from dynbench.harness.subject import Unavailable, Unsupported

ALLOCATOR = (
    "[enforce fail at alloc_cpu.cpp:127] err == 0. DefaultCPUAllocator: can't allocate memory: "
    "you tried to allocate 8589934592 bytes. Error code 12 (Cannot allocate memory)"
)


@pytest.mark.parametrize(
    ("error", "status", "reason"),
    [
        (Unavailable("no flash-attn; pip install flash-attn"), "unavailable", "no flash-attn; "),
        (Unsupported("head_dim 512; at most 256"), "unsupported", "head_dim 512; at most 256"),
        (torch.OutOfMemoryError("CUDA out of memory. Tried"), "out_of_memory", "CUDA out of"),
        (MemoryError(), "out_of_memory", "MemoryError"),
        (RuntimeError(ALLOCATOR), "out_of_memory", "tried to allocate 8 GiB of host memory"),
        (RuntimeError("std::bad_alloc"), "out_of_memory", "std::bad_alloc"),
        (ValueError("two\n  lines"), "error", "ValueError: two lines"),
        (ValueError("memory of an elephant"), "error", "ValueError: memory of an"),
        (SystemExit(3), "error", "the provider called sys.exit: 3"),
        (KeyboardInterrupt(), "error", "KeyboardInterrupt"),
        (RuntimeError("x" * 5000), "error", "RuntimeError: xxx"),
    ],
)
def test_exceptions(error, status, reason):
    row = complete_row(failure_columns(error))
    assert row["status"] == status
    assert row["reason"].startswith(reason)
    assert len(row["reason"]) <= 300


def test_details_hold_the_traceback():
    try:
        raise ValueError("planted")
    except ValueError as error:
        columns = failure_columns(error)
    assert "test_failure.py" in columns["details"]


@pytest.mark.parametrize(
    ("code", "words", "status", "reason"),
    [
        (-signal.SIGSEGV, "", "error", "worker died: SIGSEGV"),
        (3, "", "error", "worker died: exit code 3"),
        (-200, "", "error", "worker died: signal 200"),
        (-signal.SIGKILL, "", "out_of_memory", "worker killed by SIGKILL"),
        (-signal.SIGABRT, "std::bad_alloc", "out_of_memory", "worker died: SIGABRT"),
        (-signal.SIGABRT, "assertion", "error", "worker died: SIGABRT"),
    ],
)
def test_deaths(code, words, status, reason):
    row = complete_row(death_columns(code, "sampling", words))
    assert row["status"] == status
    assert row["reason"].startswith(reason)
    assert row["reason"].endswith("(in stage: sampling)")
    assert row["details"] == (words or None)


def test_a_worker_stopped_by_the_parent_did_not_run_out_of_memory():
    row = death_columns(-signal.SIGKILL, "", "", "unreadable reply 'x'")
    assert (row["status"], row["reason"]) == ("error", "worker stopped: unreadable reply 'x'")


FATAL = """Fatal Python error: init_import_site: Failed to import the site module
Python runtime state: initialized
Traceback (most recent call last):
  File "site.py", line 1, in <module>
OSError: [Errno 23] Too many open files in system

Current thread 0x00007f0d8e3c1740 (most recent call first):
  <no Python frame>
"""
CRASH = """Fatal Python error: Segmentation fault

Thread 0x00007f0d8e3c1740 (most recent call first):
  File "worker.py", line 1 in main

Extension modules: numpy._core._multiarray_umath (total: 1)"""


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (FATAL.strip(), "OSError: [Errno 23] Too many open files in system"),
        (CRASH, "Fatal Python error: Segmentation fault"),
        ("Traceback (most recent call last):\n  File\nImportError: x", "ImportError: x"),
        ("<no Python frame>", "<no Python frame>"),
        ("", "it did not answer"),
    ],
)
def test_a_worker_that_did_not_start_says_why(words, message):
    row = complete_row(unstarted_columns(words))
    assert (row["status"], row["details"]) == ("error", words or None)
    assert row["reason"] == f"no worker can be started: {message}"
    assert len(unstarted_columns("x" * 5000)["reason"]) <= 300


def test_rows_of_cases_that_no_worker_took_are_known():
    death = death_columns(-signal.SIGKILL, "", "")
    assert is_untaken(unstarted_columns(""))
    assert is_untaken(untaken_columns(death))
    assert untaken_columns(death)["reason"].startswith("no worker takes the case: worker killed")
    assert not is_untaken(death)
    assert not is_untaken(failure_columns(RuntimeError("no worker can be started: x")))
    assert not is_untaken(failure_columns(Unavailable("no worker can be started: x")))
    assert not is_untaken({"status": "ok", "reason": None})


def test_timeout_names_the_limit_and_the_stage():
    row = complete_row(timeout_columns(12.5, "check", ""))
    assert row["reason"] == "stopped at its time limit of 12.5 s (in stage: check)"


def test_a_process_with_a_device_fault_is_known():
    assert is_device_fault(RuntimeError("CUDA error: an illegal memory access was encountered"))
    assert is_device_fault(RuntimeError("Triton Error [CUDA]: misaligned address"))
    assert not is_device_fault(RuntimeError("shapes do not match"))
    assert is_out_of_memory(RuntimeError("CUDA error: out of memory"))
    assert not is_out_of_memory(ValueError("out of memory"))
