"""Rows as two machines would make them: times from a cost model, noise from a fixed seed."""

from __future__ import annotations

import json
import os
import random
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from dynbench.dashboards.report import write_report
from dynbench.harness.schema import complete_row

Row = dict[str, Any]

GPU = {
    "machine_id": "9f1c2ab37d40e611",
    "device": "cuda",
    "gpu_name": "NVIDIA H100 80GB HBM3",
    "gpu_memory_bytes": 85_520_809_984,
    "gpu_power_limit_w": 700.0,
    "driver_version": "570.86.15",
    "cuda_version": "12.8",
    "cpu_name": "AMD EPYC 9454 48-Core Processor",
    "cpu_threads": 48,
    "host_memory_bytes": 1_622_000_000_000,
    "triton_version": "3.7.1",
    "timer": "event",
    "dtype": "bfloat16",
    "batch": 1,
    "q_heads": 64,
    "kv_heads": 4,
    "head_dim": 128,
    "ceiling_copy_gb_s": 2870.0,
    "ceiling_matmul_tflops": 702.0,
    "sm_clock_mhz": 1755.0,
    "memory_clock_mhz": 2619.0,
    "power_w": 645.0,
    "temperature_c": 61.0,
    "run_id": "20261123-101500-h100",
}
CPU = {
    "machine_id": "11aa22bb33cc44dd",
    "device": "cpu",
    "cpu_name": "Intel(R) Xeon(R) Platinum 8480C",
    "cpu_threads": 2,
    "host_memory_bytes": 16_600_000_000,
    "timer": "wall",
    "dtype": "float32",
    "batch": 1,
    "q_heads": 1,
    "kv_heads": 1,
    "head_dim": 64,
    "ceiling_copy_gb_s": 17.9,
    "ceiling_matmul_tflops": 0.148,
    "sm_clock_mhz": 2900.0,
    "load_average": 0.4,
    "run_id": "20261123-090000-cpu",
}
COMMON = {
    "suite": "attention",
    "status": "ok",
    "inputs": "normal",
    "seed": 0,
    "torch_version": "2.13.0",
    "python_version": "3.12.4",
    "packages": '{"numpy": "2.3.1", "scipy": "1.17.0"}',
    "git_commit": "4f2a9c81d03be7756a1f4c2d9e8b7a6c5d4e3f21",
    "git_dirty": False,
    "host_hash": "c0ffee",
    "checked": "o on 256 sampled rows",
}
NSA = {
    "block_size": 64,
    "top_n": 16,
    "init_blocks": 1,
    "local_blocks": 2,
    "window": 512,
    "compress_block": 64,
    "compress_stride": 64,
    "backend": "blockwise",
}
DENSE_EFFICIENCY = {
    "sdpa": 0.62,
    "sdpa:cudnn": 0.74,
    "sdpa:math": 0.05,
    "flash": 0.78,
    "dynsiha": 0.61,
}


def make_row(machine: Row, provider: str, seq_len: int, **more: Any) -> Row:
    """One complete row; ``more`` overrides any column and may hold ``pass``."""
    values: Row = {**COMMON, **machine, "provider": provider, "seq_len": seq_len, "pass": "forward"}
    values["provider_version"] = "torch 2.13.0"
    if provider.split(":")[0] in ("nsa", "fla", "dynnsiha"):
        values |= {**NSA, "lists": "exact", "query_tile": 1, "private_blocks": 0}
    else:
        values["lists"] = "dense"
    values |= more
    if values.get("query_tile", 1) > 1:
        values["lists"] = "hybrid" if values["private_blocks"] else "shared"
    if values["status"] == "ok":
        values = {**_measured(values), **values, **more}
    values.setdefault("started_at", f"2026-11-23T10:{seq_len // 1024 % 60:02d}:00Z")
    values.setdefault("command", _command(values))
    for name in ("case_id", "workload_id"):
        values.setdefault(name, f"{abs(hash((name, values['command']))):016x}"[:16])
    return complete_row(values)


