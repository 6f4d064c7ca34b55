"""The live view: what it says of rows, and rows that land while a browser looks on."""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest

from dynbench.dashboards.errors import ReportError
from dynbench.dashboards.live import LiveRows, check_address, live_state
from dynbench.harness.store import RunWriter

Build = Callable[..., dict]


def test_without_a_run_it_waits() -> None:
    assert live_state(LiveRows("", pd.DataFrame())).headline.startswith("Waiting for a run")


def test_a_run_without_rows_says_so() -> None:
    state = live_state(LiveRows("a-run", pd.DataFrame(), planned=4))
    assert state.headline == "No row yet"
    assert state.progress == "Run a-run, running: 0 of 4 cases"


def test_rows_are_counted_drawn_and_listed_newest_first(gpu_frame: pd.DataFrame) -> None:
    state = live_state(LiveRows("a-run", gpu_frame, planned=200))
    ok = (gpu_frame["status"] == "ok").sum()
    assert state.progress.startswith(f"Run a-run, running: {len(gpu_frame)} of 200 cases ({ok} ok")
    newest = gpu_frame.iloc[-1]
    assert state.rows[0][4:] == (newest["status"], "", newest["reason"])
    titles = [title for title, _ in state.figures]
    assert titles[0] == "Latency, forward. Lower is better."
    (sdpa,) = [trace for trace in state.figures[0][1].data if trace.name == "sdpa"]
    rows = gpu_frame[(gpu_frame["provider"] == "sdpa") & (gpu_frame["pass"] == "forward")]
    assert list(sdpa.y) == pytest.approx(rows["latency_ms"].tolist(), rel=1e-5)


def test_the_comparison_of_the_newest_row_is_drawn(mixed_frame: pd.DataFrame) -> None:
    state = live_state(LiveRows("a-run", mixed_frame))
    assert len(state.titles) == 3
    assert state.chosen == 2
    assert live_state(LiveRows("a-run", mixed_frame), chosen=1).chosen == 1


@pytest.mark.parametrize("port", [-1, 0, 70_000])
def test_a_port_that_there_is_not_is_refused(port: int) -> None:
    with pytest.raises(ReportError, match=f"--port {port}: must be from 1 to 65535"):
        check_address("127.0.0.1", port)


def test_a_port_in_use_is_refused() -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        port = other.getsockname()[1]
        other.listen()
        with pytest.raises(ReportError, match=f"--port {port}: Address already in use; name"):
            check_address("127.0.0.1", port)
    check_address("127.0.0.1", port)


def test_without_dash_one_line_says_what_to_install(tmp_path: Path) -> None:
    code = (
        "import sys; sys.modules['dash'] = None; sys.argv = ['dynbench', 'serve']\n"
        "from dynbench.cli import main; main()"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 2
    assert done.stderr == "dynbench: dynbench serve needs Dash: pip install 'dynbench[serve]'\n"


@pytest.mark.browser
def test_rows_land_while_the_page_is_open(browser, row: Build, tmp_path: Path) -> None:
    pytest.importorskip("dash")
    bad = "<img src=x onerror='window.hacked=1'>"
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    server = subprocess.Popen(
        [str(Path(sys.executable).with_name("dynbench")), "serve", "--port", str(port)],
        cwd=tmp_path,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    page = browser.new_page(color_scheme="dark")
    try:
        for _ in range(100):
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", port)) == 0:
                    break
            time.sleep(0.2)
        page.goto(f"http://127.0.0.1:{port}")
        page.locator("h1", has_text="Waiting for a run").wait_for(timeout=30_000)
        with RunWriter.create(tmp_path / "dynbench-results", "dynbench run") as writer:
            writer.append(row("cpu", "sdpa", 8192, run_id=writer.run_id))
            page.locator("tbody tr").first.wait_for(timeout=30_000)
            failed = {"status": "error", "reason": bad, "run_id": writer.run_id}
            writer.append(row("cpu", "dynnsiha", 8192, **failed))
            page.locator("td", has_text="onerror").wait_for(timeout=30_000)
        assert page.locator("tbody tr").count() == 2
        assert "1 ok" in page.locator("#progress").inner_text()
        assert page.locator(".js-plotly-plot").count() > 0
        assert page.evaluate("window.hacked") is None
        ground = "getComputedStyle(document.body).backgroundColor"
        assert page.evaluate(ground) == "rgb(246, 247, 249)"  # as light as the figures
    finally:
        page.close()
        os.kill(server.pid, signal.SIGINT)
        server.wait(timeout=30)
