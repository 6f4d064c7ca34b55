"""From the frame of rows to what may be drawn together.

A *facet* is everything that must be equal before two rows may stand in one figure: machine and
its software, commit, suite, shape, dtype, inputs and timer. Within a facet each pass has a panel,
and a panel has *lines*: rows that differ in sequence length (and repetition) only.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from typing import Any

import numpy as np
import pandas as pd

from dynbench.dashboards.stages import joined_stages
from dynbench.harness.schema import COLUMNS

FACET_COLUMNS = (
    "machine_id",
    "device",
    "gpu_name",
    "cpu_name",
    "cpu_threads",
    "gpu_power_limit_w",
    "driver_version",
    "torch_version",
    "triton_version",
    "git_commit",
    "git_dirty",
    "suite",
    "dtype",
    "batch",
    "q_heads",
    "kv_heads",
    "head_dim",
    "model_dim",
    "layers",
    "inputs",
    "timer",
    "key_rest",
)
"""Rows that differ in one of these never share a figure, nor a speed-up."""

_OF_SPEED = ("machine_id", "cpu_threads", "gpu_power_limit_w", "driver_version", "key_rest")
QUALITY_FACET_COLUMNS = tuple(name for name in FACET_COLUMNS if name not in _OF_SPEED)
"""The same for trainings: what is learned does not depend on what makes one card fast alone."""

LINE_COLUMNS = (
    "provider",
    "lists",
    "branches",
    "query_tile",
    "private_blocks",
    "target_sparsity",
    "top_n",
    "window",
    "block_size",
    "compress_block",
    "compress_stride",
    "init_blocks",
    "local_blocks",
    "variant",
    "backend",
    "provider_version",
)
"""Within a facet and pass, rows that differ in one of these never share a line."""

_BUDGET = ("branches", "target_sparsity", "top_n", "window", "block_size")
"""What says how much a query selects, however its lists are chosen and shared."""

QUALITY_SUITE = "quality"
"""Its rows tell what a training reaches: the figures of speed leave them out."""

DEFAULT_BASELINES = ("sdpa", "flash", "flex")
"""Where no baseline is asked for, the first of these that a facet has numbers of."""

PASS_ORDER = ("forward", "backward", "forward_backward", "decode", "train_step")

_POINT_AGGREGATES = {  # column: how rows of one line and length (repeated runs) become a point
    "latency_ms": "median",
    "latency_q1_ms": "min",
    "latency_q3_ms": "max",
    "sample_count": "sum",
    "peak_memory_bytes": "max",
    "tokens_per_s": "median",
    "first_token_ms": "median",
    "cache_bytes": "max",
    "arithmetic_intensity": "median",
    "effective_tflops": "median",
    "dense_equivalent_tflops": "median",
    "roofline_share": "median",
    "sparsity": "median",
    "rms_error": "max",
    "rms_tolerance": "min",
    "dense_error": "max",
    "baseline_ms": "median",
    "speedup": "median",
    "speedup_low": "min",
    "speedup_high": "max",
}

_BASELINE_AGGREGATES = {  # how rows of the baseline become what other rows are compared with
    "baseline_ms": ("latency_ms", "median"),
    "baseline_q1_ms": ("latency_q1_ms", "min"),
    "baseline_q3_ms": ("latency_q3_ms", "max"),
    "baseline_samples": ("sample_count", "sum"),
    "baseline_rows": ("latency_ms", "size"),
}


def prepare(frame: pd.DataFrame) -> pd.DataFrame:
    """The frame with every column of the schema in a plain type, and five more.

    Numbers become float64 (missing: NaN), truth values and text become text (missing: ""), lists
    of numbers stay as they are. The columns ``facet`` and ``line`` number the groups from 0 in the
    order of their first row (-1 in rows of suite ``quality``); ``length`` is ``seq_len`` with -1
    for none, ``key_top_n`` is ``top_n`` except where ``--sparsity`` solved it, and ``key_rest`` is
    ``rest``, known in every row.
    """
    plain = pd.DataFrame(
        {name: _plain_column(frame, name, column.kind) for name, column in COLUMNS.items()},
        index=pd.RangeIndex(len(frame)),
    )
    plain["key_top_n"] = plain["top_n"].where(plain["target_sparsity"].isna())
    plain["length"] = plain["seq_len"].fillna(-1.0)
    plain["key_rest"] = _known_rest(plain)
    quality = plain["suite"] == QUALITY_SUITE
    plain["facet"] = _group_numbers(plain[~quality], FACET_COLUMNS).reindex(plain.index)
    plain["facet"] = plain["facet"].fillna(-1).astype("int64")
    keys = [_key(name) for name in LINE_COLUMNS]
    for late in ("backend", "provider_version"):  # rows that failed before these were known
        others = [
            "facet",
            "pass",
            *(key for key in keys if key not in ("backend", "provider_version")),
        ]
        plain[late] = plain[late].where(quality, _fill_where_unique(plain, late, others))
    plain["line"] = _group_numbers(plain, ("facet", "pass", *keys))
    plain.loc[quality, "line"] = -1
    return plain


def of_speed(plain: pd.DataFrame) -> pd.DataFrame:
    """The rows that stand in a facet: all but those of suite ``quality``."""
    return plain[plain["facet"] >= 0]


def baselines(plain: pd.DataFrame, asked: str | None) -> dict[int, str]:
    """The baseline of each facet: the one asked for, else the first of ``DEFAULT_BASELINES``.

    Without any of them it is a dense provider that has numbers, else the first of the defaults.
    """
    facets = plain["facet"].unique()
    if asked is not None:
        return dict.fromkeys(map(int, facets), _text(asked))
    found = dict.fromkeys(map(int, facets), DEFAULT_BASELINES[0])
    held = measured(plain)[["facet", "provider", "lists"]].drop_duplicates()
    for facet, rows in held.groupby("facet"):
        dense = sorted(rows.loc[rows["lists"] == "dense", "provider"])
        known = [name for name in DEFAULT_BASELINES if name in set(rows["provider"])]
        found[int(str(facet))] = next(iter([*known, *dense]), DEFAULT_BASELINES[0])
    return found


def points(plain: pd.DataFrame, baseline: str | pd.Series) -> pd.DataFrame:
    """One record per line and length with a number: rows of repeated runs joined.

    Medians of medians and of speed-ups, the widest quartiles, the sum of samples, the largest
    memory and error, medians of ``stages``; ``rows`` and ``runs`` count what was joined, ``case``
    is the place of the newest, ``baseline_rows`` and ``baseline_samples`` count what the speed-up
    is over. Only ``ok`` rows count: an output beyond its tolerance has no speed.
    """
    place = ["line", "length"]
    ok = measured(plain)
    own = baseline if isinstance(baseline, str) else baseline.loc[ok.index]
    rows = with_speedups(ok, own)
    grouped = rows.groupby(place, sort=True)
    result = grouped.agg(_POINT_AGGREGATES)
    result["rows"], result["runs"] = grouped.size(), grouped["run_id"].nunique()
    result["case"] = rows.index.to_series().groupby([rows[name] for name in place]).max()
    texts: dict[tuple[int, float], list[str]] = defaultdict(list)
    for line, length, text in zip(*(rows[c].tolist() for c in (*place, "stages_ms")), strict=True):
        texts[line, length].append(text)
    stages = [joined_stages(texts[key]) for key in result.index]
    result["stages"] = pd.Series(stages, index=result.index, dtype=object)
    used = rows.drop_duplicates([*place, "baseline_run"]).groupby(place)
    for name in ("baseline_rows", "baseline_samples"):
        result[name] = used[name].sum()
    return result.reset_index()


def with_speedups(rows: pd.DataFrame, baseline: str | pd.Series) -> pd.DataFrame:
    """``rows`` with their speed-up over the baseline and its range, NaN where there is none.

    ``baseline`` is a provider, or one for each row. A row is compared with the baseline of its own
    run, and with that of all runs joined only where its run has none (``baseline_run`` is "" then):
    a machine's speed drifts between runs. ``speedup_low`` and ``speedup_high`` put the quartiles
    against each other, the least and the most favourable way; a missing quartile counts as the
    median. Where the baseline has several lines, a row's is the one that selects as much as it does
    (``_BUDGET``); where that is none, or several such as exact and shared lists, it has none.
    """
    rows, reference = _with_pairs(rows, rows["provider"] == baseline)
    place = ["facet", "pass", "length", "pair"]
    own, pooled = (
        rows[by].join(reference.groupby(by).agg(**_BASELINE_AGGREGATES), on=by)
        for by in ([*place, "run_id"], place)
    )
    has_own = own["baseline_ms"].notna()
    found = pd.concat([own[has_own], pooled[~has_own]]).sort_index()[list(_BASELINE_AGGREGATES)]
    result = rows.drop(columns="pair").join(found)
    result["baseline_run"] = rows["run_id"].where(has_own, "")
    own_ms, baseline_ms = result["latency_ms"], result["baseline_ms"]
    result["speedup"] = baseline_ms / own_ms
    for end, of_baseline, of_own in (("low", "q1", "q3"), ("high", "q3", "q1")):
        above = _positive_or(result[f"baseline_{of_baseline}_ms"], baseline_ms)
        below = _positive_or(result[f"latency_{of_own}_ms"], own_ms)
        result[f"speedup_{end}"] = above / below
    return result


def _with_pairs(rows: pd.DataFrame, of_baseline: pd.Series) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The rows with a number ``pair``, and those of the baseline that rows of this pair may have.

    It is 0 where the baseline has one line, so that all rows there are compared with it.
    """
    place = ["facet", "pass", "length"]
    lines = rows[of_baseline].groupby(place)["line"].nunique().rename("lines")
    several = rows[place].join(lines, on=place)["lines"] > 1
    budget = rows.groupby([_key(name) for name in _BUDGET], dropna=False, sort=False).ngroup() + 1
    rows = rows.assign(pair=budget.where(several, 0))
    reference = rows[of_baseline]
    alone = reference.groupby([*place, "pair"])["line"].transform("nunique") == 1
    return rows, reference[alone]


