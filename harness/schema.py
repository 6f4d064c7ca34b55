"""The row: one record per (case, provider, pass), and the only thing the packages share.

Every column stands here once, with its type, unit and meaning; the parquet schema, the journal's
checks and the column reference in ``docs/columns.md`` are all derived from this table. The module
imports neither torch nor pyarrow, so that ``dynbench --help`` stays quick.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    import pyarrow

SCHEMA_VERSION = 1
"""Raised when a column changes its name, type or meaning, not for a new optional column."""


class Status(StrEnum):
    """What happened to a case. Failures are rows too: nothing disappears from a sweep."""

    OK = "ok"  # measured, and the output passed its check
    UNAVAILABLE = "unavailable"  # a package or device that the provider needs is not here
    UNSUPPORTED = "unsupported"  # the provider does not serve this shape, dtype, pass or setting
    OUT_OF_MEMORY = "out_of_memory"  # device or host memory did not suffice
    TIMEOUT = "timeout"  # the worker was stopped at the case's time limit
    INCORRECT = "incorrect"  # it ran, but the output is beyond its tolerance of the reference
    ERROR = "error"  # it raised, or its process died
    SKIPPED = "skipped"  # not measured to its end; the reason says why (over the budget, say)


Kind = Literal["string", "int", "float", "bool", "floats", "strings"]


@dataclass(frozen=True)
class Column:
    """One column of the row: its name in parquet, its type, its unit (if any) and its meaning."""

    name: str
    kind: Kind
    meaning: str
    unit: str = ""


SECTIONS: dict[str, tuple[Column, ...]] = {
    "identity": (
        Column("run_id", "string", "The run this row belongs to; also the name of its folder."),
        Column(
            "case_id",
            "string",
            "Stable hash of everything that defines the work and how it is done.",
        ),
        Column(
            "workload_id",
            "string",
            "Stable hash of the work alone, on which providers are compared.",
        ),
        Column(
            "machine_id",
            "string",
            "Stable hash of the hardware: rows with different ones are never joined. GPUs of one "
            "model in one host are one machine.",
        ),
        Column(
            "suite",
            "string",
            "What is measured: `attention` (q, k, v to o), `layer` (x to y), or a whole language "
            "model: `generation`, `training` (one step) or `quality` (what a training reaches).",
        ),
        Column(
            "provider",
            "string",
            "The implementation measured; a variant follows a colon (`sdpa:cudnn`).",
        ),
        Column("provider_version", "string", "The provider's package and version."),
        Column(
            "pass", "string", "`forward`, `backward`, `forward_backward`, `decode` or `train_step`."
        ),
    ),
    "work": (
        Column("device", "string", "`cpu` or `cuda`."),
        Column(
            "dtype", "string", "Data type of q, k, v and o: `float32`, `float16` or `bfloat16`."
        ),
        Column("batch", "int", "Sequences in the batch."),
        Column("seq_len", "int", "Tokens in a sequence.", "tokens"),
        Column("q_heads", "int", "Query heads (H)."),
        Column("kv_heads", "int", "Key/value heads (K); H / K query heads share one."),
        Column("head_dim", "int", "Width of a head (D)."),
        Column("model_dim", "int", "Width of the residual stream (d); null in suite `attention`."),
        Column("layers", "int", "Blocks of the model; only where a model is measured."),
        Column(
            "task",
            "string",
            "What a model learns: `text`, `recall`, `needle`, `copy` or `arc`; only in suite "
            "`quality`.",
        ),
        Column("train_steps", "int", "Optimizer steps of a training; only in suite `quality`."),
        Column(
            "inputs",
            "string",
            "Distribution of the inputs: `normal` (independent) or `text` (real text).",
        ),
        Column("seed", "int", "Seed of the inputs and of the parameters."),
    ),
    "settings": (
        Column(
            "backend", "string", "Backend of the sparse core that ran (`blockwise`, `triton`, ...)."
        ),
        Column(
            "lists",
            "string",
            "`dense`, `exact` (query_tile 1), `hybrid` (shared and private), `shared`, or `none` "
            "(the window alone).",
        ),
        Column(
            "branches",
            "string",
            "Branches computed of `compressed,selected,sliding`; null where none is left out.",
        ),
        Column("block_size", "int", "Tokens in a selection block.", "tokens"),
        Column("compress_block", "int", "Tokens in a compression window.", "tokens"),
        Column("compress_stride", "int", "Tokens between compression windows.", "tokens"),
        Column("top_n", "int", "Selection blocks per query, forced and private ones included."),
        Column("init_blocks", "int", "Forced blocks at the start of the sequence."),
        Column("local_blocks", "int", "Forced newest blocks, the query's own included."),
        Column(
            "window",
            "int",
            "Keys of the sliding branch, the query's own included; 0 where it is left out.",
            "tokens",
        ),
        Column(
            "query_tile", "int", "Neighbouring queries that share a block list (R); 1 is exact NSA."
        ),
        Column("private_blocks", "int", "Blocks each query adds for itself (m)."),
        Column(
            "target_sparsity",
            "float",
            "Share of causal pairs asked to be left out by `--sparsity`.",
        ),
        Column(
            "variant",
            "string",
            "What an ablation changed in the provider's model or training: `name=value`, joined by "
            "commas in the order of the names; null where nothing.",
        ),
    ),
    "status": (
        Column("status", "string", "One of " + ", ".join(f"`{s.value}`" for s in Status) + "."),
        Column("reason", "string", "One line: why the status is not `ok`."),
        Column(
            "details", "string", "The traceback or the worker's last words, where there are any."
        ),
    ),
    "time": (
        Column(
            "timer",
            "string",
            "`event` (device events, cache flushed before each), `graph` (the same around replays "
            "of a CUDA graph of the call), `proton` (sum of the kernels' times, cache flushed "
            "before each call) or `wall` (host clock).",
        ),
        Column("samples_ms", "floats", "Every sample kept, in the order taken.", "ms"),
        Column("samples_at_s", "floats", "When each sample began, after the first one.", "s"),
        Column("latency_ms", "float", "Median of the samples.", "ms"),
        Column("latency_q1_ms", "float", "First quartile of the samples.", "ms"),
        Column("latency_q3_ms", "float", "Third quartile of the samples.", "ms"),
        Column("sample_count", "int", "Samples taken."),
        Column(
            "precision",
            "float",
            "Half-width of the median's 95 % interval over the median, as reached.",
        ),
        Column("warmup_count", "int", "Calls before the first sample, the first call not counted."),
        Column(
            "rest",
            "float",
            "Idle time of a GPU before a call, over the last call's duration; 0 is none.",
        ),
        Column(
            "compile_ms",
            "float",
            "Duration of the very first call: compilation and tuning included.",
            "ms",
        ),
        Column("throttled_samples", "int", "Samples taken while the device reported a slow-down."),
        Column(
            "stages_ms",
            "string",
            "JSON object: median of each stage of the call, recorded apart from the samples "
            "(`--stages`), in eager calls whatever the timer.",
            "ms",
        ),
    ),
    "memory": (
        Column(
            "peak_memory_bytes",
            "int",
            "Peak allocated above the inputs during one call of the pass (an eager one, whatever "
            "the timer).",
            "bytes",
        ),
        Column(
            "reserved_memory_bytes",
            "int",
            "Peak held by the framework's allocator (GPU only).",
            "bytes",
        ),
        Column(
            "device_memory_bytes",
            "int",
            "Used on the whole device after the case, by NVML.",
            "bytes",
        ),
    ),
    "arithmetic": (
        Column(
            "flops", "int", "Floating-point operations the case must do, in closed form.", "FLOP"
        ),
        Column("bytes", "int", "Fewest bytes it must move: inputs once, outputs once.", "bytes"),
        Column(
            "dense_flops",
            "int",
            "FLOPs of causal dense attention at the same shape and pass.",
            "FLOP",
        ),
        Column("arithmetic_intensity", "float", "flops / bytes.", "FLOP/byte"),
        Column("effective_tflops", "float", "flops over the median latency.", "TFLOP/s"),
        Column(
            "dense_equivalent_tflops", "float", "dense_flops over the median latency.", "TFLOP/s"
        ),
        Column("roofline_share", "float", "Roofline time of this work over the median latency."),
        Column(
            "ceiling_copy_gb_s",
            "float",
            "Copy bandwidth measured in this run, read and write counted.",
            "GB/s",
        ),
        Column(
            "ceiling_matmul_tflops",
            "float",
            "Matrix product rate measured in this run and dtype.",
            "TFLOP/s",
        ),
    ),
    "sparsity": (
        Column("sparsity", "float", "Measured: 1 - attended_share."),
        Column(
            "attended_share",
            "float",
            "Pairs in the union of selected and window keys over causal pairs.",
        ),
        Column("mean_blocks", "float", "Selection blocks per query, averaged."),
        Column(
            "list_overlap", "float", "Share of a query's list that its predecessor's list has too."
        ),
        Column(
            "hottest_block_share",
            "float",
            "Share of queries that chose the most chosen unforced block.",
        ),
        Column(
            "activation_rate",
            "float",
            "Share of open neurons in the synthesis layers (a model's: on held-out data).",
        ),
    ),
    "correctness": (
        Column(
            "rms_error",
            "float",
            "RMS error over the RMS of the provider's own reference, worst output.",
        ),
        Column(
            "rms_tolerance",
            "float",
            "Largest rms_error accepted; beyond it the row is `incorrect`.",
        ),
        Column(
            "dense_error",
            "float",
            "RMS distance to dense attention's output over that output's RMS.",
        ),
        Column("checked", "string", "What was compared, and on how many rows."),
    ),
    "model": (
        Column("parameters", "int", "Numbers that training changes, embeddings included."),
        Column("first_token_ms", "float", "Median time from a prompt to its first token.", "ms"),
        Column("tokens_per_s", "float", "Tokens of all sequences over the median latency.", "1/s"),
        Column(
            "cache_bytes",
            "int",
            "Keys, values, summaries and block lists that a cache holds of `seq_len` tokens.",
            "bytes",
        ),
        Column(
            "eval_loss",
            "float",
            "Cross-entropy on held-out data, over the characters that the task asks for.",
            "nats",
        ),
        Column(
            "eval_accuracy",
            "float",
            "Share of held-out answers right in every character; of a text, share of characters.",
        ),
        Column("eval_count", "int", "Held-out answers (of a text: characters) asked for."),
        Column("dead_neuron_share", "float", "Share of neurons that no held-out token opened."),
        Column("gate_compressed", "float", "Mean gate of the compressed branch on held-out data."),
        Column("gate_selected", "float", "Mean gate of the selected branch on held-out data."),
        Column("gate_sliding", "float", "Mean gate of the sliding branch on held-out data."),
    ),
    "telemetry": (
        Column(
            "sm_clock_mhz", "float", "Median SM clock while sampling (a CPU's: its clock).", "MHz"
        ),
        Column("memory_clock_mhz", "float", "Median memory clock while sampling.", "MHz"),
        Column("power_w", "float", "Median board power while sampling.", "W"),
        Column("temperature_c", "float", "Highest GPU temperature while sampling.", "degrees C"),
        Column(
            "throttle_reasons", "strings", "Clock-event reasons seen while sampling, idle left out."
        ),
        Column("samples_sm_clock_mhz", "floats", "SM clock nearest to each sample.", "MHz"),
        Column("samples_power_w", "floats", "Board power nearest to each sample.", "W"),
        Column("load_average", "float", "The host's one-minute load average when the case began."),
        Column(
            "other_cpu_share",
            "float",
            "Share of the host's CPUs that other processes kept busy meanwhile.",
        ),
        Column(
            "other_gpu_processes",
            "int",
            "Other processes that ran on the GPU meanwhile; null where NVML does not tell.",
        ),
    ),
    "provenance": (
        Column("gpu_name", "string", "GPU model as the driver names it; null on a CPU."),
        Column(
            "gpu_index",
            "int",
            "Number of the GPU among those visible to the run, from 0, as `--gpus` takes it.",
        ),
        Column("gpu_uuid_hash", "string", "Hash of the GPU's UUID."),
        Column("gpu_memory_bytes", "int", "Memory of the GPU.", "bytes"),
        Column("gpu_power_limit_w", "float", "Enforced power limit of the GPU.", "W"),
        Column("driver_version", "string", "NVIDIA driver."),
        Column("cuda_version", "string", "CUDA version torch was built with."),
        Column("cpu_name", "string", "CPU model."),
        Column("cpu_threads", "int", "Threads torch used on the CPU."),
        Column("host_memory_bytes", "int", "Memory of the host.", "bytes"),
        Column("python_version", "string", "Python."),
        Column("torch_version", "string", "torch."),
        Column("triton_version", "string", "Triton; null where it is not installed."),
        Column(
            "packages", "string", "JSON object: versions of the other packages that matter here."
        ),
        Column("git_commit", "string", "Commit of the code measured: the checkout's, or as told."),
        Column("git_dirty", "bool", "Whether the checkout had uncommitted changes."),
        Column("host_hash", "string", "Hash of the host's name."),
        Column("started_at", "string", "When the case began, UTC, ISO 8601."),
        Column("command", "string", "The exact command that repeats this one row."),
    ),
}
"""All columns by section, in the order of the file and of the column reference."""

COLUMNS: dict[str, Column] = {c.name: c for section in SECTIONS.values() for c in section}
"""All columns by name."""

_PYTHON_TYPES: dict[Kind, type[Any]] = {
    "string": str,
    "int": int,
    "float": float,
    "bool": bool,
    "floats": list,
    "strings": list,
}


MAX_OTHER_CPU_SHARE = 0.1
"""Share of the host's CPUs that others may use while a CPU is measured, unless settings differ."""


