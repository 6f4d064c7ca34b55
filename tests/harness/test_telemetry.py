"""Telemetry columns from readings, the poller, and NVML without a driver."""

from __future__ import annotations

import os
import time

import pytest

from dynbench.harness import nvml, telemetry
from dynbench.harness.schema import complete_row
from dynbench.harness.telemetry import Reading, Telemetry, load_average, telemetry_columns

IDLE, POWER_CAP, THERMAL = 0x01, 0x04, 0x40


def test_columns_from_readings():
    readings = [
        Reading(0.0, 1000.0, 2000.0, 300.0, 50.0, IDLE),
        Reading(1.0, 1200.0, 2000.0, 500.0, 60.0, POWER_CAP),
        Reading(2.0, 1100.0, 2000.0, 400.0, 55.0, THERMAL | 0x02),
    ]
    columns = telemetry_columns(readings, [0.1, 0.9, 1.2, 1.9], [0.05] * 4)
    assert columns == {
        "sm_clock_mhz": 1100.0,
        "memory_clock_mhz": 2000.0,
        "power_w": 400.0,
        "temperature_c": 60.0,
        "throttle_reasons": [
            "applications_clocks_setting",
            "hw_thermal_slowdown",
            "sw_power_cap",
        ],
        "throttled_samples": 3,
        "samples_sm_clock_mhz": [1000.0, 1200.0, 1200.0, 1100.0],
        "samples_power_w": [300.0, 500.0, 500.0, 400.0],
    }
    complete_row(columns)


@pytest.mark.parametrize(("duration_s", "throttled"), [(2.5, 0), (3.5, 1), (10.0, 1)])
def test_a_slow_down_in_the_middle_of_a_sample_counts(duration_s, throttled):
    bits = [IDLE, IDLE, IDLE, THERMAL, IDLE]
    readings = [Reading(float(at_s), event_bits=b) for at_s, b in enumerate(bits)]
    assert telemetry_columns(readings, [0.0], [duration_s])["throttled_samples"] == throttled


def test_nothing_read_is_nothing_said():
    assert set(telemetry_columns([Reading(0.0)], [0.0], [1.0]).values()) == {None}


def test_a_cpu_has_its_clock_only(monkeypatch):
    monkeypatch.setattr(telemetry, "cpu_mhz", lambda: 2600.0)
    with Telemetry("cpu") as watched:
        start = time.perf_counter()
    columns = watched.columns([start], [0.0])
    assert columns["sm_clock_mhz"] == 2600.0
    assert columns["power_w"] is None
    assert columns["throttled_samples"] is None
    assert watched.memory_used_bytes() is None


class FakeDevice:
    """A GPU whose clock falls while it is watched."""

    def __init__(self) -> None:
        self.looks = 0

    def sm_clock_mhz(self) -> float:
        self.looks += 1
        return 2000.0 - self.looks

    def memory_clock_mhz(self) -> float:
        return 2600.0

    def power_w(self) -> None:
        return None

    def temperature_c(self) -> float:
        return 70.0

    def clock_event_bits(self) -> int:
        return POWER_CAP

    def memory_used_bytes(self) -> int:
        return 123

    def other_busy_processes(self, since_s: float, own_pid: int) -> int:
        assert abs(time.time() - since_s) < 60
        assert own_pid == os.getpid()
        return 1


def test_the_poller_looks_while_samples_are_taken(monkeypatch):
    device = FakeDevice()
    monkeypatch.setattr(telemetry, "_open_gpu", lambda: device)
    with Telemetry("cuda", interval_s=0.005) as watched:
        starts = []
        for _ in range(3):
            starts.append(time.perf_counter())
            time.sleep(0.03)
    looks = device.looks
    assert looks >= 5
    columns = watched.columns(starts, [0.03] * 3)
    clocks = columns["samples_sm_clock_mhz"]
    assert clocks == sorted(clocks, reverse=True)
    assert len(set(clocks)) == 3
    assert columns["throttled_samples"] == 3
    assert columns["samples_power_w"] is None
    assert watched.memory_used_bytes() == 123
    assert columns["other_gpu_processes"] == 1
    complete_row(columns)
    time.sleep(0.03)
    assert device.looks == looks  # the thread is gone


def test_readings_from_before_the_samples_are_left_out(monkeypatch):
    device = FakeDevice()
    monkeypatch.setattr(telemetry, "_open_gpu", lambda: device)
    with Telemetry("cuda", interval_s=0.005) as watched:
        time.sleep(0.08)
        before = device.looks
        start = time.perf_counter()
        time.sleep(0.03)
    columns = watched.columns([start], [0.03])
    assert columns["sm_clock_mhz"] < 2000.0 - before + 4


