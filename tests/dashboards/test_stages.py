"""Where the time goes: in words, in the figure and in the tables."""

import io
import json
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from dynbench.dashboards.figures.stages import MAX_NAMED_BARS, stages_figure
from dynbench.dashboards.model import build_facets
from dynbench.dashboards.report import write_report
from dynbench.dashboards.stages import breakdown, joined_stages, parse_stages
from dynbench.dashboards.tables import stages_table
from dynbench.dashboards.terminal import stages_table as terminal_table
from dynbench.harness.store import frame_of

Build = Callable[..., dict]
STAGES = {"compressed": 3.0, "pairs": 5.0, "merge": 1.0}
NAMES = st.text("abc ", min_size=1).filter(lambda name: name.strip() == name and "  " not in name)


def told(row: Build, provider: str = "dynnsiha", seq_len: int = 8192, **more) -> dict:
    values = {"stages_ms": json.dumps(STAGES), "latency_ms": 10.0} | more
    return row("gpu", provider, seq_len, **values)


def panel_of(*rows: dict):
    return build_facets(pd.DataFrame(list(rows)), "sdpa")[0].panels[0]


def test_what_the_stages_leave_is_named_other() -> None:
    found = breakdown(STAGES, 10.0)
    assert found is not None
    assert found.with_other == (*STAGES.items(), ("other", 1.0))
    assert (found.sum_ms, found.share_text(5.0)) == (9.0, "50 %")


def test_stages_may_sum_up_to_more_than_the_median() -> None:
    found = breakdown(STAGES, 8.0)
    assert found is not None
    assert found.with_other[-1] == ("other", 0.0)
    assert found.sum_ms == 9.0


def test_a_stage_that_is_called_other_counts_as_what_is_left() -> None:
    found = breakdown({"a": 4.0, "other": 3.0}, 10.0)
    assert found is not None
    assert found.with_other == (("a", 4.0), ("other", 6.0))


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "[1]",
        "3",
        "null",
        '{"a": null}',
        '{"a": "x"}',
        '{"a": -1}',
        '{"a": true}',
        '{"a": NaN}',
    ],
)
def test_what_is_no_object_of_times_is_no_stages(text: str) -> None:
    assert parse_stages(text) == {}
    assert breakdown(parse_stages(text), 10.0) is None


def test_a_row_without_a_latency_has_no_stages() -> None:
    assert breakdown(STAGES, None) is None
    assert breakdown(parse_stages(None), 10.0) is None


@given(st.lists(st.dictionaries(NAMES, st.floats(0, 1e6)), max_size=4))
def test_joined_rows_have_the_medians_of_their_stages(rows: list[dict[str, float]]) -> None:
    found = joined_stages(map(json.dumps, rows))
    assert set(found) == {name for row in rows for name in row}
    for name, ms in found.items():
        times = sorted(row[name] for row in rows if name in row)
        assert times[0] <= ms <= times[-1]
        assert ms == pytest.approx(pd.Series(times).median())


def test_repeated_runs_make_one_bar(row: Build) -> None:
    other = json.dumps(STAGES | {"pairs": 7.0})
    rows = [told(row), told(row, run_id="second", stages_ms=other)]
    (point,) = panel_of(*rows).lines[0].points
    assert point.stages is not None
    assert dict(point.stages.parts) == STAGES | {"pairs": 6.0}


def test_every_bar_is_the_whole_call(row: Build) -> None:
    panel = panel_of(row("gpu", "sdpa", 8192), told(row), told(row, seq_len=16384, latency_ms=12.0))
    figure = stages_figure(panel).plotly()
    assert [trace.name for trace in figure.data] == [*STAGES, "other"]
    assert all(list(trace.y) == [0, 1] for trace in figure.data)
    for bar in range(2):
        assert sum(trace.x[bar] for trace in figure.data) == pytest.approx(1, rel=1e-3)
    names = [note.text for note in figure.layout.annotations]
    assert names == ["dynnsiha · exact, 8k", "dynnsiha · exact, 16k"]
    assert "stages 9.00 ms of 10.0 ms" in figure.data[0].hovertext[0]


def test_stages_that_only_some_cases_have_are_missing_in_the_others(row: Build) -> None:
    rows = [told(row), told(row, "nsa", stages_ms='{"choice": 4.0}')]
    figure = stages_figure(panel_of(*rows)).plotly()
    bars = {trace.name: list(trace.y) for trace in figure.data}
    assert bars == {"choice": [0], "compressed": [1], "pairs": [1], "merge": [1], "other": [0, 1]}


def test_many_bars_stay_on_the_screen(row: Build) -> None:
    rows = [told(row, window=window) for window in range(1, 4 * MAX_NAMED_BARS)]
    figure = stages_figure(panel_of(*rows)).plotly()
    assert len(figure.data[0].y) == len(rows)
    assert len(figure.layout.annotations) <= MAX_NAMED_BARS
    assert figure.layout.height < 2000


def test_the_table_has_a_column_a_stage(row: Build) -> None:
    table = stages_table(panel_of(row("gpu", "sdpa", 8192), told(row)))
    assert table is not None
    assert table.columns[3:] == ("sum of stages (ms)", *STAGES, "other")
    (group,) = table.groups
    cells = ("3.00 (30 %)", "5.00 (50 %)", "1.00 (10 %)", "1.00 (10 %)")
    assert group.rows == (("8k", "10.0", "9.00", *cells),)


@pytest.mark.parametrize("some", [True, False])
def test_a_report_has_the_section_where_rows_have_stages(row: Build, tmp_path: Path, some) -> None:
    rows = [row("gpu", "sdpa", 8192), told(row, **({} if some else {"stages_ms": None}))]
    page = write_report(pd.DataFrame(rows), tmp_path / "report.html").read_text(encoding="utf-8")
    assert ("Where the time goes" in page) == some
    assert page.count("5.00 (50 %)") == some


def test_the_terminal_says_it_in_words(row: Build) -> None:
    console = Console(file=io.StringIO(), width=200)
    console.print(terminal_table(frame_of([row("gpu", "sdpa", 8192), told(row)])))
    _, line = console.file.getvalue().splitlines()
    assert line.split()[:3] == ["dynnsiha", "forward", "8k"]
    words = "compressed 3.00 ms (30 %), pairs 5.00 ms (50 %), merge 1.00 ms (10 %), "
    words += "other 1.00 ms (10 %)"
    assert f"10.0 ms        9.00 ms  {words}" in line


def test_the_terminal_says_nothing_without_stages(row: Build) -> None:
    assert terminal_table(frame_of([row("gpu", "sdpa", 8192)])) is None