def disturbance(row: Mapping[str, Any], max_other_cpu_share: float = MAX_OTHER_CPU_SHARE) -> str:
    """What else ran on the device while the row was taken; empty where nothing is known to have.

    A CPU's load disturbs the rows of a CPU only.
    """
    others = row["other_gpu_processes"]
    if others:
        return f"{int(others)} other {'process' if others == 1 else 'processes'} used the GPU"
    share = row["other_cpu_share"]
    if row["device"] == "cpu" and share is not None and share > max_other_cpu_share:
        return f"other processes kept {100 * share:.0f} % of the CPUs busy"
    return ""


def complete_row(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return a row with every column of the schema, absent ones None.

    Non-finite floats become None, since neither JSON nor a comparison can carry them; integers are
    accepted for float columns. Raises KeyError for a column that the schema does not know,
    TypeError for a value of the wrong type and ValueError for an unknown status or an integer that
    takes more than 64 bits: a misspelt column must not vanish, and a row must fit into parquet.
    """
    unknown = sorted(set(values) - set(COLUMNS))
    if unknown:
        raise KeyError(f"columns unknown to the schema: {', '.join(unknown)}")
    row = {name: _checked(column, values.get(name)) for name, column in COLUMNS.items()}
    if row["status"] is not None:
        row["status"] = Status(row["status"]).value
    return row


def _checked(column: Column, value: Any) -> Any:
    if value is None:
        return None
    if column.kind == "float" and isinstance(value, (int, float)) and not isinstance(value, bool):
        return float(value) if math.isfinite(value) else None
    if column.kind == "int" and isinstance(value, bool):
        raise TypeError(f"column {column.name} takes int, got bool")
    expected = _PYTHON_TYPES[column.kind]
    if not isinstance(value, expected):
        raise TypeError(
            f"column {column.name} takes {column.kind}, got {type(value).__name__}: {value!r}"
        )
    if column.kind == "int" and not -(2**63) <= value < 2**63:
        raise ValueError(f"column {column.name} takes 64 bits, got {value}")
    if column.kind == "floats":
        return [float(v) for v in value]
    return list(value) if column.kind == "strings" else expected(value)


def arrow_schema() -> pyarrow.Schema:
    """The parquet schema of a run; ``dynbench.schema_version`` is in its metadata."""
    return arrow_schema_of(COLUMNS.values(), "dynbench.schema_version", SCHEMA_VERSION)


def arrow_schema_of(columns: Iterable[Column], version_key: str, version: int) -> pyarrow.Schema:
    """The parquet schema of a table with these columns; ``version_key`` is in its metadata."""
    import pyarrow as pa

    types = {
        "string": pa.string(),
        "int": pa.int64(),
        "float": pa.float64(),
        "bool": pa.bool_(),
        "floats": pa.list_(pa.float64()),
        "strings": pa.list_(pa.string()),
    }
    fields = [pa.field(c.name, types[c.kind]) for c in columns]
    return pa.schema(fields, metadata={version_key: str(version)})
