"""Facts about the machine: the provenance columns of a row, and how much memory there is."""

from __future__ import annotations

import hashlib
import json
import os
import platform
import re
import socket
import subprocess
from collections.abc import Collection
from importlib import metadata
from pathlib import Path
from typing import Any

GIB = 2**30

_PACKAGES = (
    "numpy",
    "fla-core",
    "flash-attn",
    "flash-attn-3",
    "flash-attn-4",
    "native-sparse-attention-pytorch",
    "nvidia-cudnn-cu12",
    "nvidia-cudnn-cu13",
    "nvidia-ml-py",
)
_CGROUP_V2 = Path("/sys/fs/cgroup")
_CGROUP_V1_MEMORY = Path("/sys/fs/cgroup/memory")
_CGROUP_V1_CPU = Path("/sys/fs/cgroup/cpu")


def machine_facts(device: str) -> dict[str, Any]:
    """All provenance columns that do not change from case to case, and ``machine_id``.

    ``device`` is ``cpu`` or ``cuda``; the GPU's columns are None on a CPU. Imports torch (and
    starts CUDA for ``cuda``), so it is called in the worker; ``host_facts`` does without.
    """
    import torch

    facts = host_facts()
    facts["torch_version"] = str(torch.__version__)
    facts["cuda_version"] = torch.version.cuda
    facts["cpu_threads"] = torch.get_num_threads()
    twins: list[str] = []
    if device == "cuda" and torch.cuda.is_available():
        facts.update(_gpu_facts())
        twins = _twins()
    facts["machine_id"] = _machine_id(facts, twins)
    return facts


def host_facts() -> dict[str, Any]:
    """What can be known without importing torch: host, versions, git. Includes ``machine_id``."""
    facts: dict[str, Any] = {
        "cpu_name": cpu_name(),
        "host_memory_bytes": _meminfo_bytes("MemTotal"),
        "python_version": platform.python_version(),
        "torch_version": _version("torch"),
        "triton_version": _version("triton"),
        "packages": json.dumps({name: v for name in _PACKAGES if (v := _version(name))}),
        "host_hash": _hash(socket.gethostname()),
        **_git_facts(Path(__file__)),
    }
    facts["machine_id"] = _machine_id(facts)
    return facts


def cpu_name() -> str:
    """The CPU's model as the kernel names it."""
    for line in _lines(Path("/proc/cpuinfo")):
        key, _, value = line.partition(":")
        if key.strip() in ("model name", "Model", "cpu model") and value.strip():
            return value.strip()
    return platform.processor() or platform.machine()