def _measured(row: Row) -> Row:
    seq_len, heads, width = row["seq_len"], row["q_heads"], row["head_dim"]
    factor = 2.5 if row["pass"] == "backward" else 1.0
    causal_pairs = seq_len * (seq_len + 1) // 2
    dense_flops = int(factor * 4 * width * heads * row["batch"] * causal_pairs)
    peak = row["ceiling_matmul_tflops"]
    size = 4 if row["dtype"] == "float32" else 2
    tensor_bytes = seq_len * heads * width * size
    work_bytes = 4 * tensor_bytes
    values: Row = {"rms_error": 0.0021, "rms_tolerance": 0.005}
    if row["lists"] == "dense":
        flops, efficiency = dense_flops, DENSE_EFFICIENCY.get(row["provider"], 0.3)
        values |= {"sparsity": 0.0, "attended_share": 1.0, "dense_error": 0.0019}
        memory = tensor_bytes * 1.1
    else:
        keys = min(row["top_n"] * 64 + row["window"] * 0.8, seq_len / 2)
        pairs = seq_len * keys + causal_pairs / row["compress_stride"]
        flops = int(factor * 4 * width * heads * row["batch"] * pairs)
        group = heads // row["kv_heads"]
        tile = row["query_tile"]
        efficiency = 0.1 * min(1.0, group / 16) + 0.02 * min(tile, 16) ** 0.5
        share = min(1.0, seq_len * keys / causal_pairs)
        values |= {
            "sparsity": 1 - share,
            "attended_share": share,
            "mean_blocks": float(min(row["top_n"], seq_len / 128)),
            "list_overlap": 0.9 if tile > 1 else 0.74,
            "dense_error": 0.21 + 0.02 * (seq_len / 131072),
        }
        memory = tensor_bytes * 2.4
    overhead_ms = 0.04 if row["device"] == "cuda" else 1.5
    noise = random.Random(repr((row["provider"], seq_len, row.get("query_tile"))))
    latency_ms = overhead_ms + flops / (peak * 1e9 * efficiency) * noise.uniform(0.97, 1.03)
    if row["lists"] != "dense":
        stages = {"compressed": 0.3 * latency_ms, "choice": 0.1 * latency_ms}
        values["stages_ms"] = json.dumps(stages | {"pairs": 0.5 * latency_ms})
    roof_ms = max(flops / (peak * 1e9), work_bytes / (row["ceiling_copy_gb_s"] * 1e6))
    samples = [latency_ms * noise.uniform(0.99, 1.02) for _ in range(5 if latency_ms > 500 else 30)]
    quartiles = pd.Series(samples).quantile([0.25, 0.5, 0.75]).tolist()
    if "latency_ms" in row:  # a median that a test asks for has quartiles as narrow
        quartiles = [row["latency_ms"] * value / quartiles[1] for value in quartiles]
    return values | {
        "samples_ms": samples,
        "samples_at_s": [i * latency_ms / 1e3 for i in range(len(samples))],
        "latency_ms": quartiles[1],
        "latency_q1_ms": quartiles[0],
        "latency_q3_ms": quartiles[2],
        "sample_count": len(samples),
        "precision": 0.008,
        "warmup_count": 5,
        "compile_ms": latency_ms * 9 + 200,
        "throttled_samples": 0,
        "peak_memory_bytes": int(memory * factor),
        "flops": flops,
        "bytes": work_bytes,
        "dense_flops": dense_flops,
        "arithmetic_intensity": flops / work_bytes,
        "effective_tflops": flops / quartiles[1] / 1e9,
        "dense_equivalent_tflops": dense_flops / quartiles[1] / 1e9,
        "roofline_share": roof_ms / quartiles[1],
    }


def _command(row: Row) -> str:
    parts = [
        f"dynbench run --seq {row['seq_len']} --suite {row['suite']} --providers {row['provider']}",
        f"--pass {row['pass']} --q-heads {row['q_heads']} --kv-heads {row['kv_heads']}",
        f"--head-dim {row['head_dim']} --dtype {row['dtype']} --device {row['device']}",
    ]
    if row.get("query_tile", 1) > 1:
        parts.append(f"--query-tile {row['query_tile']} --private-blocks {row['private_blocks']}")
    return " ".join(parts)


def gpu_rows() -> list[Row]:
    """A sweep on a GPU: two passes, hybrid lists, asked sparsities, and rows that failed."""
    rows = []
    lengths = [1024 * 2**power for power in range(3, 8)]
    for pass_ in ("forward", "backward"):
        for seq_len in lengths:
            for provider in ("sdpa", "sdpa:cudnn", "nsa", "dynsiha", "dynnsiha"):
                rows.append(make_row(GPU, provider, seq_len, **{"pass": pass_}))
            rows.append(
                make_row(
                    GPU, "dynnsiha", seq_len, query_tile=4, private_blocks=2, **{"pass": pass_}
                )
            )
            rows.append(
                make_row(
                    GPU,
                    "flash",
                    seq_len,
                    status="unavailable",
                    reason="flash_attn is not installed: pip install 'dynbench[flash]'",
                    **{"pass": pass_},
                )
            )
            out = {
                "status": "out_of_memory",
                "reason": "tried to allocate 128 GiB, 61 GiB are free",
            }
            bad = {} if seq_len <= 16384 else out
            rows.append(make_row(GPU, "sdpa:math", seq_len, **{"pass": pass_}, **bad))
    for seq_len, sparsity, top_n in [
        (length, share, max(4, int((1 - share) * length / 160)))
        for length in lengths
        for share in (0.5, 0.75, 0.9)
    ]:
        rows.append(make_row(GPU, "dynnsiha", seq_len, top_n=top_n, target_sparsity=sparsity))
    rows.append(
        make_row(
            GPU,
            "my_kernel",
            8192,
            status="incorrect",
            reason="rms_error 0.41 is beyond 0.005",
            rms_error=0.41,
            rms_tolerance=0.005,
        )
    )
    rows.append(
        make_row(
            GPU,
            "my_kernel",
            16384,
            status="error",
            reason="worker died: SIGSEGV",
            details='Traceback (most recent call last):\n  File "my_kernel.py", line 3\nboom',
        )
    )
    return rows


