"""Provenance: complete, of the right types, and about the right checkout."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import pytest

from dynbench.harness import machine
from dynbench.harness.machine import GIB, available_memory_bytes, host_facts, machine_facts
from dynbench.harness.schema import SECTIONS, complete_row

PER_CASE = {"started_at", "command"}


def test_facts_fill_the_provenance_columns():
    facts = machine_facts("cpu")
    row = complete_row(facts)
    names = {c.name for c in SECTIONS["provenance"]} - PER_CASE
    assert set(facts) <= names | {"machine_id"}
    for name in ("cpu_name", "cpu_threads", "host_memory_bytes", "torch_version", "host_hash"):
        assert row[name], name
    assert row["gpu_name"] is None
    assert json.loads(row["packages"])["numpy"]


def test_machine_id_is_stable_and_about_hardware(monkeypatch):
    first = machine_facts("cpu")["machine_id"]
    assert host_facts()["machine_id"] == first
    monkeypatch.setattr(machine.socket, "gethostname", lambda: "renamed")
    assert host_facts()["machine_id"] == first
    monkeypatch.setattr(machine, "cpu_name", lambda: "another CPU")
    assert host_facts()["machine_id"] != first


def test_host_name_is_not_stored():
    import socket

    assert socket.gethostname() not in json.dumps(host_facts())


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    def git(*arguments: str) -> None:
        identity = ["-c", "user.name=a", "-c", "user.email=a@b"]
        subprocess.run(["git", "-C", str(tmp_path), *identity, *arguments], check=True)

    git("init", "-q")
    (tmp_path / "tracked.py").write_text("1\n")
    (tmp_path / "installed.py").write_text("1\n")
    git("add", "tracked.py")
    git("commit", "-q", "-m", "first")
    return tmp_path


def test_commit_of_the_checkout(checkout):
    facts = machine._git_facts(checkout / "tracked.py")
    assert len(facts["git_commit"]) == 40
    assert facts["git_dirty"] is False
    (checkout / "tracked.py").write_text("2\n")
    assert machine._git_facts(checkout / "tracked.py")["git_dirty"] is True


def test_a_copy_installed_inside_a_checkout_has_no_commit(checkout):
    facts = machine._git_facts(checkout / "installed.py")
    assert facts == {"git_commit": None, "git_dirty": None}


def test_without_git(checkout, monkeypatch):
    monkeypatch.setenv("PATH", "")
    assert machine._git_facts(checkout / "tracked.py")["git_commit"] is None


def test_available_memory_of_the_host():
    assert 0 < available_memory_bytes() <= os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def test_available_memory_in_a_container(tmp_path, monkeypatch):
    monkeypatch.setattr(machine, "_CGROUP_V2", tmp_path)
    monkeypatch.setattr(machine, "_CGROUP_V1_MEMORY", tmp_path / "none")
    (tmp_path / "memory.max").write_text("max\n")
    (tmp_path / "memory.current").write_text(f"{GIB // 2}\n")
    assert available_memory_bytes() > GIB // 4
    (tmp_path / "memory.max").write_text(f"{GIB}\n")
    assert available_memory_bytes() == GIB // 2
    (tmp_path / "memory.stat").write_text(f"anon 1\ninactive_file {GIB // 4}\nslab 2\n")
    assert available_memory_bytes() == GIB // 2 + GIB // 4


@pytest.mark.parametrize(("quota", "cpus"), [("100000 100000", 1), ("50000 100000", 1)])
def test_cpus_in_a_container(tmp_path, monkeypatch, quota, cpus):
    monkeypatch.setattr(machine, "_CGROUP_V2", tmp_path)
    monkeypatch.setattr(machine, "_CGROUP_V1_CPU", tmp_path / "none")
    unlimited = machine.usable_cpus()
    assert unlimited >= 1
    (tmp_path / "cpu.max").write_text(quota)
    assert machine.usable_cpus() == min(unlimited, cpus)


def test_missing_files_are_no_error(tmp_path, monkeypatch):
    monkeypatch.setattr(machine, "_read_text", lambda path: "")
    assert machine.cpu_mhz() is None
    assert machine.cpu_name()
    assert available_memory_bytes() == GIB


def test_a_copy_without_its_checkout_can_be_told_its_commit(tmp_path, monkeypatch):
    monkeypatch.setenv("DYNBENCH_GIT_COMMIT", "a" * 40)
    facts = machine._git_facts(tmp_path / "copied.py")
    assert facts == {"git_commit": "a" * 40, "git_dirty": None}


def test_gpus_of_one_model_in_a_host_are_one_machine():
    """Each alone in its host is a machine of its own, as the row of a single GPU always was."""
    facts = {"cpu_name": "c", "host_memory_bytes": GIB, "gpu_name": "g", "gpu_memory_bytes": GIB}
    first, second = ({**facts, "gpu_uuid_hash": card} for card in ("aa", "bb"))
    both = ["bb", "aa"]
    assert machine._machine_id(first, both) == machine._machine_id(second, both)
    assert machine._machine_id(first, both) == machine._machine_id(first)
    assert machine._machine_id(first) == machine._machine_id(first, ["aa"])
    assert machine._machine_id(first) != machine._machine_id(second)
