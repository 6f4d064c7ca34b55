"""The GPUs of the host: which there are, how a worker gets one of them, and its lock.

A GPU's number is torch's: CUDA_VISIBLE_DEVICES and CUDA_DEVICE_ORDER count. Its lock goes by its
UUID, so that it holds between processes that number the GPUs differently.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from dynbench.harness.lanes import Lane
from dynbench.harness.machine import uuid_hash


class GpuBusy(Exception):
    """Another process measures on the GPU. One line: which GPU, and what to do instead."""


@dataclass(frozen=True)
class Gpu:
    """One GPU: torch's number, model, and hash of its UUID (None where torch does not tell)."""

    index: int
    name: str
    uuid_hash: str | None


def visible_gpus() -> list[Gpu]:
    """The GPUs that torch finds here, by their numbers. Imports torch, allocates on no GPU."""
    import torch

    if not torch.cuda.is_available():
        return []
    properties = [torch.cuda.get_device_properties(i) for i in range(torch.cuda.device_count())]
    uuids = [getattr(found, "uuid", None) for found in properties]
    return [
        Gpu(index, found.name, uuid_hash(str(uuid)) if uuid is not None else None)
        for index, (found, uuid) in enumerate(zip(properties, uuids, strict=True))
    ]


def gpu_lane(gpu: Gpu, environment: Mapping[str, str] = os.environ) -> Lane:
    """The lane whose worker sees this GPU alone; ``environment`` is that of this process."""
    return Lane(
        name=f"GPU {gpu.index}",
        environment={"CUDA_VISIBLE_DEVICES": _visible_entry(gpu.index, environment)},
        columns={"gpu_index": gpu.index},
        card=gpu.uuid_hash,
        words=("--gpus", str(gpu.index)),
    )


def _visible_entry(index: int, environment: Mapping[str, str]) -> str:
    """What CUDA_VISIBLE_DEVICES must be for the GPU with this number to be the only one."""
    visible = environment.get("CUDA_VISIBLE_DEVICES")
    return str(index) if visible is None else visible.split(",")[index].strip()


@contextlib.contextmanager
def locked(gpus: Sequence[Gpu], folder: Path | None = None) -> Iterator[None]:
    """Hold the locks of the GPUs. Raises GpuBusy where another process holds one of them.

    Lock files lie in ``folder`` (that of temporary files if None). A GPU without a UUID, and a
    folder that takes no locks, go without: one sweep at a time is then the user's promise.
    """
    held: list[int] = []
    try:
        for gpu in gpus:
            if gpu.uuid_hash is not None:
                held += _lock(gpu, (folder or Path(tempfile.gettempdir())) / _file_name(gpu))
        yield
    finally:
        for descriptor in held:
            os.close(descriptor)


def _file_name(gpu: Gpu) -> str:
    return f"dynbench-gpu-{gpu.uuid_hash}.lock"


def _lock(gpu: Gpu, path: Path) -> list[int]:
    try:
        descriptor = _open(path)
    except OSError:
        return []
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        raise GpuBusy(
            f"GPU {gpu.index} ({gpu.name}): another dynbench measures on it; wait for it, or name "
            "another one with --gpus"
        ) from None
    except OSError:
        os.close(descriptor)
        return []
    return [descriptor]


def _open(path: Path) -> int:
    """A descriptor of the file, made where it is missing: it may be another user's."""
    flags = os.O_RDONLY | os.O_NOFOLLOW
    with contextlib.suppress(FileExistsError):
        os.close(os.open(path, flags | os.O_CREAT | os.O_EXCL, 0o644))
    return os.open(path, flags)