def cpu_rows() -> list[Row]:
    """The default sweep on a CPU."""
    rows = []
    for seq_len in (8192, 16384, 32768, 65536, 131072):
        for provider in ("sdpa", "nsa", "dynsiha", "dynnsiha"):
            rows.append(make_row(CPU, provider, seq_len))
        rows.append(make_row(CPU, "dynnsiha", seq_len, query_tile=16, private_blocks=2))
    return rows


@pytest.fixture(scope="session")
def row() -> Callable[..., Row]:
    """Builds one complete row: ``row("gpu" or "cpu", provider, seq_len, **columns)``."""

    def build(machine: str, provider: str, seq_len: int, **more: Any) -> Row:
        return make_row(GPU if machine == "gpu" else CPU, provider, seq_len, **more)

    return build


@pytest.fixture(scope="session")
def gpu_frame() -> pd.DataFrame:
    """The rows of a GPU sweep."""
    return pd.DataFrame(gpu_rows())


@pytest.fixture(scope="session")
def cpu_frame() -> pd.DataFrame:
    """The rows of a CPU sweep."""
    return pd.DataFrame(cpu_rows())


@pytest.fixture(scope="session")
def mixed_frame(gpu_frame: pd.DataFrame, cpu_frame: pd.DataFrame) -> pd.DataFrame:
    """Both machines, and a second shape on the GPU."""
    headless = gpu_frame[gpu_frame["status"] == "ok"].assign(q_heads=32, kv_heads=32)
    return pd.concat([gpu_frame, cpu_frame, headless], ignore_index=True)


def _missing(why: str) -> None:
    if os.environ.get("DYNBENCH_REQUIRE_BROWSER") == "1":
        pytest.fail(f"DYNBENCH_REQUIRE_BROWSER=1, but {why}")
    pytest.skip(why)


@pytest.fixture(scope="session")
def browser() -> Iterator:
    try:
        from playwright.sync_api import sync_playwright
    except ImportError:
        _missing("no browser test: playwright is not installed")
    names = ("chromium", "chromium-browser", "google-chrome")
    program = next((found for name in names if (found := shutil.which(name))), None)
    if program is None:
        _missing("no browser test: there is no chromium on PATH")
    with sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=program, args=["--no-sandbox"])
        yield started
        started.close()


@contextmanager
def opening(browser) -> Iterator[Callable]:
    """Opens a file without a network; afterwards fails on any request or console error."""
    trouble: list[str] = []
    contexts: list = []

    def open_file(path: Path, *, width: int = 1280, **options):
        context = browser.new_context(
            viewport={"width": width, "height": 900}, offline=True, **options
        )
        contexts.append(context)
        page = context.new_page()
        page.on("pageerror", lambda error: trouble.append(f"page error: {error}"))
        page.on(
            "console",
            lambda message: (
                trouble.append(f"console: {message.text}")
                if message.type in ("error", "warning")
                else None
            ),
        )
        page.on(
            "request",
            lambda request: (
                trouble.append(f"request: {request.url}")
                if request.url.startswith(("http", "ws"))
                else None
            ),
        )
        page.goto(path.as_uri())
        ready = "['ready', 'failed'].includes(document.documentElement.dataset.figures)"
        page.wait_for_function(ready, timeout=60_000)
        assert page.evaluate("document.documentElement.dataset.figures") == "ready"
        return page

    yield open_file
    for context in contexts:
        context.close()
    assert trouble == []


@pytest.fixture
def opened(browser) -> Iterator[Callable]:
    """Opens a file; at the end of the test fails on any request or console error."""
    with opening(browser) as open_file:
        yield open_file


@pytest.fixture(scope="module")
def cpu_page(browser, cpu_frame: pd.DataFrame, tmp_path_factory) -> Iterator:
    """A page of the CPU's rows for all tests of a file that leave it as it was."""
    with opening(browser) as open_file:
        yield open_file(write_report(cpu_frame, tmp_path_factory.mktemp("cpu") / "page.html"))


@pytest.fixture(scope="module")
def gpu_page(browser, gpu_frame: pd.DataFrame, tmp_path_factory) -> Iterator:
    """As ``cpu_page``, of the GPU's rows."""
    with opening(browser) as open_file:
        yield open_file(write_report(gpu_frame, tmp_path_factory.mktemp("gpu") / "page.html"))


@pytest.fixture
def show(opened, tmp_path: Path) -> Callable:
    """Writes a report and opens it as ``opened`` does."""

    def show_report(frame: pd.DataFrame, *, report: dict | None = None, **options):
        path = tmp_path / f"report{len(list(tmp_path.iterdir()))}.html"
        return opened(write_report(frame, path, **(report or {})), **options)

    return show_report
