"""Figures as files: names, room for the legend, and kaleido's own drawing."""

import os
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest

from dynbench.dashboards.errors import ReportError
from dynbench.dashboards.export import alone, export_figures, figures_of
from dynbench.dashboards.figures.latency import latency_figure
from dynbench.dashboards.model import build_facets


def test_every_figure_of_a_report_has_its_own_name(mixed_frame: pd.DataFrame) -> None:
    named = list(figures_of(build_facets(mixed_frame, None)))
    names = [name for name, _ in named]
    assert len(set(names)) == len(names) > 40
    assert all(name == name.lower() and "/" not in name for name in names)
    assert any(name.endswith("_latency_forward") for name in names)
    for _, figure in named:
        assert figure.layout.template.layout.font.family
        assert figure.layout.height > 0


def test_yellow_is_darker_on_white(row) -> None:
    frame = pd.DataFrame([row("gpu", "fla", seq_len) for seq_len in (8192, 16384)])
    figure = alone(latency_figure(build_facets(frame, None)[0].panels[0]))
    assert {trace.line.color for trace in figure.data if trace.mode != "lines"} == {"#9A8C00"}


def test_without_kaleido_one_line_says_what_to_install(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "kaleido", None)
    with pytest.raises(ReportError, match=r"pip install 'dynbench\[figures\]'"):
        export_figures([], tmp_path)


@pytest.mark.browser
def test_files_are_drawn(browser, cpu_frame: pd.DataFrame, tmp_path: Path) -> None:
    pytest.importorskip("kaleido")
    facets = build_facets(cpu_frame, None)
    named = [held for held in figures_of(facets) if held[0].endswith("latency_forward")]
    svg, png = export_figures(named, tmp_path / "figures")
    assert svg.suffix == ".svg"
    text = svg.read_text()
    assert "sequence length (tokens)" in text
    assert "dynnsiha · exact" in text
    assert png.read_bytes().startswith(b"\x89PNG")
    assert png.stat().st_size > 10_000


def test_without_a_browser_one_line_says_what_to_install(tmp_path: Path) -> None:
    pytest.importorskip("kaleido")
    code = (
        "import sys; from pathlib import Path; import plotly.graph_objects as go\n"
        "from dynbench.dashboards.export import export_figures, alone\n"
        "figure = go.Figure(layout={'height': 100, 'margin': {'b': 1}})\n"
        "from dynbench.dashboards.errors import ReportError\n"
        "try: export_figures([('a', figure)], Path(sys.argv[1]))\n"
        "except ReportError as error: print(error)\n"
    )
    environment = {**os.environ, "PATH": "/nowhere", "BROWSER_PATH": "/nowhere/chrome"}
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)],
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.stdout.startswith("--figures needs Chrome or Chromium"), done.stderr[-500:]
