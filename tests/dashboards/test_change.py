"""Two runs against each other: what the page says is what the gate found."""

from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest

from dynbench.dashboards.change import Changes, change_table
from dynbench.dashboards.command import changes_between
from dynbench.dashboards.figures.change import MAX_CASES, change_figure
from dynbench.dashboards.parts import change_part
from dynbench.harness.store import RunWriter

Build = Callable[..., dict]


@pytest.fixture
def changes(row: Build, tmp_path: Path) -> Changes:
    """Two stored runs of one process: sdpa as fast as before, nsa slower, dynnsiha missing."""
    paths = []
    for name, factor in (("before", 1.0), ("after", 2.0)):
        with RunWriter.create(tmp_path, "dynbench run", run_id=name) as writer:
            for provider, ms in (("sdpa", 1.0), ("nsa", factor)):
                case = {"case_id": provider, "latency_ms": ms, "run_id": name}
                writer.append(row("gpu", provider, 8192, **case))
            if name == "before":
                writer.append(row("gpu", "dynnsiha", 8192, case_id="dynnsiha", run_id=name))
            writer.finish()
            paths.append(writer.path)
    return changes_between(*paths)


def test_the_table_has_every_case_and_its_verdict(changes: Changes) -> None:
    rows = {group.rows[0][0]: group.rows[0] for group in change_table(changes).groups}
    assert set(rows) == {"regressed", "ambiguous", "missing"}
    assert rows["regressed"][1:4] == ("1.000", "2.000", "+100.0 %")
    low, high = (float(part.split(" ")[0]) for part in rows["regressed"][4].split(" to "))
    assert low < 100 < high
    assert (
        changes.headline
        == "after against before: 1 regressed, 1 missing and 1 ambiguous of 3 cases"
    )


def test_the_figure_has_the_intervals(changes: Changes) -> None:
    by_name = {trace.name: trace for trace in change_figure(changes).plotly().data}
    assert set(by_name) == {"regressed", "ambiguous"}
    record = next(r for r in changes.records if r["verdict"] == "regressed")
    trace = by_name["regressed"]
    assert trace.x[0] == pytest.approx(100 * record["change"], abs=1e-2)
    high = trace.x[0] + trace.error_x.array[0]
    assert high == pytest.approx(100 * record["high"], abs=1e-2)
    low = trace.x[0] - trace.error_x.arrayminus[0]
    assert low == pytest.approx(100 * record["low"], abs=1e-2)


def test_of_many_cases_those_to_act_on_are_drawn_and_the_page_says_so(changes: Changes) -> None:
    record = next(r for r in changes.records if r["verdict"] == "regressed")
    quiet = [
        {**record, "case_id": str(i), "label": f"case {i}", "verdict": "ambiguous", "change": 9.0}
        for i in range(MAX_CASES + 5)
    ]
    many = Changes("a", "b", [*quiet, record])
    counts = {trace.name: len(trace.x) for trace in change_figure(many).plotly().data}
    assert counts == {"regressed": 1, "ambiguous": MAX_CASES - 1}
    assert f"Drawn are {MAX_CASES} of {MAX_CASES + 6} cases" in change_part(many).render()
    assert "Drawn are" not in change_part(changes).render()


def test_a_bound_of_zero_is_a_bound(changes: Changes) -> None:
    record = next(r for r in changes.records if r["verdict"] == "regressed")
    bounded = Changes("a", "b", [{**record, "high": 0.0, "low": -0.5}])
    (trace,) = change_figure(bounded).plotly().data
    assert trace.x[0] + trace.error_x.array[0] == pytest.approx(0.0, abs=1e-2)


def test_nothing_in_common_draws_nothing(changes: Changes) -> None:
    missing = [record for record in changes.records if record["verdict"] == "missing"]
    assert change_figure(Changes("a", "b", missing)) is None
    assert change_table(Changes("a", "b", [])) is None
    assert Changes("a", "b", []).headline == "b against a: no case at all"


@pytest.mark.browser
def test_the_page_leads_with_it_and_a_point_opens_the_case(
    show, changes: Changes, row: Build
) -> None:
    frame = pd.DataFrame(
        [row("gpu", name, 8192, case_id=name) for name in ("sdpa", "nsa", "dynnsiha")]
    )
    page = show(frame, report={"changes": changes})
    assert "1 regressed" in page.locator(".part:not([hidden]) h1").inner_text()
    point = page.locator("#change .scatterlayer .point").first
    box = point.bounding_box()
    page.mouse.click(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
    page.wait_for_function("document.querySelector('#drawer').open")
    assert page.locator("#drawer-title").inner_text() == "nsa, forward, 8k tokens"
