"""Quality in the page and the site, in a real browser, with every request refused."""

import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from dynbench.dashboards.report import write_report
from dynbench.dashboards.site import write_site
from dynbench.harness.curves import CURVE_COLUMNS

Build = Callable[..., dict]
READY = "document.documentElement.dataset.figures === 'ready'"
COUNT = """(key) => [...document.querySelectorAll(`#${key} .plot`)].map((plot) =>
    plot.querySelectorAll('.scatterlayer path.point, .scatterlayer path.js-line').length)"""


def settle(page) -> None:
    page.wait_for_timeout(50)
    page.wait_for_function(READY, timeout=60_000)


def serious(page) -> list[str]:
    axe = pytest.importorskip("axe_playwright_python.sync_playwright")
    found = axe.Axe().run(page).response["violations"]
    return [
        f"{held['id']}: {[node['html'][:160] for node in held['nodes'][:3]]}"
        for held in found
        if held["impact"] in ("serious", "critical")
    ]


def test_rows_of_speed_are_told_as_without_trainings(
    gpu_frame: pd.DataFrame, quality_frame: pd.DataFrame, curves, tmp_path: Path
) -> None:
    both = pd.concat([gpu_frame, quality_frame], ignore_index=True)
    pages = [
        write_report(frame, tmp_path / name, history=True, curves=curves).read_text()
        for frame, name in ((gpu_frame, "a.html"), (both, "b.html"))
    ]
    for name in ("f0.figures", "history.figures", "f0.samples"):
        held = [re.search(rf'id="{name}">([^<]*)<', page) for page in pages]
        assert held[0] is not None
        assert held[1] is not None
        assert held[0][1] == held[1][1]
    heads = [re.findall(r"<h1>(.*?)</h1>", page) for page in pages]
    assert heads[1][: len(heads[0])] == heads[0]
    assert 'data-chosen="f0"' in pages[1]
    assert "quality" not in pages[0].partition("<main")[2].partition("<dialog")[0].lower()


def test_without_trainings_there_is_no_part(gpu_frame: pd.DataFrame, tmp_path: Path) -> None:
    text = write_report(gpu_frame, tmp_path / "page.html").read_text()
    assert 'id="q0"' not in text


@pytest.mark.browser
@pytest.mark.parametrize("theme", ["light", "dark"])
def test_the_part_draws_and_is_accessible(
    show, quality_frame: pd.DataFrame, curves, theme: str
) -> None:
    page = show(quality_frame, color_scheme=theme, report={"curves": curves})
    counts = page.evaluate(COUNT, "q0")
    assert len(counts) == 1 + 2 + 1 + 3 + 3 + 2
    assert all(counts)
    titles = page.locator("#q0 .xtitle, #q0 .ytitle, #q0 .y3title").all_text_contents()
    for title in ("held-out loss (nats)", "attended share of the causal pairs (%)", "sliding"):
        assert title in titles
    page.locator("#filters-button").click()
    for summary in page.locator("#q0 summary").all()[:5]:
        summary.click()
    assert serious(page) == []


@pytest.mark.browser
def test_tasks_are_chosen_by_filter(show, quality_frame: pd.DataFrame, gpu_frame, curves) -> None:
    frame = pd.concat([gpu_frame, quality_frame], ignore_index=True)
    page = show(frame, report={"curves": curves})
    assert page.locator(".part:not([hidden])").get_attribute("id") == "f0", "speed comes first"
    page.locator("#filters-button").click()
    page.locator("[data-which=task]").select_option("recall")
    settle(page)
    assert page.locator(".part:not([hidden])").get_attribute("id") == "q1"
    assert page.locator("#everything tbody tr:visible").count() == 1
    page.locator("#what input[value=nsa]").uncheck()
    settle(page)
    names = page.evaluate("document.getElementById('q1-share-0').data.map((t) => t.name)")
    assert "dynsiha" in names
    assert "nsa" not in names
    headers = page.locator("#q1-overview tbody:not([hidden]) th").all_text_contents()
    assert "nsa" not in [text.strip() for text in headers]
    page.locator("#what input[data-what=tile][value='16']").uncheck()
    settle(page)
    assert page.locator("#q1 .card:visible").count() < 3


