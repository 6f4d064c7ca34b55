"""Every figure of every panel: valid for plotly, and saying what the rows say."""

import itertools
import json
import math
from collections.abc import Callable

import pandas as pd
import plotly.graph_objects as go
import pytest

from dynbench.dashboards.figures import common, error, heatmap, memory, speedup
from dynbench.dashboards.figures.latency import latency_figure
from dynbench.dashboards.figures.roofline import roof_trace, roofline_figure
from dynbench.dashboards.figures.samples import samples_figure
from dynbench.dashboards.model import Facet, Panel, build_facets
from dynbench.dashboards.views import ceilings, views

Build = Callable[..., dict]
VIEWS = {view.key: view for view in views("sdpa")}


def panel_of(frame: pd.DataFrame, baseline: str = "sdpa") -> Panel:
    return build_facets(frame, baseline)[0].panels[0]


def named(figure: common.Figure) -> dict[str, go.Scatter]:
    return {trace.name: trace for trace in figure.plotly().data if trace.name}


@pytest.fixture(scope="module")
def gpu_facet(gpu_frame: pd.DataFrame) -> Facet:
    return build_facets(gpu_frame, "sdpa")[0]


@pytest.mark.parametrize(
    ("missing", "axes"),
    [
        ([], ["yaxis", "yaxis2", "yaxis3"]),
        (["samples_power_w"], ["yaxis", "yaxis2"]),
        (["samples_power_w", "samples_sm_clock_mhz"], ["yaxis"]),
    ],
)
def test_samples_have_an_axis_for_what_is_known(
    gpu_frame: pd.DataFrame, missing: list[str], axes: list[str]
) -> None:
    """One above the other over all of the height, the time below the last of them."""
    measured = gpu_frame[gpu_frame["status"] == "ok"]
    each = measured["samples_ms"].map(lambda samples: [1.0 + i for i in range(len(samples))])
    known = dict.fromkeys(("samples_at_s", "samples_sm_clock_mhz", "samples_power_w"), each)
    facet = build_facets(measured.assign(**known | dict.fromkeys(missing)), "sdpa")[0]
    layout = samples_figure(facet, facet.panels[0]).json["layout"]
    assert [name for name in sorted(layout) if name.startswith("yaxis")] == axes
    domains = [layout[name]["domain"] for name in axes]
    assert (domains[0][1], domains[-1][0]) == (1, 0)
    assert all(upper[0] > lower[1] for upper, lower in itertools.pairwise(domains))
    assert layout["xaxis"]["anchor"] == axes[-1].replace("axis", "")


@pytest.mark.parametrize("view", views("sdpa"), ids=lambda view: view.key)
def test_every_figure_is_valid_and_has_its_table(gpu_facet: Facet, view) -> None:
    for panel in gpu_facet.panels:
        figure, table = view.draw(gpu_facet, panel), view.table(gpu_facet, panel)
        assert figure is not None
        assert table is not None
        json.dumps(figure.json, allow_nan=False)  # raises for what the page's script cannot read
        figure = figure.plotly()  # raises for an unknown property
        labels = {group.header for group in table.groups}
        drawn = {trace.name for trace in figure.data if trace.legendgroup}
        assert {line.label for line in panel.lines if line.label in drawn} <= labels
        for axis in (figure.layout.xaxis, figure.layout.yaxis):
            assert axis.title.text or view.key in ("heatmap", "stages")


def test_latency_is_drawn_as_measured(gpu_frame: pd.DataFrame, gpu_facet: Facet) -> None:
    trace = named(latency_figure(gpu_facet.panels[0]))["sdpa"]
    ok = gpu_frame[(gpu_frame["pass"] == "forward") & (gpu_frame["provider"] == "sdpa")]
    assert list(trace.x) == ok["seq_len"].tolist()
    assert list(trace.y) == pytest.approx(ok["latency_ms"].tolist(), rel=1e-5)
    bands = [t for t in latency_figure(gpu_facet.panels[0]).plotly().data if t.fill == "toself"]
    assert len(bands) == sum(1 for line in gpu_facet.panels[0].lines if line.points)


def test_exact_and_hybrid_rows_never_share_a_trace(gpu_facet: Facet) -> None:
    figure = latency_figure(gpu_facet.panels[0]).plotly()
    for trace in (t for t in figure.data if t.hovertext):
        assert len({text.split("<br>")[0] for text in trace.hovertext}) == 1


