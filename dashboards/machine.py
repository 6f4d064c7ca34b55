"""The machine card: where the rows of a facet come from."""

from __future__ import annotations

import json
from collections.abc import Callable, Hashable
from dataclasses import dataclass

import numpy as np
import pandas as pd

from dynbench.dashboards.frame import distinct
from dynbench.dashboards.labels import commit_text, value_text
from dynbench.dashboards.model import Facet
from dynbench.dashboards.text import (
    bytes_text,
    cell_text,
    label_text,
    listing,
    percent_text,
    plain_text,
)
from dynbench.harness.schema import disturbance

_SHOWN = 4


@dataclass(frozen=True)
class Fact:
    """One line of the card."""

    name: str
    value: str


@dataclass(frozen=True)
class FactGroup:
    """Facts that belong together."""

    title: str
    facts: tuple[Fact, ...]


def machine_card(facet: Facet) -> list[FactGroup]:
    """Hardware, software, code, ceilings, clocks and runs of a facet; empty facts are left out."""
    rows = facet.rows
    groups = [
        FactGroup("Hardware", _hardware(rows)),
        FactGroup("Software", _software(rows)),
        FactGroup("Measured ceilings", _ceilings(rows)),
        FactGroup("Clocks while sampling", _clocks(rows)),
        FactGroup("Code and runs", _runs(rows)),
    ]
    kept = [FactGroup(g.title, tuple(f for f in g.facts if f.value)) for g in groups]
    return [group for group in kept if group.facts]


def _hardware(rows: pd.DataFrame) -> tuple[Fact, ...]:
    return (
        Fact("GPU", _values(rows, "gpu_name")),
        Fact("GPU memory", _values(rows, "gpu_memory_bytes", bytes_text)),
        Fact("Power limit", _with_unit(_values(rows, "gpu_power_limit_w"), "W")),
        Fact("CPU", _values(rows, "cpu_name")),
        Fact("Threads used", _values(rows, "cpu_threads")),
        Fact("Host memory", _values(rows, "host_memory_bytes", bytes_text)),
        Fact("Machine", _values(rows, "machine_id")),
    )


def _software(rows: pd.DataFrame) -> tuple[Fact, ...]:
    return (
        Fact("torch", _values(rows, "torch_version")),
        Fact("Triton", _values(rows, "triton_version")),
        Fact("CUDA", _values(rows, "cuda_version")),
        Fact("NVIDIA driver", _values(rows, "driver_version")),
        Fact("Python", _values(rows, "python_version")),
        Fact("Other packages", _values(rows, "packages", _packages)),
    )


def _ceilings(rows: pd.DataFrame) -> tuple[Fact, ...]:
    return (
        Fact("Copy bandwidth", _with_unit(_span(rows["ceiling_copy_gb_s"]), "GB/s")),
        Fact("Matrix product", _with_unit(_span(rows["ceiling_matmul_tflops"]), "TFLOP/s")),
    )


def _clocks(rows: pd.DataFrame) -> tuple[Fact, ...]:
    told = rows[rows["throttled_samples"].notna()]
    throttled, samples = told["throttled_samples"].sum(), told["sample_count"].sum()
    known = samples > 0
    share = percent_text(float(throttled / samples)) if known else ""
    hottest = rows["temperature_c"].max()
    reasons = [part for text in distinct(rows["throttle_reasons"]) for part in text.split(", ")]
    slow = f"{round(throttled)} of {round(samples)} samples ({share})" if known else ""
    return (
        Fact("SM or CPU clock", _with_unit(_span(rows["sm_clock_mhz"]), "MHz")),
        Fact("Memory clock", _with_unit(_span(rows["memory_clock_mhz"]), "MHz")),
        Fact("Power", _with_unit(_span(rows["power_w"]), "W")),
        Fact("Hottest", "" if pd.isna(hottest) else f"{plain_text(hottest)} °C"),
        Fact("Slowed down", slow),
        Fact("Reasons", cell_text(listing(distinct(reasons)))),
        Fact("Load average", _span(rows["load_average"])),
        Fact("Disturbed", _disturbed(rows)),
        Fact("Timer", _values(rows, "timer")),
    )


def _disturbed(rows: pd.DataFrame) -> str:
    """How many rows were taken beside other work on the device, and which work that was."""
    names = ("device", "other_gpu_processes", "other_cpu_share")
    columns = ([None if v != v else v for v in rows[name].tolist()] for name in names)
    records = (dict(zip(names, held, strict=True)) for held in zip(*columns, strict=True))
    found = [text for record in records if (text := disturbance(record))]
    if not found:
        return ""
    return f"{len(found)} of {len(rows)} rows ({listing(list(dict.fromkeys(found)))})"


def _runs(rows: pd.DataFrame) -> tuple[Fact, ...]:
    started = sorted(distinct(rows["started_at"]))
    when = label_text(started[0]) if started else ""
    if len(started) > 1:
        when += f" to {label_text(started[-1])}"
    first = rows.iloc[0]
    return (
        Fact("Code", commit_text(first["git_commit"], first["git_dirty"])),
        Fact("Runs", _values(rows, "run_id")),
        Fact("Started (UTC)", when),
        Fact("Seeds", _values(rows, "seed")),
        Fact("Inputs", _values(rows, "inputs")),
    )


def _values(
    rows: pd.DataFrame,
    name: str,
    show: Callable[[Hashable], str] | Callable[[float], str] = value_text,
) -> str:
    found = [show(value) for value in distinct(rows[name])]
    more = f" and {len(found) - _SHOWN} more" if len(found) > _SHOWN else ""
    return ", ".join(found[:_SHOWN]) + more


def _span(values: pd.Series) -> str:
    """Median, with the extremes where they differ."""
    known = values.to_numpy(np.float64)
    known = known[~np.isnan(known)]
    if not len(known):
        return ""
    ends = (known.min(), np.median(known), known.max())
    low, middle, high = (plain_text(float(value), 4) for value in ends)
    return middle if low == high else f"{middle} ({low} to {high})"


def _with_unit(text: str, unit: str) -> str:
    return f"{text} {unit}" if text else ""


def _packages(text: Hashable) -> str:
    try:
        versions = json.loads(str(text))
    except ValueError:
        return cell_text(str(text))
    if not isinstance(versions, dict):
        return cell_text(str(text))
    return cell_text(", ".join(f"{name} {version}" for name, version in sorted(versions.items())))
