"""Every number of the README's result tables stands in the committed rows."""

import re
from pathlib import Path

import pytest

from dynbench.harness.store import read_runs

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
RESULTS = README[README.index("<!-- results:begin -->") : README.index("<!-- results:end -->")]


def tables():
    """Header and rows of each table between the markers."""
    found = []
    for block in re.findall(r"(?:^\|.*\n)+", RESULTS, re.MULTILINE):
        lines = [
            [cell.strip() for cell in line.strip("|\n ").split("|")] for line in block.splitlines()
        ]
        found.append((lines[0], lines[2:]))
    return found


def rows_of(folder):
    frame, problems = read_runs([ROOT / "results" / folder])
    assert not problems
    return frame[(frame["suite"] == "attention") & frame["target_sparsity"].isna()]


def milliseconds(text):
    value, unit = re.match(r"([\d.]+) (ms|s)", text).groups()
    digits = len(value.replace(".", "").lstrip("0"))
    return float(value) * (1000 if unit == "s" else 1), digits


def assert_shows(text, latency_ms):
    shown, digits = milliseconds(text)
    assert shown == pytest.approx(latency_ms, rel=0.5001 * 10 ** (1 - digits))
    assert digits == 3


def tokens(text):
    return int(text.removesuffix("k")) * 1024


def chosen(frame, **wanted):
    for column, value in wanted.items():
        frame = frame[frame[column] == value]
    return frame


def test_the_cpu_table():
    frame = rows_of("cpu")
    settings = {
        "sdpa": {"provider": "sdpa"},
        "nsa": {"provider": "nsa"},
        "dynnsiha, exact": {"provider": "dynnsiha", "query_tile": 1},
        "dynnsiha, R = 16, m = 2": {"provider": "dynnsiha", "query_tile": 16, "private_blocks": 2},
    }
    header, lines = tables()[0]
    assert header[1:] == list(settings)
    assert [tokens(line[0]) for line in lines] == sorted(frame["seq_len"].unique())
    for line in lines:
        here = chosen(frame, seq_len=tokens(line[0]))
        dense_ms = chosen(here, provider="sdpa")["latency_ms"].item()
        for name, cell in zip(header[1:], line[1:], strict=True):
            latency_ms = chosen(here, **settings[name])["latency_ms"].item()
            assert_shows(cell, latency_ms)
            if name != "sdpa":
                assert cell.endswith(f"({dense_ms / latency_ms:.2f}×)")


def test_the_peak_memory_on_the_cpu():
    here = chosen(rows_of("cpu"), seq_len=128 * 1024)
    mib = {
        (row.provider, row.query_tile): round(row.peak_memory_bytes / 2**20)
        for row in here[here["provider"].isin(["nsa", "dynnsiha"])].itertuples()
    }
    exact, hybrid = mib["dynnsiha", 1], mib["dynnsiha", 16]
    assert f"{mib['nsa', 1]} MiB (nsa), {exact} MiB (exact) and {hybrid} MiB (R = 16)" in RESULTS
    sparse = rows_of("cpu")
    sparse = sparse[sparse["provider"].isin(["nsa", "dynnsiha"])]
    assert f"at most {sparse['rms_error'].max():.1e}".replace("e-0", "e-") in RESULTS


def test_the_h100_table():
    frame = rows_of("h100")
    assert set(frame["gpu_name"]) == {"NVIDIA H100 80GB HBM3"}
    assert set(frame["status"]) == {"ok"}
    frame = frame[frame["branches"].isna() | frame["branches"].str.contains("sliding")]
    hybrid = {"provider": "dynnsiha", "private_blocks": 2}
    shared = {"provider": "dynnsiha", "private_blocks": 0}
    settings = {
        "nsa": {"provider": "nsa"},
        "dynnsiha, m = 2": hybrid,
        "dynnsiha, m = 0": shared,
        "dynnsiha, exact": {"provider": "dynnsiha", "query_tile": 1},
    }
    header, lines = tables()[1]
    assert header[4:] == list(settings)
    for heads, length, pass_, dense, *cells in lines:
        q_heads, kv_heads = map(int, heads.split("/"))
        tile = {4: 4, 8: 16, 32: 64}[kv_heads]
        here = chosen(frame, q_heads=q_heads, kv_heads=kv_heads, seq_len=tokens(length.split()[0]))
        timer = "graph" if length.endswith("graph") else "event"
        here = chosen(here, timer=timer, **{"pass": pass_})
        dense_ms = chosen(here, provider="flash")["latency_ms"].item() if dense != "-" else None
        if dense_ms is not None:
            assert_shows(dense, dense_ms)
        for name, cell in zip(header[4:], cells, strict=True):
            wanted = settings[name] | ({"query_tile": tile} if "m =" in name else {})
            found = chosen(here, **wanted)["latency_ms"]
            if cell == "-":
                assert found.empty
            else:
                assert_shows(cell, found.item())
                if dense_ms is not None:
                    assert cell.endswith(f"({dense_ms / found.item():.2f}×)")


def test_the_table_beside_fla():
    frame = rows_of("h100")
    frame = frame[frame["branches"].notna() & ~frame["branches"].str.contains("sliding", na=False)]
    header, lines = tables()[2]
    assert header == ["T", "pass", "fla", "dynnsiha, exact"]
    assert lines
    for length, pass_, theirs, ours in lines:
        timer = "graph" if length.endswith("graph") else "event"
        here = chosen(frame, seq_len=tokens(length.split()[0]), timer=timer, **{"pass": pass_})
        ms = [chosen(here, provider=name)["latency_ms"].item() for name in ("fla", "dynnsiha")]
        assert_shows(theirs, ms[0])
        assert_shows(ours, ms[1])
        assert ours.endswith(f"({ms[0] / ms[1]:.2f}×)")
