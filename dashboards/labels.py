"""Names of lines, facets and settings, built from what differs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from dynbench.dashboards.frame import (
    FACET_COLUMNS,
    LINE_COLUMNS,
    QUALITY_FACET_COLUMNS,
    QUALITY_SUITE,
    distinct,
)
from dynbench.dashboards.text import branches_text, label_text, length_text, plain_text
from dynbench.dashboards.theme import base_name

_PROVIDER_ORDER = ("sdpa", "flash", "flex", "nsa", "fla", "dynsiha", "dynnsiha")
_LISTS_ORDER = ("", "dense", "exact", "hybrid", "shared")
_SPOKEN = {
    "top_n": "top {}",
    "window": "window {}",
    "block_size": "block {}",
    "compress_block": "summary {}",
    "compress_stride": "stride {}",
    "init_blocks": "{} initial",
    "local_blocks": "{} local",
    "backend": "{}",
    "provider_version": "{}",
    "query_tile": "R={}",
    "private_blocks": "m={}",
    "variant": "{}",
}
_TITLE_COLUMNS = {  # facet columns that a title names only where they differ
    "inputs": "{} inputs",
    "model_dim": "width {}",
    "layers": "{} layers",
    "timer": "{} timer",
    "key_rest": "rest {} between calls",
    "cpu_threads": "{} threads",
    "gpu_power_limit_w": "{} W",
    "driver_version": "driver {}",
    "torch_version": "torch {}",
    "triton_version": "triton {}",
    "device": "{}",
}


def lists_text(settings: Mapping[str, Any]) -> str:
    """How block lists are made: ``exact``, ``R=16 m=2`` (hybrid), ``R=16 shared`` or ``dense``."""
    lists = settings["lists"]
    if lists not in ("hybrid", "shared"):
        return str(lists)
    tile = f"R={value_text(settings['query_tile']) or '?'}"
    if lists == "shared":
        return f"{tile} shared"
    return f"{tile} m={value_text(settings['private_blocks']) or '?'}"


def line_labels(records: list[dict[str, Any]]) -> dict[int, str]:
    """The label of each line of a facet by its number, short and unique within a pass.

    ``records`` hold ``line``, ``pass`` and the columns of LINE_COLUMNS, one per line.

    Block lists are always named where they are not dense and the provider has several kinds, or is
    not plain NSA, branches where one is left out, and what an ablation changed; other settings are
    named where they differ between the provider's lines.
    """
    by_provider: dict[str, list[dict[str, Any]]] = {}
    for record in records:
        by_provider.setdefault(record["provider"], []).append(record)
    kinds = {p: len(distinct(map(lists_text, lines))) for p, lines in by_provider.items()}
    varying = {p: _varying_settings(lines) for p, lines in by_provider.items()}
    labels = {r["line"]: _label(r, kinds[r["provider"]], varying[r["provider"]]) for r in records}
    counts = Counter((r["pass"], labels[r["line"]]) for r in records)
    seen: Counter[tuple[str, str]] = Counter()
    for record in records:  # equal labels remain only where a long one was cut
        key = (record["pass"], labels[record["line"]])
        seen[key] += 1
        if counts[key] > 1:
            labels[record["line"]] += f" #{seen[key]}"
    return {int(line): label for line, label in labels.items()}


def settings_text(settings: Mapping[str, Any]) -> str:
    """The sparsity setting of a line in words, such as ``top 16 blocks of 64, window 512``."""
    target = settings["target_sparsity"]
    parts = []
    if not pd.isna(target):
        parts.append(f"asked sparsity {value_text(target)}")
    elif not pd.isna(settings["top_n"]):
        block = value_text(settings["block_size"])
        parts.append(f"top {value_text(settings['top_n'])} blocks{f' of {block}' if block else ''}")
    if settings["branches"]:
        parts.append(f"branches {branches_text(settings['branches'])} alone")
    if settings["window"] > 0:  # 0 where that branch is left out
        parts.append(f"window {value_text(settings['window'])}")
    return ", ".join(parts)


def order_key(settings: Mapping[str, Any], baseline: str) -> tuple[Any, ...]:
    """Sorts lines: the baseline, the known providers, the user's; then lists and settings."""
    provider = settings["provider"]
    base = base_name(provider)
    known = _PROVIDER_ORDER
    lists = settings["lists"]
    numbers = [
        -1.0 if pd.isna(settings[name]) else float(settings[name])
        for name in ("query_tile", "private_blocks", "target_sparsity", "top_n", "window")
    ]
    return (
        provider != baseline,
        known.index(base) if base in known else len(known),
        provider,
        _LISTS_ORDER.index(lists) if lists in _LISTS_ORDER else len(_LISTS_ORDER),
        settings["branches"] != "",
        *numbers,
        str([settings[name] for name in LINE_COLUMNS]),
    )


def machine_text(row: Mapping[str, Any]) -> str:
    """The hardware in words."""
    if row["device"] == "cuda" or (row["gpu_name"] and row["device"] != "cpu"):
        return label_text(row["gpu_name"] or "GPU without a name")
    return label_text(row["cpu_name"] or "machine without a name")