def measured(plain: pd.DataFrame) -> pd.DataFrame:
    """The ``ok`` rows of speed that have a length and a latency."""
    plain = of_speed(plain)
    ok = (plain["status"] == "ok") & (plain["length"] > 0) & (plain["latency_ms"] > 0)
    return plain[ok]


def distinct(values: Iterable[Any]) -> list[Any]:
    """The distinct values but None, NaN and empty text, in the order of their first place."""
    values = values.unique().tolist() if isinstance(values, pd.Series) else values
    known = (value for value in values if value is not None and value == value and value != "")
    return list(dict.fromkeys(known))


def number(value: float) -> float | None:
    """``value``, or None for NaN."""
    return float(value) if value == value else None


def _key(name: str) -> str:
    return "key_top_n" if name == "top_n" else name


def _plain_column(frame: pd.DataFrame, name: str, kind: str) -> pd.Series:
    index = pd.RangeIndex(len(frame))
    if name not in frame:
        return pd.Series(float("nan") if kind in ("int", "float") else "", index=index)
    column = frame[name]
    if kind in ("int", "float"):
        numbers = pd.to_numeric(column, errors="coerce")
        values = pd.Series(numbers.to_numpy("float64", na_value=float("nan")), index=index)
        return values.where(values.abs() < float("inf"))
    if kind == "floats":
        return pd.Series(column.to_numpy(dtype=object), index=index, dtype=object)
    if kind == "strings":
        return pd.Series([_list_text(value) for value in column], index=index, dtype=object)
    texts = [value if type(value) is str else _text(value) for value in column.to_numpy(object)]
    codes, distinct_texts = pd.factorize(np.array(texts, dtype=object))
    shown = np.array([*map(_text, distinct_texts)], dtype=object)  # most come again and again
    return pd.Series(shown[codes], index=index, dtype=object)


