"""What the device did while samples were taken: clocks, power, temperature, slow-downs.

On a GPU a thread polls NVML; a long loop heats the card and drops its clocks by a fifth, and a row
without its clocks cannot be told from one that is slow. On a CPU there is the clock alone, read
before and after.
"""

from __future__ import annotations

import os
import threading
import time
from dataclasses import dataclass
from statistics import median
from types import TracebackType
from typing import Any

from dynbench.harness.cpuload import CpuLoad
from dynbench.harness.machine import cpu_mhz
from dynbench.harness.nvml import NvmlDevice, event_reasons, is_throttled, open_device

_UTILIZATION_PERIOD_S = 1.0  # NVML's numbers look back so far: at what ran before, too


@dataclass(frozen=True)
class Reading:
    """One look at the device; ``at_s`` is on the host's monotonic clock."""

    at_s: float
    sm_clock_mhz: float | None = None
    memory_clock_mhz: float | None = None
    power_w: float | None = None
    temperature_c: float | None = None
    event_bits: int | None = None


class Telemetry:
    """Polls ``device`` between entering and leaving, then gives the telemetry columns.

    ``interval_s`` is the pause between two looks at a GPU: each takes a millisecond of one core.
    """

    def __init__(self, device: str, interval_s: float = 0.05) -> None:
        self._nvml = _open_gpu() if device == "cuda" else None
        self._device = device
        self._interval_s = interval_s
        self._load = CpuLoad()
        self._began_s = time.time()
        self._other_cpu_share: float | None = None
        self._other_gpu_processes: int | None = None
        self._readings: list[Reading] = []
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    def __enter__(self) -> Telemetry:
        self._load = CpuLoad()
        self._began_s = time.time()
        self._readings.append(self._look())
        if self._nvml is not None:
            self._thread = threading.Thread(target=self._poll, name="telemetry", daemon=True)
            self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._stop.set()
        if self._thread is not None:
            self._thread.join()
        self._readings.append(self._look())
        self._other_cpu_share = self._load.others_share()
        since_s = self._began_s + _UTILIZATION_PERIOD_S
        if self._nvml is not None:
            self._other_gpu_processes = self._nvml.other_busy_processes(since_s, os.getpid())

    def columns(self, starts_s: list[float], durations_s: list[float]) -> dict[str, Any]:
        """The telemetry columns for samples that began then and took so long.

        Starts are on the host's monotonic clock. Readings from before and after are left out. To
        be called after leaving: what other processes did is known only then.
        """
        margin_s = 2 * self._interval_s
        end_s = starts_s[-1] + durations_s[-1]
        window = [
            reading
            for reading in self._readings
            if starts_s[0] - margin_s <= reading.at_s <= end_s + margin_s
        ]
        return {
            **telemetry_columns(window or self._readings, starts_s, durations_s),
            "other_cpu_share": self._other_cpu_share,
            "other_gpu_processes": self._other_gpu_processes,
        }

    def memory_used_bytes(self) -> int | None:
        """Memory in use on the whole GPU now; None on a CPU."""
        return self._nvml.memory_used_bytes() if self._nvml else None

    def _poll(self) -> None:
        while not self._stop.wait(self._interval_s):
            self._readings.append(self._look())

    def _look(self) -> Reading:
        now = time.perf_counter()
        if self._device != "cuda":
            return Reading(now, sm_clock_mhz=cpu_mhz())
        if self._nvml is None:
            return Reading(now)
        return Reading(
            now,
            self._nvml.sm_clock_mhz(),
            self._nvml.memory_clock_mhz(),
            self._nvml.power_w(),
            self._nvml.temperature_c(),
            self._nvml.clock_event_bits(),
        )


def telemetry_columns(
    readings: list[Reading], starts_s: list[float], durations_s: list[float]
) -> dict[str, Any]:
    """Telemetry columns of the row from readings in time order.

    Columns that nothing was read for are None; per-sample columns take the reading nearest to the
    sample's start, and a sample counts as throttled if that one or any taken during the sample
    named a slow-down.
    """
    nearest = [min(readings, key=lambda r: abs(r.at_s - start)) for start in starts_s]
    throttled_s = [r.at_s for r in readings if is_throttled(r.event_bits or 0)]
    throttled = [
        is_throttled(near.event_bits or 0) or any(start <= s <= start + took for s in throttled_s)
        for near, start, took in zip(nearest, starts_s, durations_s, strict=True)
    ]
    temperatures = [r.temperature_c for r in readings if r.temperature_c is not None]
    bits = [r.event_bits for r in readings if r.event_bits is not None]
    watched = bool(bits)
    return {
        "sm_clock_mhz": _median([r.sm_clock_mhz for r in readings]),
        "memory_clock_mhz": _median([r.memory_clock_mhz for r in readings]),
        "power_w": _median([r.power_w for r in readings]),
        "temperature_c": max(temperatures, default=None),
        "throttle_reasons": sorted({n for b in bits for n in event_reasons(b)})
        if watched
        else None,
        "throttled_samples": sum(throttled) if watched else None,
        "samples_sm_clock_mhz": _all_known([r.sm_clock_mhz for r in nearest]),
        "samples_power_w": _all_known([r.power_w for r in nearest]),
    }


def load_average() -> float | None:
    """The host's one-minute load average, where the system has one."""
    try:
        return os.getloadavg()[0]
    except (OSError, AttributeError):
        return None


def _open_gpu() -> NvmlDevice | None:
    import torch

    return open_device(torch.cuda.current_device())


def _median(values: list[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return float(median(known)) if known else None


def _all_known(values: list[float | None]) -> list[float] | None:
    known = [value for value in values if value is not None]
    return known if known and len(known) == len(values) else None
