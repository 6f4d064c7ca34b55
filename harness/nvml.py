"""The few NVML readings that the harness takes, each None where the driver does not offer it.

NVML is reached through ``pynvml`` (package nvidia-ml-py). Without it, without a driver, or inside
a container that hides it, ``open_device`` gives None and everything else goes on.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

T = TypeVar("T")

THROTTLE_BITS = {
    0x04: "sw_power_cap",
    0x08: "hw_slowdown",
    0x20: "sw_thermal_slowdown",
    0x40: "hw_thermal_slowdown",
    0x80: "hw_power_brake_slowdown",
}
"""Clock-event reasons that mean the device runs slower than it was asked to."""

OTHER_BITS = {
    0x02: "applications_clocks_setting",
    0x10: "sync_boost",
    0x100: "display_clocks_setting",
}
"""Clock-event reasons that hold the clock where the user or another display put it."""


@dataclass(frozen=True)
class NvmlDevice:
    """One GPU as NVML sees it. Every method gives None where the reading is not offered."""

    handle: Any

    def uuid(self) -> str | None:
        """The GPU's UUID, ``GPU-...``."""
        return _read(lambda nvml: _text(nvml.nvmlDeviceGetUUID(self.handle)))

    def name(self) -> str | None:
        """The GPU's model."""
        return _read(lambda nvml: _text(nvml.nvmlDeviceGetName(self.handle)))

    def driver_version(self) -> str | None:
        """Version of the NVIDIA driver."""
        return _read(lambda nvml: _text(nvml.nvmlSystemGetDriverVersion()))

    def power_limit_w(self) -> float | None:
        """Enforced power limit in watts."""
        return _read(lambda nvml: nvml.nvmlDeviceGetEnforcedPowerLimit(self.handle) / 1e3)

    def memory_used_bytes(self) -> int | None:
        """Memory in use on the whole device, by any process."""
        return _read(lambda nvml: int(nvml.nvmlDeviceGetMemoryInfo(self.handle).used))

    def sm_clock_mhz(self) -> float | None:
        """Clock of the streaming multiprocessors."""
        return _read(
            lambda nvml: float(nvml.nvmlDeviceGetClockInfo(self.handle, nvml.NVML_CLOCK_SM))
        )

    def memory_clock_mhz(self) -> float | None:
        """Clock of the device memory."""
        return _read(
            lambda nvml: float(nvml.nvmlDeviceGetClockInfo(self.handle, nvml.NVML_CLOCK_MEM))
        )

    def power_w(self) -> float | None:
        """Board power in watts, averaged by the driver."""
        return _read(lambda nvml: nvml.nvmlDeviceGetPowerUsage(self.handle) / 1e3)

    def temperature_c(self) -> float | None:
        """Temperature of the GPU in degrees Celsius."""

        def read(nvml: Any) -> float:
            return float(nvml.nvmlDeviceGetTemperature(self.handle, nvml.NVML_TEMPERATURE_GPU))

        return _read(read)

    def other_busy_processes(self, since_s: float, own_pid: int) -> int | None:
        """Processes but this one that ran on the multiprocessors after ``since_s`` (Unix time).

        Where NVML does not know this process by its id (a container has ids of its own), one of
        those that ran counts as this one; None where none did.
        """

        def read(nvml: Any) -> int | None:
            samples = nvml.nvmlDeviceGetProcessUtilization(self.handle, int(since_s * 1e6))
            busy = {sample.pid for sample in samples if sample.smUtil > 0}
            if own_pid in {sample.pid for sample in samples}:
                return len(busy - {own_pid})
            return len(busy) - 1 if busy else None

        return _read(read)

    def clock_event_bits(self) -> int | None:
        """Bits of the reasons why clocks are below their maximum (THROTTLE_BITS, OTHER_BITS)."""

        def read(nvml: Any) -> int:
            # drivers before 535 know the call by its older name only
            newer = getattr(nvml, "nvmlDeviceGetCurrentClocksEventReasons", None)
            if newer is not None:
                try:
                    return int(newer(self.handle))
                except nvml.NVMLError:
                    pass
            return int(nvml.nvmlDeviceGetCurrentClocksThrottleReasons(self.handle))

        return _read(read)


def open_device(index: int = 0) -> NvmlDevice | None:
    """The GPU that torch calls ``cuda:index``, or None without NVML.

    torch and NVML number devices differently (CUDA_VISIBLE_DEVICES counts for one only), so the
    device is found by its UUID; where that fails, it is the host's only one, or unknown: another
    card's readings would be worse than none. Starts CUDA in torch.
    """
    import torch

    properties = torch.cuda.get_device_properties(index)
    return find_device(getattr(properties, "uuid", None))


def find_device(uuid: object | None) -> NvmlDevice | None:
    """The GPU of this UUID (with or without its prefix), or the only one; None without NVML."""

    def find(nvml: Any) -> NvmlDevice:
        nvml.nvmlInit()  # counted: calling it again is fine
        if uuid is not None:
            for prefix in ("GPU-", "MIG-"):
                try:
                    name = prefix + str(uuid).removeprefix(prefix)
                    return NvmlDevice(nvml.nvmlDeviceGetHandleByUUID(name))
                except nvml.NVMLError:
                    continue
        if nvml.nvmlDeviceGetCount() != 1:
            raise nvml.NVMLError(nvml.NVML_ERROR_NOT_FOUND)
        return NvmlDevice(nvml.nvmlDeviceGetHandleByIndex(0))

    return _read(find)


def host_gpus() -> list[NvmlDevice]:
    """All GPUs of the host, whatever CUDA_VISIBLE_DEVICES says; none without NVML."""

    def find(nvml: Any) -> list[NvmlDevice]:
        nvml.nvmlInit()
        count = nvml.nvmlDeviceGetCount()
        return [NvmlDevice(nvml.nvmlDeviceGetHandleByIndex(index)) for index in range(count)]

    return _read(find) or []


def event_reasons(bits: int) -> list[str]:
    """Names of the clock-event reasons in ``bits``, idle left out."""
    return [name for bit, name in sorted({**THROTTLE_BITS, **OTHER_BITS}.items()) if bits & bit]


def is_throttled(bits: int) -> bool:
    """Whether ``bits`` name a reason that slows the device down."""
    return any(bits & bit for bit in THROTTLE_BITS)


def _read(read: Callable[[Any], T]) -> T | None:
    try:
        import pynvml
    except ImportError:
        return None
    try:
        return read(pynvml)
    except (pynvml.NVMLError, AttributeError):  # not offered by this driver or by this package
        return None


def _text(value: str | bytes) -> str:
    return value.decode() if isinstance(value, bytes) else value
