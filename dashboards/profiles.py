"""Profiles of calls: the kernels by time as each tool saw them, in the terminal and in the report.

Reads rows of the profile schema; tools that gave nothing are named with their reason.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from dynbench.dashboards.tables import Group, Table
from dynbench.dashboards.text import (
    bytes_text,
    cell_text,
    command_text,
    count_text,
    label_text,
    length_text,
    number_text,
    percent_text,
    plain_text,
    time_text,
)

if TYPE_CHECKING:
    from rich.table import Table as RichTable

Record = Mapping[str, Any]

KERNELS_SHOWN = 15
"""Kernels of each tool in a table; what is beyond them is one more line."""

_NAME, _TIME = "kernel", "time (ms)"
_CELLS: dict[str, Callable[[Record], str]] = {
    _NAME: lambda row: label_text(row["kernel"]),
    "calls": lambda row: plain_text(row["calls"], 4),
    _TIME: lambda row: number_text(row["time_ms"]),
    "share": lambda row: percent_text(row["share"]),
    "registers": lambda row: _whole(row["registers"]),
    "shared memory": lambda row: _sized(row["shared_bytes"]),
    "DRAM read": lambda row: _sized(row["dram_read_bytes"]),
    "DRAM written": lambda row: _sized(row["dram_write_bytes"]),
    "DRAM rate (GB/s)": lambda row: number_text(_dram_gb_s(row)),
}


@dataclass(frozen=True)
class ProfileView:
    """One profile as readers see it."""

    machine_id: str
    case_id: str
    title: str
    facts: tuple[str, ...]  # of the whole call, a sentence each
    table: Table | None  # a group of rows for each tool; None where no tool saw a kernel
    absent: tuple[str, ...]  # tools without numbers, each with its reason
    command: str


def profile_views(
    rows: Iterable[Record], case_ids: Iterable[str] | None = None
) -> list[ProfileView]:
    """The profiles that rows make, in their order: those of ``case_ids``, or all."""
    wanted = None if case_ids is None else set(case_ids)
    profiles: dict[str, list[Record]] = {}
    for row in rows:
        if wanted is None or row["case_id"] in wanted:
            profiles.setdefault(row["profile_id"], []).append(row)
    return [_view(profile) for profile in profiles.values()]


def kernels_table(view: ProfileView) -> RichTable | None:
    """The kernels of a profile for the terminal; None where no tool saw one."""
    from rich.table import Table as RichTable
    from rich.text import Text

    if view.table is None:
        return None
    shown = RichTable(box=None, header_style="bold", pad_edge=False)
    for place, column in enumerate(view.table.columns):
        if place < 2:
            shown.add_column(column, overflow="fold", no_wrap=not place)
        else:
            shown.add_column(column, justify="right", no_wrap=True)
    for group in view.table.groups:
        for place, cells in enumerate(group.rows):
            shown.add_row(*map(Text, ("" if place else group.header, *cells)))
    return shown


def _view(rows: Sequence[Record]) -> ProfileView:
    title = _title(rows[0])
    absent = [f"{row['tool']}: {cell_text(row['reason'])}" for row in rows if row["reason"]]
    by_tool: dict[str, list[Record]] = {}
    for row in rows:
        if row["kernel"] is not None:
            by_tool.setdefault(row["tool"], []).append(row)
    return ProfileView(
        machine_id=rows[0]["machine_id"] or "",
        case_id=rows[0]["case_id"],
        title=title,
        facts=tuple(_facts(by_tool, rows[0])),
        table=_table(by_tool, title) if by_tool else None,
        absent=tuple(absent),
        command=command_text(rows[0]["command"] or ""),
    )


def _title(row: Record) -> str:
    """What was profiled, where and when."""
    parts = [f"{row['provider']} {row['pass']}", f"T={length_text(row['seq_len'])}"]
    heads = [row[name] for name in ("q_heads", "kv_heads", "head_dim")]
    parts += ["/".join(map(str, heads))] if None not in heads else []
    parts += [str(row["dtype"])]
    named = {"top_n": "top-n", "query_tile": "R", "private_blocks": "m"}
    parts += [f"{short} {row[name]}" for name, short in named.items() if row[name] is not None]
    device = row["gpu_name"] or row["cpu_name"] or row["device"]
    return label_text(f"{row['suite']}/{' '.join(parts)}") + f" on {label_text(str(device))}"


def _facts(by_tool: Mapping[str, Sequence[Record]], row: Record) -> Iterable[str]:
    if row["call_ms"] is not None:
        yield f"One call takes {time_text(row['call_ms'])} without a profiler."
    for tool, kernels in by_tool.items():
        what = "operators called" if kernels[0]["kind"] == "operator" else "kernels launched"
        whole_ms = sum(kernel["time_ms"] for kernel in kernels)
        launches = sum(kernel["calls"] for kernel in kernels)
        yield f"{tool}: {what}: {plain_text(launches, 6)}, together {time_text(whole_ms)}."
    achieved = {kernel["achieved_intensity"] for found in by_tool.values() for kernel in found}
    for intensity in achieved - {None}:
        yield (
            f"Arithmetic intensity: {number_text(intensity)} FLOP/byte of DRAM traffic counted, "
            f"{number_text(row['arithmetic_intensity'])} if each input and output moved once."
        )


def _table(by_tool: Mapping[str, Sequence[Record]], title: str) -> Table:
    groups = {tool: _shortened(kernels) for tool, kernels in by_tool.items()}
    everything = [row for rows in groups.values() for row in rows]
    columns = [name for name, cell in _CELLS.items() if any(map(cell, everything))]
    return Table(
        f"Kernels of one call by time, {title}",
        ("tool", *columns),
        tuple(
            Group(tool, tuple(tuple(_CELLS[name](row) for name in columns) for row in rows))
            for tool, rows in groups.items()
        ),
        text=(_NAME,),
    )


def _shortened(kernels: Sequence[Record]) -> list[Record]:
    """The first kernels, and the sum of the others."""
    shown, others = list(kernels[:KERNELS_SHOWN]), kernels[KERNELS_SHOWN:]
    if others:
        summed = ("calls", "time_ms", "share", "dram_read_bytes", "dram_write_bytes")
        last: dict[str, Any] = dict.fromkeys(others[0])
        last |= {name: _sum([row[name] for row in others]) for name in summed}
        shown.append(last | {"kernel": f"{count_text(len(others), 'other')}"})
    return shown


def _sum(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) if len(known) == len(values) else None


def _dram_gb_s(row: Record) -> float | None:
    moved = _sum([row["dram_read_bytes"], row["dram_write_bytes"]])
    return moved / row["time_ms"] / 1e6 if moved is not None and row["time_ms"] else None


def _whole(value: int | None) -> str:
    return "" if value is None else str(value)


def _sized(size_bytes: float | None) -> str:
    return bytes_text(size_bytes, plain_text)