@pytest.mark.browser
def test_a_point_opens_its_training(show, quality_frame: pd.DataFrame, curves) -> None:
    page = show(quality_frame, report={"curves": curves})
    page.locator("#q0-share-0 .scatterlayer .point").last.click(force=True)
    page.wait_for_function("document.querySelector('#drawer').open")
    text = page.locator("#drawer-body").inner_text()
    assert "eval_loss" in text
    assert "dynbench run --suite quality" in text
    assert re.search(r"#q0-case-\d+$", page.url)
    page.keyboard.press("Escape")
    heads = page.locator("#q0-cases thead th").all_inner_texts()
    assert "held-out loss (nats)" in heads
    assert "seed" in heads


@pytest.mark.browser
def test_a_narrow_window_and_paper(show, quality_frame: pd.DataFrame, curves) -> None:
    page = show(quality_frame, width=390, report={"curves": curves})
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    assert serious(page) == []
    page.emulate_media(media="print")
    page.evaluate("window.dispatchEvent(new Event('beforeprint'))")
    assert len(page.pdf(format="A4")) > 20_000


@pytest.mark.browser
def test_hostile_strings_are_shown_and_do_nothing(show, training: Build) -> None:
    bad = (
        "<img src=http://evil/x onerror='window.hacked=1'></script><script>window.hacked=1</script>"
    )
    worse = f"{bad}\u202e{'x' * 10_000}"
    more = {"task": worse, "reason": worse, "details": worse, "command": worse, "gpu_name": worse}
    rows = [
        training(provider, seed, variant=variant, **more)
        for provider in ("sdpa", worse)
        for variant in (None, worse)
        for seed in (0, 1)
    ]
    rows.append(training(worse, 0, query_tile=4, status="error", **more))
    records = pd.DataFrame(
        [
            {"run_id": row["run_id"], "case_id": row["case_id"], "step": step, "layer": layer}
            | dict.fromkeys(("train_loss", "activation_rate", "gate_sliding"), 0.5)
            for row in rows
            for step in (1, 2)
            for layer in ("", worse)
        ]
    ).reindex(columns=list(CURVE_COLUMNS))
    curves = {(a, b): held for (a, b), held in records.groupby(["run_id", "case_id"])}
    page = show(pd.DataFrame(rows), report={"curves": curves})
    assert page.evaluate("window.hacked") is None
    assert all(page.evaluate(COUNT, "q0"))
    legend = page.locator("#q0 .legendtext").all_text_contents()
    assert any(text.startswith("<img src=http://evil/x") for text in legend)
    page.locator("#q0-share-0 .scatterlayer .point").first.click(force=True)
    page.wait_for_function("document.querySelector('#drawer').open")
    assert page.evaluate("window.hacked") is None


@pytest.mark.browser
def test_a_site_has_the_part_in_files(
    opened, quality_frame: pd.DataFrame, gpu_frame, curves, tmp_path
):
    frame = pd.concat([gpu_frame, quality_frame], ignore_index=True)
    page = opened(write_site(frame, tmp_path, curves=curves))
    link = page.locator("td, th", has_text="quality · recall").locator("a").first
    link.click()
    page.wait_for_function(READY)
    assert page.locator(".part:not([hidden])").get_attribute("id") == "q1"
    assert all(page.evaluate(COUNT, "q1"))
    steps = page.evaluate(
        """() => Math.max(...document.getElementById('q1-training-0').data
            .filter((t) => t.customdata).map((t) => t.x.length))"""
    )
    assert steps == 400
    page.locator("#q1 button.open").first.click()
    page.wait_for_function("document.querySelector('#drawer').open")
    assert "eval_accuracy" in page.locator("#drawer-body").inner_text()


def test_100_000_rows_stay_a_small_page(
    quality_frame: pd.DataFrame, curves, tmp_path: Path
) -> None:
    count, noise = 100_000, np.random.default_rng(0)
    copies = count // len(quality_frame) + 1
    frame = pd.concat([quality_frame] * copies, ignore_index=True).head(count)
    copy = frame.index // len(quality_frame)
    frame["top_n"] = frame["top_n"] + copy % 40
    frame["seed"] = frame["seed"] + 10 * (copy // 40)
    for name in ("eval_loss", "eval_accuracy", "attended_share", "latency_ms", "activation_rate"):
        frame[name] = (frame[name] * noise.uniform(0.95, 1.0, count)).astype("float64")
    frame["case_id"] = [f"{value:016x}" for value in noise.integers(0, 2**62, count)]
    frame["command"] += " --seed " + frame.index.astype(str)
    path = write_report(frame, tmp_path / "page.html", curves=curves)
    assert path.stat().st_size < 12e6
