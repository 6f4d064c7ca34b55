from collections.abc import Callable

import pandas as pd
import pytest

from dynbench.dashboards import tables
from dynbench.dashboards.model import Facet, build_facets
from dynbench.dashboards.views import views

Build = Callable[..., dict]
VIEWS = {view.key: view for view in views("sdpa")}


@pytest.fixture(scope="module")
def gpu_facet(gpu_frame: pd.DataFrame) -> Facet:
    return build_facets(gpu_frame, "sdpa")[0]


def cells(table: tables.Table) -> list[tuple[str, ...]]:
    return [row for group in table.groups for row in group.rows]


def test_failures_are_listed_up_to_a_limit(
    gpu_frame: pd.DataFrame, gpu_facet: Facet, monkeypatch
) -> None:
    failed = gpu_frame[gpu_frame["status"] != "ok"]
    table, left_out = tables.failures_table(gpu_facet)
    assert left_out == 0
    assert sorted(row[-1] for row in cells(table)) == sorted(failed["command"])
    monkeypatch.setattr(tables, "_FAILURES_SHOWN", 3)
    table, left_out = tables.failures_table(gpu_facet)
    assert len(cells(table)) == 3
    assert left_out == len(failed) - 3


def test_failures_give_status_and_reason(gpu_frame: pd.DataFrame, gpu_facet: Facet) -> None:
    rows = {row[1:3] for row in cells(tables.failures_table(gpu_facet)[0])}
    failed = gpu_frame[gpu_frame["status"] != "ok"]
    assert rows == set(zip(failed["status"], failed["reason"], strict=True))


def test_figure_tables_show_numbers_and_failures(gpu_facet: Facet) -> None:
    table = VIEWS["latency"].table(gpu_facet, gpu_facet.panels[0])
    assert table.columns == ("line", "8k", "16k", "32k", "64k", "128k")
    by_line = {group.header: group.rows[0] for group in table.groups}
    assert by_line["sdpa:math"][2:] == ("out_of_memory",) * 3
    assert by_line["flash"] == ("unavailable",) * 5
    point = gpu_facet.panels[0].lines[0].points[0]
    assert by_line["sdpa"][0].startswith(f"{point.latency_ms:.3f} (")


def test_a_table_of_many_lengths_is_long(row: Build) -> None:
    frame = pd.DataFrame([row("gpu", "sdpa", 1000 + i) for i in range(20)])
    facet = build_facets(frame, "sdpa")[0]
    table = VIEWS["latency"].table(facet, facet.panels[0])
    assert table.columns == ("line", "length (tokens)", "value")
    assert len(cells(table)) == 20


def test_overview_has_all_lines_with_their_evidence(gpu_facet: Facet) -> None:
    table = tables.overview_table(gpu_facet)
    columns = table.columns[1:]
    group = next(group for group in table.groups if group.header == "sdpa:math")
    math_row = dict(zip(columns, group.rows[0], strict=True))
    assert math_row["pass"] == "Forward"
    assert group.line in {line.number for line in gpu_facet.panels[0].lines}
    assert math_row["pays from"] == "does not"
    assert math_row["slower at"] == "8k, 16k"
    assert math_row["no difference at"] == "nowhere"
    assert math_row["cases"] == "4"
    assert math_row["geometric mean"].endswith("(n = 2, 8k–16k)")
    assert math_row["at the longest length compared"].endswith(" at 16k")
    assert "pairs left out there" in columns


def test_a_gain_within_the_noise_is_named_no_difference(row: Build) -> None:
    rows = [row("gpu", name, 8192, latency_ms=1.0) for name in ("sdpa", "nsa")]
    table = tables.overview_table(build_facets(pd.DataFrame(rows), "sdpa")[0])
    (cells_,) = [dict(zip(table.columns[1:], row_, strict=True)) for row_ in cells(table)]
    assert cells_["pays from"] == "no difference"
    assert (cells_["slower at"], cells_["no difference at"]) == ("nowhere", "8k")
    assert cells_["geometric mean"] == "1.00× (n = 1, 8k)"


def test_a_cell_without_any_row_says_so(row: Build) -> None:
    rows = [
        row("gpu", "sdpa", 8192),
        row("gpu", "sdpa", 16384, peak_memory_bytes=None),
        row("gpu", "nsa", 8192),
    ]
    facet = build_facets(pd.DataFrame(rows), "sdpa")[0]
    table = VIEWS["memory"].table(facet, facet.panels[0])
    by_line = {group.header: group.rows[0] for group in table.groups}
    assert by_line["nsa"][1] == "not measured"
    assert by_line["sdpa"][1] == "", "there is a row, but not this number"


def test_the_heat_maps_table_has_sparse_lines_only(gpu_facet: Facet) -> None:
    table = VIEWS["heatmap"].table(gpu_facet, gpu_facet.panels[0])
    assert {group.header.split(" ")[0] for group in table.groups} == {"nsa", "dynnsiha"}


def test_columns_without_any_value_are_left_out(row: Build) -> None:
    frame = pd.DataFrame([row("gpu", "sdpa", 8192, status="error", reason=None)])
    table, _ = tables.failures_table(build_facets(frame, "sdpa")[0])
    assert "reason" not in table.columns
    assert "status" in table.columns


def test_many_lengths_in_a_row_are_named_by_their_ends(row: Build) -> None:
    rows = [
        row("gpu", provider, 1024 * 2**power, latency_ms=ms)
        for power in range(4)
        for provider, ms in (("sdpa", 1.0), ("nsa", 2.0))
    ]
    (group,) = tables.overview_table(build_facets(pd.DataFrame(rows), "sdpa")[0]).groups
    assert "1k–8k" in group.rows[0]


def test_equal_details_are_shown_once_and_long_ones_are_cut(row: Build) -> None:
    rows = [
        row("gpu", "sdpa", 8192, status="error", details="same\n\ttrace"),
        row("gpu", "sdpa", 16384, status="error", details="same\n\ttrace"),
        row("gpu", "nsa", 8192, status="error", details="y" * 50_000),
    ]
    shown, left_out = tables.failure_details(build_facets(pd.DataFrame(rows), "sdpa")[0])
    assert [detail.title for detail in shown] == ["sdpa, 8k and 1 more row", "nsa, 8k"]
    assert shown[0].text == "same\n    trace"
    assert len(shown[1].text) < 5000
    assert left_out == 0
