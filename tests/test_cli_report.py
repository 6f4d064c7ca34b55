"""``dynbench report`` and ``dynbench serve`` as commands, on committed runs."""

import subprocess
import sys
from pathlib import Path

import pytest

from dynbench.harness.store import read_runs

ROOT = Path(__file__).parents[1]
CPU, H100 = ROOT / "results" / "cpu", ROOT / "results" / "h100"


def dynbench(*arguments: object, cwd: Path) -> subprocess.CompletedProcess[str]:
    program = Path(sys.executable).with_name("dynbench")
    words = [str(program), *map(str, arguments)]
    return subprocess.run(words, cwd=cwd, capture_output=True, text=True, timeout=300)


def test_a_page_of_runs_without_sdpa_takes_the_dense_provider_there_is(tmp_path: Path) -> None:
    done = dynbench("report", H100, "--out", "page.html", cwd=tmp_path)
    assert (done.returncode, done.stdout, done.stderr) == (0, "page.html\n", "")
    text = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert "against flash" in text
    assert "without a baseline" not in text


def test_a_site_of_all_machines(tmp_path: Path) -> None:
    done = dynbench("report", CPU, H100, "--site", "--history", "--out", "public", cwd=tmp_path)
    assert (done.returncode, done.stdout) == (0, "public/index.html\n")
    machines = read_runs([CPU, H100])[0]["machine_id"].nunique()
    assert machines >= 2
    assert len(list((tmp_path / "public").glob("*.html"))) == 1 + machines


def test_two_runs_lead_the_page(tmp_path: Path) -> None:
    (run,) = [path.parent for path in CPU.rglob("rows.parquet")]
    done = dynbench("report", "--compare", run, run, "--out", "page.html", cwd=tmp_path)
    assert done.returncode == 0
    text = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert 'data-chosen="change"' in text
    assert "of 25 cases" in text


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["report", CPU, "--out", "."], "is a folder"),
        (["report", CPU, "--baseline", "sdap"], "'sdpa'"),
        (["report", "--compare", "nothing", CPU], "no run 'nothing'"),
        (["report", "--compare", CPU, "--out", "page.html"], "names one run; write --compare A B"),
        (["serve", "nothing"], "no run 'nothing'"),
    ],
)
def test_slips_are_told_in_one_line(tmp_path: Path, arguments: list, said: str) -> None:
    done = dynbench(*arguments, cwd=tmp_path)
    assert done.returncode == 2
    assert said in done.stderr
    assert len(done.stderr.splitlines()) == 1