def cpu_mhz() -> float | None:
    """Median clock over the host's cores in MHz, where the kernel tells."""
    clocks = sorted(
        float(line.partition(":")[2])
        for line in _lines(Path("/proc/cpuinfo"))
        if line.startswith("cpu MHz")
    )
    return clocks[len(clocks) // 2] if clocks else None


def usable_cpus() -> int:
    """CPUs that this process may use: its affinity, or a container's quota if that is less."""
    cpus = float(len(os.sched_getaffinity(0))) if hasattr(os, "sched_getaffinity") else 0.0
    cpus = cpus or float(os.cpu_count() or 1)
    limit = _read_text(_CGROUP_V2 / "cpu.max").split()
    if len(limit) == 2 and limit[0] != "max":
        cpus = min(cpus, float(limit[0]) / float(limit[1]))
    quota = _read_int(_CGROUP_V1_CPU / "cpu.cfs_quota_us")
    period = _read_int(_CGROUP_V1_CPU / "cpu.cfs_period_us")
    if quota and period and quota > 0:
        cpus = min(cpus, quota / period)
    return max(1, round(cpus))


def available_memory_bytes() -> int:
    """Host memory that can be allocated without swapping, a container's limit taken in."""
    available = _meminfo_bytes("MemAvailable") or GIB
    groups = (
        (_CGROUP_V2, "memory.max", "memory.current", "inactive_file"),
        (
            _CGROUP_V1_MEMORY,
            "memory.limit_in_bytes",
            "memory.usage_in_bytes",
            "total_inactive_file",
        ),
    )
    for folder, limit_name, usage_name, cache_name in groups:
        limit, usage = _read_int(folder / limit_name), _read_int(folder / usage_name)
        if limit is None or usage is None:
            continue
        cache = re.search(
            rf"^{cache_name} (\d+)$", _read_text(folder / "memory.stat"), re.MULTILINE
        )
        used = usage - (int(cache[1]) if cache else 0)
        available = min(available, max(limit - used, 0))
    return available


def _gpu_facts() -> dict[str, Any]:
    import torch

    from dynbench.harness.nvml import open_device

    index = torch.cuda.current_device()
    properties = torch.cuda.get_device_properties(index)
    nvml = open_device(index)
    uuid = (nvml.uuid() if nvml else None) or getattr(properties, "uuid", None)
    return {
        "gpu_name": properties.name,
        "gpu_index": index,
        "gpu_uuid_hash": uuid_hash(str(uuid)) if uuid else None,
        "gpu_memory_bytes": properties.total_memory,
        "gpu_power_limit_w": nvml.power_limit_w() if nvml else None,
        "driver_version": nvml.driver_version() if nvml else None,
    }


def _twins() -> list[str]:
    """Hashes of the UUIDs of the GPUs in the host that are of this one's model."""
    import torch

    from dynbench.harness.nvml import host_gpus, open_device

    nvml = open_device(torch.cuda.current_device())
    name = nvml.name() if nvml else None
    uuids = [gpu.uuid() for gpu in host_gpus() if name and gpu.name() == name]
    return [uuid_hash(uuid) for uuid in uuids if uuid]


def _machine_id(facts: dict[str, Any], twins: Collection[str] = ()) -> str:
    """Hash of the hardware. Memory counts in whole GiB: kernels differ in what they keep.

    ``twins`` are hashes of the UUIDs of all GPUs of this model in the host. They make one machine,
    named after the first of them: a sweep over several of them must not fall apart.
    """
    memory_gib = round((facts["host_memory_bytes"] or 0) / GIB)
    own = facts.get("gpu_uuid_hash")
    card = min([*twins, *([own] if own else [])], default=None)
    gpu = [facts.get("gpu_name"), card, facts.get("gpu_memory_bytes")]
    return _hash(json.dumps([facts["cpu_name"], os.cpu_count(), memory_gib, *gpu]))


def _git_facts(file: Path) -> dict[str, Any]:
    """Commit and dirtiness of the checkout that tracks ``file``.

    A copy without its checkout (an image, a remote machine) may be told its commit by the
    environment variable DYNBENCH_GIT_COMMIT; whether it was changed since is then unknown.
    """
    unknown = {"git_commit": os.environ.get("DYNBENCH_GIT_COMMIT") or None, "git_dirty": None}
    # an installed copy may lie inside some checkout without belonging to it
    if _git(file, "ls-files", "--error-unmatch", file.name) is None:
        return unknown
    commit = _git(file, "rev-parse", "HEAD")
    changes = _git(file, "status", "--porcelain", "--untracked-files=no")
    return unknown if commit is None else {"git_commit": commit, "git_dirty": bool(changes)}


def _git(file: Path, *arguments: str) -> str | None:
    command = ["git", "-C", str(file.parent), *arguments]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _meminfo_bytes(key: str) -> int | None:
    for line in _lines(Path("/proc/meminfo")):
        if line.startswith(f"{key}:"):
            return int(line.split()[1]) * 1024
    return None


def _lines(path: Path) -> list[str]:
    return _read_text(path).splitlines()


def _read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


def _read_int(path: Path) -> int | None:
    text = _read_text(path).strip()
    return int(text) if re.fullmatch(r"-?\d+", text) else None


def uuid_hash(uuid: str) -> str:
    """Hash of a GPU's UUID, which NVML writes with a prefix and torch without."""
    return _hash(uuid.removeprefix("GPU-"))


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]