def test_many_lines_share_legend_entries_but_no_line(row: Build) -> None:
    rows = [
        row("gpu", "dynnsiha", seq_len, window=window, **tile)
        for seq_len in (8192, 16384)
        for window in range(64, 64 + 40)
        for tile in ({}, {"query_tile": 16, "private_blocks": 2})
    ]
    figure = latency_figure(panel_of(pd.DataFrame(rows))).plotly()
    assert len(figure.data) == 2
    for trace in figure.data:
        assert list(trace.x) == [8192, 16384, *[None, 8192, 16384] * 39]
        assert len({("R=16" in text) for text in trace.hovertext if text}) == 1


def test_speedup_marks_the_crossing(row: Build) -> None:
    rows = [
        row("gpu", provider, seq_len, latency_ms=ms)
        for seq_len, times in ((1024, (1.0, 2.0)), (4096, (2.0, 1.0)))
        for provider, ms in zip(("sdpa", "dynnsiha"), times, strict=True)
    ]
    figure = speedup.speedup_figure(panel_of(pd.DataFrame(rows)))
    traces = named(figure)
    assert list(traces["dynnsiha · exact"].y) == [0.5, 2.0]
    assert list(traces["crossover"].x) == pytest.approx([2048])
    assert "crossover (interpolated)" in traces
    assert figure.plotly().layout.annotations[0].text == "2.00k"
    assert speedup.speedup_figure(panel_of(pd.DataFrame(rows), "flash")) is None


def test_out_of_memory_is_marked_at_its_length(gpu_facet: Facet) -> None:
    figure = memory.memory_figure(gpu_facet.panels[0]).plotly()
    (crosses,) = [t for t in figure.data if t.marker.symbol == "x"]
    assert list(crosses.x) == [32768, 65536, 131072]
    assert min(crosses.y) > max(y for t in figure.data if t is not crosses for y in t.y)
    assert all("out of memory" in text for text in crosses.hovertext)


def test_out_of_memory_alone_is_a_figure(row: Build) -> None:
    frame = pd.DataFrame([row("gpu", "sdpa", 8192, status="out_of_memory")])
    figure = memory.memory_figure(panel_of(frame)).plotly()
    assert [t.name for t in figure.data if t.showlegend] == ["sdpa"]


def test_error_has_its_tolerance_and_marks_what_is_beyond(gpu_facet: Facet) -> None:
    figure = error.error_figure(gpu_facet.panels[0])
    assert set(named(figure)["tolerance 0.005"].y) == {0.005}
    (crosses,) = [t for t in figure.plotly().data if t.marker.symbol == "x"]
    assert (list(crosses.x), list(crosses.y), crosses.name) == ([8192], [0.41], "my_kernel")


def test_roof_bends_at_the_ridge(gpu_facet: Facet) -> None:
    assert ceilings(gpu_facet) == (2870.0, 702.0)
    roof = roof_trace((2000.0, 500.0), [10.0])
    assert roof["x"][1] == pytest.approx(250.0)
    assert roof["y"][1:] == [500.0, 500.0]
    assert roof["y"][0] == pytest.approx(roof["x"][0] * 2.0)
    bare = roofline_figure(gpu_facet.panels[0], None)
    assert not [name for name in named(bare) if name.startswith("measured")]


def test_heat_map_holds_logarithms_of_speedups(gpu_facet: Facet) -> None:
    panel = gpu_facet.panels[0]
    heat = heatmap.heatmap_figure(panel).plotly().data[0]
    lines = heatmap.heatmap_lines(panel)
    assert len(heat.z) == len(lines) == 6
    for row_, line in zip(heat.z, lines, strict=True):
        expected = [math.log2(point.baseline_ms / point.latency_ms) for point in line.points]
        assert list(row_) == pytest.approx(expected, abs=1e-3)
    assert heat.zmin == -heat.zmax


def test_heat_map_keeps_what_failed_and_names_what_is_missing(row: Build) -> None:
    """A line that failed at its only length, a length that only it has, a length left out."""
    rows = [
        *(row("gpu", provider, 8192) for provider in ("sdpa", "nsa", "dynnsiha")),
        *(row("gpu", provider, 16384) for provider in ("sdpa", "nsa")),
        row("gpu", "dynnsiha", 32768, target_sparsity=0.9, status="unsupported", reason="0.86"),
    ]
    facet = build_facets(pd.DataFrame(rows), "sdpa")[0]
    panel = facet.panels[0]
    figure = heatmap.heatmap_figure(panel).plotly()
    heat, empty = figure.data
    assert list(heat.x) == list(empty.x) == ["8k", "16k", "32k"]
    none = "not<br>measured"
    assert [list(words) for words in empty.text] == [
        ["", "", none],
        ["", none, none],
        [none, none, "un-<br>supported"],
    ]
    for numbers, words in zip(heat.z, empty.text, strict=True):
        assert [z is None for z in numbers] == [bool(word) for word in words]
    table = VIEWS["heatmap"].table(facet, panel)
    assert table.columns[1:] == heat.x
    assert len(table.groups) == len(heat.z)


