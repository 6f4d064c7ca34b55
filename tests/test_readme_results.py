"""Every number of the result tables in README and docs/kernels.md stands in the committed rows."""

import json
import re
from pathlib import Path

import pytest

from dynbench.harness.store import read_runs

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
RESULTS = README[README.index("<!-- results:begin -->") : README.index("<!-- results:end -->")]
H100 = (ROOT / "docs/kernels.md").read_text().partition("\n## On an H100\n")[2]
ON_GPUS = [
    pytest.param(RESULTS, "h200", "NVIDIA H200", id="h200"),
    pytest.param(H100, "h100", "NVIDIA H100 80GB HBM3", id="h100"),
]


def table(text, *first_columns):
    """Header and rows of the one table whose header begins with these columns."""
    found = []
    for block in re.findall(r"(?:^\|.*\n)+", text, re.MULTILINE):
        lines = [
            [cell.strip() for cell in line.strip("|\n ").split("|")] for line in block.splitlines()
        ]
        if lines[0][: len(first_columns)] == list(first_columns):
            found.append((lines[0], lines[2:]))
    assert len(found) == 1
    return found[0]


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
    header, lines = table(RESULTS, "T", "sdpa")
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


def on_gpu(folder, gpu_name):
    frame = rows_of(folder).sort_values("started_at")
    assert set(frame["gpu_name"]) == {gpu_name}
    assert set(frame["status"]) == {"ok"}
    return frame


def newest_ms(frame, **wanted):
    """The latency of the newest such row; None where there is none."""
    found = chosen(frame, **wanted)["latency_ms"]
    return None if found.empty else found.iloc[-1]


@pytest.mark.parametrize(("text", "folder", "gpu_name"), ON_GPUS)
def test_the_table_of_a_gpu(text, folder, gpu_name):
    frame = on_gpu(folder, gpu_name)
    frame = frame[frame["branches"].isna() | frame["branches"].str.contains("sliding")]
    settings = {
        "nsa": {"provider": "nsa"},
        "dynnsiha, m = 2": {"provider": "dynnsiha", "private_blocks": 2},
        "dynnsiha, m = 0": {"provider": "dynnsiha", "private_blocks": 0},
        "dynnsiha, exact": {"provider": "dynnsiha", "query_tile": 1},
    }
    header, lines = table(text, "H/K", "T", "pass", "flash")
    assert header[4:] == list(settings)
    for heads, length, pass_, dense, *cells in lines:
        q_heads, kv_heads = map(int, heads.split("/"))
        tile = {4: 4, 8: 16, 32: 64}[kv_heads]
        here = chosen(frame, q_heads=q_heads, kv_heads=kv_heads, seq_len=tokens(length.split()[0]))
        timer = "graph" if length.endswith("graph") else "event"
        here = chosen(here, timer=timer, **{"pass": pass_})
        dense_ms = newest_ms(here, provider="flash")
        assert_shows(dense, dense_ms)
        for name, cell in zip(header[4:], cells, strict=True):
            wanted = settings[name] | ({"query_tile": tile} if "m =" in name else {})
            latency_ms = newest_ms(here, **wanted)
            if cell == "-":
                assert latency_ms is None
            else:
                assert_shows(cell, latency_ms)
                assert cell.endswith(f"({dense_ms / latency_ms:.2f}×)")


@pytest.mark.parametrize(("text", "folder", "gpu_name"), ON_GPUS)
def test_the_table_beside_fla(text, folder, gpu_name):
    frame = on_gpu(folder, gpu_name)
    frame = frame[frame["branches"].notna() & ~frame["branches"].str.contains("sliding", na=False)]
    header, lines = table(text, "T", "pass", "fla")
    assert header[3:] == ["dynnsiha, exact"]
    assert lines
    for length, pass_, theirs, ours in lines:
        timer = "graph" if length.endswith("graph") else "event"
        here = chosen(frame, seq_len=tokens(length.split()[0]), timer=timer, **{"pass": pass_})
        ms = [newest_ms(here, provider=name) for name in ("fla", "dynnsiha")]
        assert_shows(theirs, ms[0])
        assert_shows(ours, ms[1])
        assert ours.endswith(f"({ms[0] / ms[1]:.2f}×)")


def test_the_peak_memory_on_a_gpu():
    here = chosen(on_gpu("h200", "NVIDIA H200"), seq_len=128 * 1024, **{"pass": "backward"})
    here = here[here["branches"].isna()]
    gib = {row.provider: row.peak_memory_bytes / 2**30 for row in here.itertuples()}
    flash, hybrid, nsa = (f"{gib[name]:.3g} GiB" for name in ("flash", "dynnsiha", "nsa"))
    assert f"{flash} (flash), {hybrid} (m = 2) and {nsa} (nsa)" in RESULTS


def test_the_table_on_real_text():
    frame, _ = read_runs([ROOT / "results/h200"])
    layers = chosen(frame, suite="layer")
    normal = chosen(on_gpu("h200", "NVIDIA H200"), seq_len=64 * 1024)
    normal = normal[normal["branches"].isna()]
    _, lines = table(RESULTS, "H/K", "lists")
    assert len(lines) == len(layers) / 2
    for heads, lists, *shown in lines:
        q_heads, kv_heads = map(int, heads.split("/"))
        tile = re.search(r"R = (\d+), m = 2", lists)
        wanted = {
            "q_heads": q_heads,
            "kv_heads": kv_heads,
            "provider": lists.partition(",")[0],
            "query_tile": int(tile[1]) if tile else 1,
            "private_blocks": 2 if tile else 0,
        }
        here = chosen(layers, **wanted)
        beside = chosen(normal, **wanted)["list_overlap"]
        assert shown[0] == ("-" if beside.empty else f"{100 * beside.iloc[0]:.0f} %")
        assert shown[1] == f"{100 * here['list_overlap'].iloc[0]:.0f} %"
        for at, pass_ in enumerate(("forward", "backward")):
            row = chosen(here, **{"pass": pass_}).squeeze()
            assert_shows(shown[2 + at], sum(json.loads(row["stages_ms"]).values()))
            assert_shows(shown[4 + at], row["latency_ms"])