def machine_names(firsts: Sequence[Mapping[str, Any]]) -> list[str]:
    """The machine of each facet in words; those of one name are told apart by their numbers."""
    names = [machine_text(first) for first in firsts]
    ids: dict[str, set[str]] = {}
    for name, first in zip(names, firsts, strict=True):
        ids.setdefault(name, set()).add(str(first["machine_id"]))
    return [
        name if len(ids[name]) == 1 else f"{name} ({label_text(first['machine_id'])[:8]})"
        for name, first in zip(names, firsts, strict=True)
    ]


def shape_text(row: Mapping[str, Any]) -> str:
    """Heads and batch: ``64/4 heads of 128, batch 1``."""
    names = ("q_heads", "kv_heads", "head_dim")
    queries, keys, width = (value_text(row[name]) or "?" for name in names)
    batch = value_text(row["batch"])
    return f"{queries}/{keys} heads of {width}{f', batch {batch}' if batch else ''}"


def facet_titles(firsts: Sequence[Mapping[str, Any]]) -> list[str]:
    """A title per facet, from its first row: what always matters, then what tells equals apart."""
    titles = [_short_title(first) for first in firsts]
    alike: dict[str, list[int]] = {}
    for place, title in enumerate(titles):
        alike.setdefault(title, []).append(place)
    for places in alike.values():
        of_quality = firsts[places[0]]["suite"] == QUALITY_SUITE  # then of all: titles name it
        columns = QUALITY_FACET_COLUMNS if of_quality else FACET_COLUMNS
        varying = {n for n in columns if len({str(firsts[p][n]) for p in places}) > 1}
        for place in places:
            titles[place] += "".join(f" · {part}" for part in _differences(firsts[place], varying))
    return titles


def _short_title(first: Mapping[str, Any]) -> str:
    parts = (
        machine_text(first),
        label_text(first["suite"]),
        *(_training_title(first) if first["suite"] == QUALITY_SUITE else ()),
        shape_text(first),
        label_text(first["dtype"]),
    )
    return " · ".join(part for part in parts if part)


def _training_title(first: Mapping[str, Any]) -> tuple[str, ...]:
    """What keeps trainings apart: task, length, steps and size."""
    length = length_text(None if pd.isna(first["seq_len"]) else float(first["seq_len"]))
    steps, layers, width = (value_text(first[n]) for n in ("train_steps", "layers", "model_dim"))
    size = " of ".join(part for part in (f"{layers} layers" if layers else "", width) if part)
    return (
        label_text(first["task"]),
        f"{length} tokens" if length else "",
        f"{steps} steps" if steps else "",
        size,
    )


def _differences(first: Mapping[str, Any], varying: set[str]) -> list[str]:
    parts = [
        words.format(shown)
        for name, words in _TITLE_COLUMNS.items()
        if name in varying and (shown := value_text(first[name]))
    ]
    if varying & {"git_commit", "git_dirty"}:
        parts.append(commit_text(first["git_commit"], first["git_dirty"]))
    if "machine_id" in varying:
        parts.append(f"machine {label_text(first['machine_id'])[:8]}")
    return parts


def commit_text(commit: str, dirty: str) -> str:
    """A commit in short, with a note of uncommitted changes."""
    if not commit:
        return "no commit"
    changes = {"True": " + changes", "False": ""}.get(dirty, " (changes unknown)")
    return f"commit {label_text(commit)[:10]}{changes}"


def value_text(value: Any) -> str:
    """A setting's value: whole numbers without a point, empty for missing."""
    if isinstance(value, str):
        return label_text(value)
    if pd.isna(value):
        return ""
    return str(int(value)) if float(value).is_integer() else plain_text(float(value), 4)


def _label(record: Mapping[str, Any], kinds: int, varying: set[str]) -> str:
    """``kinds`` of lists and the settings that differ are counted over the provider's lines."""
    parts = [label_text(record["provider"])]
    if _names_lists(record, kinds):
        parts.append(lists_text(record))
    if record["branches"] not in ("", record["provider"]):  # `sliding` says it in its name
        parts.append(branches_text(record["branches"]))
    asked = not pd.isna(record["target_sparsity"])
    if asked:
        parts.append(f"sparsity {value_text(record['target_sparsity'])}")
    in_lists = ("query_tile", "private_blocks") if record["lists"] in ("hybrid", "shared") else ()
    for name, words in _SPOKEN.items():
        shown = _setting_text(record, name)
        told = name in in_lists or (name == "top_n" and asked)
        if shown and (name in varying or name == "variant") and not told:
            parts.append(words.format(shown))
    return label_text(" · ".join(parts))


def _setting_text(record: Mapping[str, Any], name: str) -> str:
    """``value_text``; empty for the window of a line without that branch, which names its own."""
    return "" if name == "window" and record[name] == 0 else value_text(record[name])


def _names_lists(record: Mapping[str, Any], kinds: int) -> bool:
    if record["lists"] in ("hybrid", "shared"):
        return True
    if record["lists"] == "exact" and base_name(record["provider"]) != "nsa":
        return True
    return bool(record["lists"]) and kinds > 1


def _varying_settings(lines: list[dict[str, Any]]) -> set[str]:
    """Settings with several values; R and m count among exact lists only, where they are odd."""
    exact = [line for line in lines if line["lists"] not in ("hybrid", "shared")]
    return {
        name
        for name in _SPOKEN
        if len(
            distinct(
                _setting_text(line, name)
                for line in (exact if name in ("query_tile", "private_blocks") else lines)
            )
        )
        > 1
    }
