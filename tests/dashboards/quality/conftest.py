"""Trainings as suite ``quality`` would keep them: rows and curves from a model of learning."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from dynbench.dashboards.quality.curves import read_curves_below
from dynbench.harness.curves import CURVES_FOLDER, write_curves
from dynbench.harness.schema import complete_row

Row = dict[str, Any]

RUN_ID = "20261124-080000-quality"
BASE: Row = {
    "run_id": RUN_ID,
    "machine_id": "9f1c2ab37d40e611",
    "suite": "quality",
    "pass": "train_step",
    "status": "ok",
    "device": "cuda",
    "gpu_name": "NVIDIA H100 80GB HBM3",
    "cpu_name": "AMD EPYC 9454 48-Core Processor",
    "timer": "event",
    "dtype": "float32",
    "batch": 16,
    "q_heads": 4,
    "kv_heads": 2,
    "head_dim": 32,
    "model_dim": 128,
    "layers": 2,
    "inputs": "text",
    "torch_version": "2.13.0",
    "git_commit": "4f2a9c81d03be7756a1f4c2d9e8b7a6c5d4e3f21",
    "git_dirty": False,
    "provider_version": "dynnsiha 0.1",
}
SPARSE: Row = {
    "block_size": 16,
    "compress_block": 16,
    "compress_stride": 16,
    "init_blocks": 1,
    "local_blocks": 2,
    "window": 128,
    "backend": "triton",
}
SEEDS = (0, 1, 2)
LAYERS = ("blocks.0.attention.q_proj", "blocks.0.mlp", "blocks.1.mlp")


def make_training(provider: str, seed: int, *, task: str = "text", **more: Any) -> Row:
    """One training; ``more`` overrides any column. Settings of lists make it sparse."""
    values: Row = {**BASE, "provider": provider, "seed": seed, "task": task}
    values |= {"seq_len": 1024, "train_steps": 400, "lists": "dense", "parameters": 1_204_352}
    tile = more.get("query_tile")
    if tile is not None:
        private = more.setdefault("private_blocks", 0)
        lists = "exact" if tile == 1 else "hybrid" if private else "shared"
        values |= {**SPARSE, "top_n": 8, "lists": lists, "parameters": 1_310_720}
    values |= more
    if values["status"] == "ok":
        values = _reached(values) | values
    said = [f"{k}={v}" for k, v in sorted(values.items()) if k != "command"]
    values.setdefault("case_id", f"{abs(hash(tuple(said))):016x}"[:16])
    values.setdefault("started_at", f"2026-11-24T08:{seed % 60:02d}:00Z")
    values.setdefault("command", f"dynbench run --suite quality --providers {provider}")
    return complete_row(values)


def _reached(row: Row) -> Row:
    noise = random.Random(repr((row["provider"], row["seed"], row["task"], row.get("top_n"))))
    sparse = row["lists"] != "dense"
    share = min(1.0, 0.025 * row["top_n"] + 0.1) if sparse else 1.0
    penalty = 0.12 * (1 - share) ** 4
    if row["lists"] in ("hybrid", "shared"):
        penalty += 0.002 * row["query_tile"] + (0.0 if row["private_blocks"] else 0.08)
    loss = 1.70 + penalty + noise.gauss(0, 0.006)
    right = 1.0 if not sparse else max(0.0, 1 - 3 * penalty + noise.gauss(0, 0.01))
    values: Row = {
        "attended_share": share,
        "sparsity": 1 - share,
        "latency_ms": 400 * (20 + 14 * share + noise.random()),
        "peak_memory_bytes": 300_000_000,
        "eval_loss": loss if row["task"] == "text" else 3 * penalty + abs(noise.gauss(0, 0.01)),
        "eval_accuracy": 0.52 - penalty / 3 if row["task"] == "text" else min(1.0, right),
        "eval_count": 4096,
    }
    if sparse:
        gates = {"gate_compressed": 0.2, "gate_selected": 0.4, "gate_sliding": 0.8}
        values |= {"mean_blocks": float(row["top_n"]), **gates}
    if row["provider"] != "sdpa":
        values |= {"activation_rate": 0.4 + noise.gauss(0, 0.01), "dead_neuron_share": 0.01}
    return values


def trainings(task: str = "text") -> list[Row]:
    """Dense, exact, hybrid and shared lists, an ablation, a single seed and a failure."""
    rows = []
    for seed in SEEDS:
        rows.append(make_training("sdpa", seed, task=task))
        rows.append(make_training("dynsiha", seed, task=task, parameters=1_310_720))
        for top_n in (4, 8, 16):
            for tile in ((1, 0), (4, 2), (16, 2), (16, 0)):
                settings = {"query_tile": tile[0], "private_blocks": tile[1], "top_n": top_n}
                rows.append(make_training("dynnsiha", seed, task=task, **settings))
        ablation = {"query_tile": 16, "private_blocks": 2, "variant": "word_embedding=false"}
        rows.append(make_training("dynnsiha", seed, task=task, **ablation))
    rows.append(make_training("nsa", 0, task=task, query_tile=1))
    failed = {"status": "out_of_memory", "reason": "61 GiB are free", "query_tile": 64}
    rows.append(make_training("dynnsiha", 0, task=task, private_blocks=1, **failed))
    return rows


def curve_records(row: Row, steps: int = 400) -> list[dict[str, Any]]:
    """The curves of a row: a record a step, held-out numbers and layers at every twentieth."""
    noise = random.Random(row["case_id"])
    records: list[dict[str, Any]] = []
    for step in range(1, steps + 1):
        done = step / steps
        record = {"run_id": row["run_id"], "case_id": row["case_id"], "step": step, "layer": ""}
        loss = row["eval_loss"] + 3 * 2.0 ** (-12 * done)
        record |= {"at_s": 0.03 * step, "train_loss": loss + noise.gauss(0, 0.05)}
        if step % 20 == 0:
            record |= {"eval_loss": loss, "eval_accuracy": row["eval_accuracy"] * done}
        records.append(record)
        if step % 20 or row["provider"] == "sdpa":
            continue
        where = {name: record[name] for name in ("run_id", "case_id", "step")}
        for layer in LAYERS:
            rate = 0.5 - 0.1 * done + noise.gauss(0, 0.01)
            records.append({**where, "layer": layer, "neurons": 512, "activation_rate": rate})
        if row["lists"] != "dense":
            for layer in ("blocks.0.attention", "blocks.1.attention"):
                gates = {"gate_compressed": 0.4 - 0.2 * done, "gate_selected": 0.5 - 0.1 * done}
                gates["gate_sliding"] = 0.6 + 0.2 * done
                gates = {name: value + noise.gauss(0, 0.01) for name, value in gates.items()}
                records.append({**where, "layer": layer, **gates, "selected_blocks": 8.0})
    return records


@pytest.fixture(scope="session")
def training() -> Callable[..., Row]:
    """Builds one row: ``training(provider, seed, task=..., **columns)``."""
    return make_training


@pytest.fixture(scope="session")
def text_rows() -> list[Row]:
    return trainings()


@pytest.fixture(scope="session")
def quality_frame(text_rows: list[Row]) -> pd.DataFrame:
    """Two tasks, as one run."""
    return pd.DataFrame([*text_rows, *trainings("recall")])


@pytest.fixture(scope="session")
def quality_run(quality_frame: pd.DataFrame, tmp_path_factory) -> Path:
    """A run's folder with the curves of every training that came to its end."""
    run = tmp_path_factory.mktemp("quality") / RUN_ID
    for row in quality_frame.astype(object).to_dict("records"):
        if row["status"] == "ok":
            write_curves(curve_records(row), run / CURVES_FOLDER / f"{row['case_id']}.parquet")
    return run


@pytest.fixture(scope="session")
def curves(quality_run: Path):
    found, problems = read_curves_below([quality_run.parent])
    assert problems == []
    return found