def test_joined_runs_are_named_in_hover_and_table(row: Build) -> None:
    rows = [
        row("gpu", provider, 8192, run_id=run)
        for provider, run in (("sdpa", "a"), ("nsa", "a"), ("nsa", "b"))
    ]
    facet = build_facets(pd.DataFrame(rows), "sdpa")[0]
    panel = facet.panels[0]
    for key in ("latency", "speedup", "heatmap", "memory"):
        figure, table = VIEWS[key].draw(facet, panel), VIEWS[key].table(facet, panel)
        texts = str([t["hovertext"] for t in figure.data if t.get("hovertext") is not None])
        assert texts.count("[2 runs]") == 1
        cells = {group.header: group.rows[0][0] for group in table.groups}
        assert cells["nsa"].endswith("[2 runs]")
        assert not cells.get("sdpa", "").endswith("runs]")


def test_two_tolerances_look_different(row: Build) -> None:
    rows = [row("gpu", "sdpa", 8192, rms_tolerance=0.005), row("gpu", "nsa", 8192, rms_tolerance=1)]
    traces = error.error_figure(panel_of(pd.DataFrame(rows))).plotly().data
    dashes = [trace.line.dash for trace in traces if "tolerance" in trace.name]
    assert len(set(dashes)) == len(dashes) == 2


def test_a_layer_has_no_dense_equivalent_rate(row: Build) -> None:
    keys = {suite: {view.key for view in views("sdpa", suite)} for suite in ("attention", "layer")}
    assert keys["attention"] - keys["layer"] == {"dense-equivalent"}
    assert "effective" in keys["layer"]


def test_rows_of_models_have_views_of_their_own(row: Build) -> None:
    step = {"suite": "generation", "pass": "decode", "layers": 2}
    numbers = {"tokens_per_s": 512.0, "first_token_ms": 80.0, "cache_bytes": 4096}
    rows = [
        row("gpu", "sdpa", 8192, **step, **numbers),
        row("gpu", "nsa", 8192, **step, status="error"),
        row("gpu", "sdpa", 8192),
    ]
    attention, generation = sorted(build_facets(pd.DataFrame(rows), "sdpa"), key=lambda f: f.suite)
    keys = {view.key for view in views("sdpa", "generation")} - {view.key for view in views("sdpa")}
    assert keys == {"tokens", "first-token", "cache"}
    shown = {"tokens": "512 tokens/s", "first-token": "80.0 ms", "cache": "4.00 KiB"}
    for view in views("sdpa", "generation"):
        if view.key not in keys:
            continue
        (panel,) = generation.panels
        figure, table = view.draw(generation, panel), view.table(generation, panel)
        assert list(named(figure)) == ["sdpa"]
        assert [group.rows for group in table.groups] == [((shown[view.key],),), (("error",),)]
        assert view.draw(attention, attention.panels[0]) is None
        assert view.table(attention, attention.panels[0]) is None


def test_heat_map_stays_on_the_screen(row: Build) -> None:
    rows = [row("gpu", "nsa", 8192, window=64 + i) for i in range(500)]
    figure = heatmap.heatmap_figure(panel_of(pd.DataFrame([row("gpu", "sdpa", 8192), *rows])))
    assert figure.layout["height"] < 1600


@pytest.mark.parametrize("values", [[], [None], [3.0], [1e-6, 1e6], [0.9, 1.1], [1, 5000]])
def test_ticks_are_few_and_within_the_range(values: list) -> None:
    ticks = common.log_ticks(values)
    if not ticks:
        return
    low, high = ticks["range"]
    assert high - low >= 0.66
    assert 1 <= len(ticks["tickvals"]) <= 12
    assert all(low <= math.log10(tick) <= high for tick in ticks["tickvals"])


def test_strings_of_data_are_text_for_plotly(row: Build) -> None:
    frame = pd.DataFrame([row("gpu", "<b>x</b><a href='javascript:1'>", 8192)])
    trace = latency_figure(panel_of(frame)).plotly().data[0]
    assert "<" not in trace.name
    assert trace.hovertext[0].count("<") == 3  # the report's own bold and line break
