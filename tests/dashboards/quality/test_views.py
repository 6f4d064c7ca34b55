"""Figures valid for plotly, with their tables; what is left out of a page and not of a site."""

import json
from collections.abc import Callable

import pandas as pd
import pytest

from dynbench.dashboards import frame as frames
from dynbench.dashboards.export import quality_figures_of
from dynbench.dashboards.quality.curves import mean_curves, read_curves_below
from dynbench.dashboards.quality.figures import value_range
from dynbench.dashboards.quality.measures import LOSS
from dynbench.dashboards.quality.model import QualityGroup, quality_groups
from dynbench.dashboards.quality.views import PAGE, WHOLE, QualityView, quality_views
from dynbench.harness.curves import CURVES_FOLDER, write_curves

Build = Callable[..., dict]


@pytest.fixture(scope="module")
def group(text_rows: list[dict]) -> QualityGroup:
    return quality_groups(frames.prepare(pd.DataFrame(text_rows)))[0]


@pytest.fixture(scope="module")
def views(group: QualityGroup, text_rows: list[dict], curves) -> list[QualityView]:
    return quality_views(group, frames.prepare(pd.DataFrame(text_rows)), curves, PAGE)


def test_every_figure_is_valid_and_has_its_table(views: list[QualityView]) -> None:
    keys = [view.key for view in views]
    assert keys == ["share", "pareto", "training", "activation", "gates"]
    for view in views:
        assert view.direction
        for held in view.figures:
            json.dumps(held.figure.json, allow_nan=False)
            held.figure.plotly()  # raises where unknown
            assert held.table is not None
            drawn = {n for t in held.figure.data for n in t["meta"]["lines"]}
            assert drawn == {held_.line for held_ in held.table.groups}
            axes = [axis for name, axis in held.figure.layout.items() if "axis" in name]
            assert all(axis["title"]["text"] for axis in axes)


def test_no_trace_of_points_has_two_kinds_of_lists(
    group: QualityGroup, views: list[QualityView]
) -> None:
    lists = {config.number: config.line.lists for config in group.configs}
    for view in views:
        for held in view.figures:
            for trace in held.figure.data:
                assert len({lists[number] for number in trace["meta"]["lines"]}) == 1


def test_without_curves_there_are_points_alone(group: QualityGroup, text_rows: list[dict]) -> None:
    plain = frames.prepare(pd.DataFrame(text_rows))
    assert [view.key for view in quality_views(group, plain, {}, PAGE)] == ["share", "pareto"]


def test_a_step_that_a_seed_lacks_is_left_out(training: Build, tmp_path) -> None:
    rows = [training("sdpa", seed, run_id="r") for seed in (0, 1)]
    for row, steps in zip(rows, ((1, 2, 3, 4), (1, 3, 4)), strict=True):
        records = [
            {
                "run_id": "r",
                "case_id": row["case_id"],
                "step": s,
                "layer": "",
                "train_loss": 1.0 * s,
            }
            for s in steps
        ]
        records.append({**records[-1], "train_loss": 9.0})  # logged again after an interruption
        write_curves(records, tmp_path / CURVES_FOLDER / f"{row['case_id']}.parquet")
    found, problems = read_curves_below([tmp_path])
    assert problems == []
    (group,) = quality_groups(frames.prepare(pd.DataFrame(rows)))
    held = mean_curves(group.configs[0], found)["", "train_loss"]
    assert held.steps.tolist() == [1, 3, 4]
    assert held.mean.tolist() == [1.0, 3.0, 9.0]
    assert held.seeds == 2


def test_a_torn_file_of_curves_is_named(quality_run, tmp_path) -> None:
    file = tmp_path / CURVES_FOLDER / "x.parquet"
    file.parent.mkdir()
    file.write_bytes(next((quality_run / CURVES_FOLDER).glob("*")).read_bytes()[:200])
    found, problems = read_curves_below([tmp_path])
    assert found == {}
    assert len(problems) == 1
    assert "x.parquet" in problems[0]


def test_a_wide_interval_does_not_hide_the_points(training: Build) -> None:
    rows = [training("sdpa", seed, eval_loss=loss) for seed, loss in enumerate((1.7, 1.8))]
    held = quality_groups(frames.prepare(pd.DataFrame(rows)))[0].configs[0].estimates["eval_loss"]
    assert held.low is not None
    assert held.low < 1.2
    low, high = value_range([held], LOSS)
    assert 1.59 < low < 1.7
    assert 1.8 < high < 1.91


def test_strings_of_data_are_text_for_plotly(training: Build) -> None:
    bad = "<b>x</b><a href='javascript:1'>"
    rows = [training(bad, 0, query_tile=4, variant=bad), training("sdpa", 0)]
    plain = frames.prepare(pd.DataFrame(rows))
    (group,) = quality_groups(plain)
    trace = next(
        t
        for t in quality_views(group, plain, {}, WHOLE)[0].figures[0].figure.plotly().data
        if t.name and t.name != "sdpa"
    )
    assert "<" not in trace.name
    assert trace.hovertext[0].count("<") == 4  # the report's own bold and two line breaks


def test_figures_for_papers(group: QualityGroup, text_rows: list[dict], curves) -> None:
    plain = frames.prepare(pd.DataFrame(text_rows))
    named = dict(quality_figures_of([group], plain, curves))
    assert len(named) == 2 + 1 + 3 + 3 + 2
    assert all(name.startswith("nvidia-h100") for name in named)
    longest = max(len(t.x) for name, f in named.items() if "training" in name for t in f.data)
    assert longest >= 400
