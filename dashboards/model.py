"""What the figures and tables draw: facets, panels, lines and points."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from typing import Any

import pandas as pd

from dynbench.dashboards import frame as frames
from dynbench.dashboards.labels import line_labels, order_key
from dynbench.dashboards.stages import Breakdown, breakdown
from dynbench.dashboards.text import label_text
from dynbench.dashboards.theme import Style, base_name, style_of


@dataclass(frozen=True)
class Point:
    """One length of one line; units as in the row schema, None where nothing was recorded."""

    seq_len: int
    latency_ms: float
    q1_ms: float | None
    q3_ms: float | None
    samples: int
    rows: int
    runs: int
    baseline_rows: int  # rows and samples that the speed-up is over
    baseline_samples: int
    baseline_ms: float | None = None
    speedup: float | None = None
    speedup_low: float | None = None
    speedup_high: float | None = None
    peak_memory_bytes: float | None = None
    tokens_per_s: float | None = None
    first_token_ms: float | None = None
    cache_bytes: float | None = None
    arithmetic_intensity: float | None = None
    effective_tflops: float | None = None
    dense_equivalent_tflops: float | None = None
    roofline_share: float | None = None
    sparsity: float | None = None
    rms_error: float | None = None
    rms_tolerance: float | None = None
    dense_error: float | None = None
    stages: Breakdown | None = None
    case: int = -1  # the place of its newest row among all rows of the report


@dataclass(frozen=True)
class Failure:
    """One length at which a line has a row that is not ok."""

    seq_len: int
    status: str
    reason: str
    rms_error: float | None = None
    case: int = -1


@dataclass(frozen=True)
class Line:
    """One curve: everything but the length is the same in its rows."""

    number: int
    provider: str
    lists: str
    settings: dict[str, Any]  # the values of LINE_COLUMNS; numbers are floats, NaN where none
    label: str
    style: Style
    points: tuple[Point, ...] = ()
    failures: tuple[Failure, ...] = ()

    @property
    def base(self) -> str:
        """The provider without its variant."""
        return base_name(self.provider)

    @property
    def is_sparse(self) -> bool:
        """Whether the provider attends to chosen blocks only."""
        return self.lists in ("exact", "hybrid", "shared")

    @property
    def lengths(self) -> set[int]:
        """Every length that has a row."""
        return {point.seq_len for point in self.points} | {f.seq_len for f in self.failures}

    @property
    def failed_lengths(self) -> dict[int, Failure]:
        """Failures at lengths without any ok row."""
        done = {point.seq_len for point in self.points}
        return {f.seq_len: f for f in self.failures if f.seq_len not in done}


@dataclass(frozen=True)
class Panel:
    """One pass of a facet: the lines that may be compared with one another."""

    pass_: str
    baseline: str
    lines: tuple[Line, ...]

    @property
    def lengths(self) -> list[int]:
        """Every length that has a row, ascending."""
        return sorted({seq_len for line in self.lines for seq_len in line.lengths})

    @property
    def baseline_lengths(self) -> set[int]:
        """Lengths at which the baseline has a number."""
        held = (line for line in self.lines if line.provider == self.baseline)
        return {point.seq_len for line in held for point in line.points}

    @property
    def title(self) -> str:
        """The pass in words."""
        return pass_text(self.pass_)


@dataclass(frozen=True)
class Facet:
    """Rows that may be compared: one machine, suite, shape, dtype, commit."""

    number: int
    rows: pd.DataFrame
    panels: tuple[Panel, ...]
    baseline: str = "sdpa"

    @property
    def suite(self) -> str:
        """What was measured: ``attention``, ``layer``, or a step of a model."""
        return str(self.rows["suite"].iloc[0])


def pass_text(pass_: str) -> str:
    """``forward_backward`` as ``Forward + backward``; other passes with a capital."""
    words = {"forward_backward": "forward + backward", "train_step": "train step"}
    text = words.get(pass_, label_text(pass_)) or "pass not recorded"
    return text[0].upper() + text[1:]


def runs_text(point: Point) -> str:
    """A note where rows of several runs make one point; else empty."""
    return f" [{point.runs} runs]" if point.runs > 1 else ""


def build_facets(frame: pd.DataFrame, baseline: str | None) -> list[Facet]:
    """All facets of the rows, in the order of their first row.

    ``baseline`` is the provider that speed-ups are over; None takes each facet's own (see
    ``frame.baselines``).
    """
    return facets_of(frames.prepare(frame), baseline)


def facets_of(plain: pd.DataFrame, asked: str | None) -> list[Facet]:
    """``build_facets`` of rows that ``frame.prepare`` has prepared."""
    plain = frames.of_speed(plain)
    if plain.empty:
        return []
    baselines = frames.baselines(plain, asked)
    records: dict[int, list[dict[str, Any]]] = defaultdict(list)
    columns = ["line", "facet", "pass", *frames.LINE_COLUMNS]
    for first in plain[columns].drop_duplicates("line").to_dict("records"):
        records[first["facet"]].append({str(name): value for name, value in first.items()})
    styles = _styles([record for held in records.values() for record in held])
    joined = _points(frames.points(plain, plain["facet"].map(baselines)))
    failures = _failures(plain)
    facets = []
    for number, rows in plain.groupby("facet", sort=True):
        held = records[int(str(number))]
        baseline = baselines[int(str(number))]
        labels = line_labels(held)
        by_pass: dict[str, list[Line]] = defaultdict(list)
        for record in sorted(held, key=lambda record: order_key(record, baseline)):
            line = record["line"]
            by_pass[record["pass"]].append(
                Line(
                    number=line,
                    provider=record["provider"],
                    lists=record["lists"],
                    settings={name: record[name] for name in frames.LINE_COLUMNS},
                    label=labels[line],
                    style=styles[record["provider"], _variant(record)],
                    points=tuple(joined.get(line, ())),
                    failures=tuple(failures.get(line, ())),
                )
            )
        panels = [
            Panel(pass_, baseline, tuple(by_pass[pass_]))
            for pass_ in sorted(by_pass, key=pass_rank)
        ]
        facets.append(Facet(int(str(number)), rows, tuple(panels), baseline))
    return facets


def pass_rank(pass_: str) -> tuple[int, str]:
    """Sorts passes: the known ones in their order, then others by name."""
    known = frames.PASS_ORDER
    return (known.index(pass_) if pass_ in known else len(known), pass_)


def _variant(record: dict[str, Any]) -> tuple[str, ...]:
    """What makes a variant of a provider: everything of the line but versions."""
    asked = not pd.isna(record["target_sparsity"])  # then top_n is solved, and differs by length
    names = [n for n in frames.LINE_COLUMNS if n not in ("provider", "backend", "provider_version")]
    return tuple("" if n == "top_n" and asked else str(record[n]) for n in names)


def _styles(records: list[dict[str, Any]]) -> dict[tuple[str, tuple[str, ...]], Style]:
    """Dash and marker by variant, counted per base name over the whole report."""
    seen: dict[str, dict[tuple[str, tuple[str, ...]], None]] = defaultdict(dict)
    for record in sorted(records, key=lambda record: order_key(record, "")):
        seen[base_name(record["provider"])].setdefault((record["provider"], _variant(record)))
    return {
        key: style_of(key[0], index)
        for variants in seen.values()
        for index, key in enumerate(variants)
    }


def _points(records: pd.DataFrame) -> dict[int, list[Point]]:
    result: dict[int, list[Point]] = defaultdict(list)
    for row in records.to_dict("records"):
        q1_ms, q3_ms = frames.number(row["latency_q1_ms"]), frames.number(row["latency_q3_ms"])
        result[row["line"]].append(
            Point(
                seq_len=int(row["length"]),
                latency_ms=float(row["latency_ms"]),
                q1_ms=q1_ms,
                q3_ms=q3_ms,
                samples=int(row["sample_count"]),
                rows=int(row["rows"]),
                runs=int(row["runs"]),
                baseline_rows=int(row["baseline_rows"]),
                baseline_samples=int(row["baseline_samples"]),
                stages=breakdown(row["stages"], float(row["latency_ms"])),
                case=int(row["case"]),
                **{
                    name: frames.number(row[name])
                    for name in (
                        "baseline_ms",
                        "speedup",
                        "speedup_low",
                        "speedup_high",
                        "peak_memory_bytes",
                        "tokens_per_s",
                        "first_token_ms",
                        "cache_bytes",
                        "arithmetic_intensity",
                        "effective_tflops",
                        "dense_equivalent_tflops",
                        "roofline_share",
                        "sparsity",
                        "rms_error",
                        "rms_tolerance",
                        "dense_error",
                    )
                },
            )
        )
    return result


def _failures(plain: pd.DataFrame) -> dict[int, list[Failure]]:
    """The newest failure of each line, length and status."""
    result: dict[int, list[Failure]] = defaultdict(list)
    failed = plain[(plain["status"] != "ok") & (plain["length"] > 0)]
    failed = failed.drop_duplicates(["line", "length", "status"], keep="last")
    columns = ["line", "length", "status", "reason", "rms_error"]
    for case, line, length, status, reason, rms_error in failed[columns].itertuples():
        error = frames.number(rms_error)
        result[line].append(Failure(int(length), status, reason, error, case))
    return result