def _list_text(values: Any) -> str:
    if values is None or values is pd.NA or isinstance(values, float):
        return ""
    return ", ".join(_text(value) for value in values)


def _text(value: Any) -> str:
    """The value as text that UTF-8 can hold (half a surrogate pair is spelt out); "" for none."""
    if value is None or value is pd.NA or value is pd.NaT or value != value:
        return ""
    text = str(value)
    return text if text.isascii() else text.encode("utf-8", "backslashreplace").decode()


def _known_rest(plain: pd.DataFrame) -> pd.Series:
    """Rests as measured; older rows had none, and rows that failed early take what all others have.

    A card that rests between calls runs at another clock than one under load.
    """
    rest = plain["rest"].where(plain["rest"].notna() | (plain["status"] != "ok"), 0.0)
    known = rest.dropna().unique()
    return rest.fillna(known[0] if len(known) == 1 else 0.0)


def _group_numbers(frame: pd.DataFrame, columns: Iterable[str]) -> pd.Series:
    return frame.groupby(list(columns), dropna=False, sort=False).ngroup()


def _fill_where_unique(frame: pd.DataFrame, name: str, others: list[str]) -> pd.Series:
    """``name`` with "" replaced where the rows equal in ``others`` know exactly one value."""
    group = _group_numbers(frame, others)
    known = frame[name] != ""
    values = frame[name][known].groupby(group[known]).agg(["nunique", "first"])
    only = values.loc[values["nunique"] == 1, "first"]
    found = dict(only.items())
    return frame[name].where(known, group.map(lambda number: found.get(number, "")))


def _positive_or(values: pd.Series, others: pd.Series) -> pd.Series:
    return values.where(values > 0, others)
