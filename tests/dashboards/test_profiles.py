"""Profiles as tables, in the terminal and on the page."""

from __future__ import annotations

import io
import re

import pandas as pd
import pytest
from rich.console import Console

from dynbench.dashboards.profiles import KERNELS_SHOWN, kernels_table, profile_views
from dynbench.dashboards.report import write_report
from dynbench.harness.profile.schema import PROFILE_COLUMNS
from dynbench.harness.schema import complete_row

MIB = 2**20


def row(tool: str, kernel: str | None = None, **values: object) -> dict:
    case = {"profile_id": "one", "case_id": "c1", "suite": "attention", "provider": "dynnsiha"}
    case |= {"pass": "forward", "seq_len": 8192, "dtype": "bfloat16", "query_tile": 4}
    case |= {"gpu_name": "NVIDIA H100", "call_ms": 2.0, "arithmetic_intensity": 800.0}
    case |= {"command": "dynbench profile --seq 8k", "kind": kernel and "kernel"}
    return dict.fromkeys(PROFILE_COLUMNS) | case | {"tool": tool, "kernel": kernel} | values


ROWS = [
    row("torch", "tiles", calls=1.0, time_ms=1.5, share=0.75, registers=168, shared_bytes=66560),
    row("torch", "lists", calls=2.0, time_ms=0.5, share=0.25, registers=40, shared_bytes=0),
    row("proton", reason="triton.profiler cannot be imported"),
    row(
        *("ncu", "tiles"),
        calls=1.0,
        time_ms=2.0,
        share=1.0,
        achieved_intensity=400.0,
        dram_read_bytes=3e9,
        dram_write_bytes=1e9,
    ),
]


def terminal(rows: list[dict]) -> str:
    (view,) = profile_views(rows)
    console = Console(file=io.StringIO(), width=200)
    console.print(kernels_table(view))
    return console.file.getvalue()


def test_kernels_stand_by_tool_with_their_units():
    lines = [re.split(r"  +", line.strip()) for line in terminal(ROWS).splitlines()]
    assert lines[0] == [
        *("tool", "kernel", "calls", "time (ms)", "share", "registers", "shared memory"),
        *("DRAM read", "DRAM written", "DRAM rate (GB/s)"),
    ]
    assert lines[1] == ["torch", "tiles", "1", "1.50", "75.0 %", "168", "65 KiB"]
    assert lines[2] == ["lists", "2", "0.500", "25.0 %", "40", "0 B"]
    assert lines[3] == ["ncu", "tiles", "1", "2.00", "100 %", "2.79 GiB", "954 MiB", "2000"]


def test_what_is_said_of_the_whole_call():
    (view,) = profile_views(ROWS)
    assert view.title == "attention/dynnsiha forward T=8k bfloat16 R 4 on NVIDIA H100"
    assert view.facts == (
        "One call takes 2.00 ms without a profiler.",
        "torch: kernels launched: 3, together 2.00 ms.",
        "ncu: kernels launched: 1, together 2.00 ms.",
        "Arithmetic intensity: 400 FLOP/byte of DRAM traffic counted, "
        "800 if each input and output moved once.",
    )
    assert view.absent == ("proton: triton.profiler cannot be imported",)


def test_a_long_list_ends_in_the_sum_of_the_others():
    many = [
        row("torch", f"k{i}", calls=1.0, time_ms=1.0, share=0.05) for i in range(KERNELS_SHOWN + 5)
    ]
    last = terminal(many).splitlines()[-1]
    assert re.split(r"  +", last.strip()) == ["5 others", "5", "5.00", "25.0 %"]
    assert len(terminal(many).splitlines()) == KERNELS_SHOWN + 2


def test_a_profile_without_kernels_has_no_table():
    (view,) = profile_views([row("torch", reason="no CUPTI"), row("ncu", reason="not installed")])
    assert view.table is None
    assert kernels_table(view) is None
    assert view.absent == ("torch: no CUPTI", "ncu: not installed")


@pytest.mark.parametrize("shown", [True, False])
def test_the_page_shows_profiles_of_its_cases_and_no_others(tmp_path, shown):
    name = "<script>alert(1)</script>"
    rows = [*ROWS, row("torch", name, calls=1.0, time_ms=0.1, share=0.1)]
    frame = pd.DataFrame([complete_row({"case_id": "c1" if shown else "c2", "status": "ok"})])
    html = write_report(frame, tmp_path / "page.html", profiles=rows).read_text()
    assert ('id="profiles"' in html) == shown
    assert (">2.79 GiB" in html) == shown
    assert ("<li>proton: triton.profiler cannot be imported</li>" in html) == shown
    assert ("&lt;script&gt;alert(1)" in html) == shown
    assert name not in html