def test_without_nvml(monkeypatch):
    pynvml = pytest.importorskip("pynvml")

    def fail() -> None:
        raise pynvml.NVMLError(pynvml.NVML_ERROR_LIBRARY_NOT_FOUND)

    monkeypatch.setattr(pynvml, "nvmlDeviceGetUUID", lambda handle: fail())
    assert nvml.NvmlDevice(None).uuid() is None


def test_older_drivers_tell_reasons_by_the_older_call(monkeypatch):
    pynvml = pytest.importorskip("pynvml")

    def fail(handle: object) -> int:
        raise pynvml.NVMLError(pynvml.NVML_ERROR_FUNCTION_NOT_FOUND)

    monkeypatch.setattr(pynvml, "nvmlDeviceGetCurrentClocksEventReasons", fail)
    monkeypatch.setattr(
        pynvml, "nvmlDeviceGetCurrentClocksThrottleReasons", lambda handle: POWER_CAP
    )
    assert nvml.NvmlDevice(None).clock_event_bits() == POWER_CAP


@pytest.mark.parametrize(
    ("used", "others"),
    [
        ([(1, 0), (2, 30), (2, 50), (3, 1)], 1),  # none is this one by its id: one of two is it
        ([(2, 30)], 0),
        ([(1, 0)], None),
        ([(7, 30), (2, 50), (2, 1), (3, 1)], 2),
        ([(7, 0), (2, 50)], 1),  # this process did too little to be seen
        ([(7, 0)], 0),
    ],
)
def test_other_processes_that_ran_on_the_gpu(used, others, monkeypatch):
    pynvml = pytest.importorskip("pynvml")
    samples = []
    for pid, use in used:
        sample = pynvml.c_nvmlProcessUtilizationSample_t()
        sample.pid, sample.smUtil = pid, use
        samples.append(sample)
    asked = []

    def utilization(handle: object, since_us: int) -> list[object]:
        asked.append(since_us)
        return samples

    monkeypatch.setattr(pynvml, "nvmlDeviceGetProcessUtilization", utilization)
    assert nvml.NvmlDevice(None).other_busy_processes(1.5, 7) == others
    assert asked == [1_500_000]


def planted_nvml(monkeypatch, *uuids: str):
    """NVML with GPUs of these UUIDs, whose handles are their places."""
    pynvml = pytest.importorskip("pynvml")

    def by_uuid(uuid: str) -> int:
        if uuid not in uuids:
            raise pynvml.NVMLError(pynvml.NVML_ERROR_NOT_FOUND)
        return uuids.index(uuid)

    monkeypatch.setattr(pynvml, "nvmlInit", lambda: None)
    monkeypatch.setattr(pynvml, "nvmlDeviceGetCount", lambda: len(uuids))
    monkeypatch.setattr(pynvml, "nvmlDeviceGetHandleByIndex", lambda index: index)
    monkeypatch.setattr(pynvml, "nvmlDeviceGetHandleByUUID", by_uuid)


def test_telemetry_is_of_the_gpu_that_torch_means(monkeypatch):
    planted_nvml(monkeypatch, "GPU-aa", "GPU-bb", "MIG-cc")
    assert nvml.find_device("bb") == nvml.NvmlDevice(1)
    assert nvml.find_device("GPU-bb") == nvml.NvmlDevice(1)
    assert nvml.find_device("cc") == nvml.NvmlDevice(2)
    assert nvml.find_device("dd") is None  # another card's readings would be worse than none
    assert nvml.find_device(None) is None
    assert nvml.host_gpus() == [nvml.NvmlDevice(index) for index in range(3)]


def test_an_only_gpu_needs_no_uuid(monkeypatch):
    planted_nvml(monkeypatch, "GPU-aa")
    assert nvml.find_device(None) == nvml.find_device("bb") == nvml.NvmlDevice(0)


def test_reason_bits():
    assert nvml.event_reasons(IDLE) == []
    assert nvml.event_reasons(POWER_CAP | 0x100) == ["sw_power_cap", "display_clocks_setting"]
    assert not nvml.is_throttled(IDLE | 0x02 | 0x10 | 0x100)
    assert nvml.is_throttled(THERMAL)


def test_load_average():
    assert load_average() >= 0
