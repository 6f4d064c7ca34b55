"""The command line as its users meet it: real runs at tiny sizes, and every kind of bad input."""

from __future__ import annotations

import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from dynbench import cli
from dynbench.harness import store
from dynbench.harness.curves import read_curves
from dynbench.harness.gate.settings import Settings, read_settings
from dynbench.harness.gpus import Gpu
from dynbench.harness.measure import Limits, measure
from dynbench.harness.run import RunOptions
from dynbench.suites import request
from dynbench.suites.catalog import SUITES
from dynbench.suites.plan import PlanOptions, plan
from dynbench.suites.prepare import prepare
from dynbench.suites.quality.defaults import TASKS
from dynbench.suites.request import repeat_command
from dynbench.suites.shapes import SHAPES, Shape

README = Path(__file__).parents[1] / "README.md"
TINY = ("run", "--device", "cpu", "--quick", "--providers", "sdpa,dynnsiha", "--query-tile", "16")
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "COLUMNS": "200"}


def dynbench(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    """Run the command in a process of its own."""
    return subprocess.run(
        command(*arguments), cwd=cwd, env=ENVIRONMENT, capture_output=True, text=True, timeout=120
    )


def command(*arguments: str) -> list[str]:
    return [sys.executable, "-c", "from dynbench.cli import main; main()", *arguments]


def invoke(monkeypatch, capsys, *arguments: str) -> tuple[int, str, str]:
    """Run the entry point in this process: exit code, standard output and standard error."""
    monkeypatch.setattr(sys, "argv", ["dynbench", *arguments])
    with pytest.raises(SystemExit) as stop:
        cli.main()
    output = capsys.readouterr()
    return int(stop.value.code or 0), output.out, output.err


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A folder with one finished run in it, made by the command."""
    folder = tmp_path_factory.mktemp("cli")
    done = dynbench(*TINY, "--seq", "128,256", "--report", cwd=folder)
    assert done.returncode == 0, done.stderr
    assert "4 cases, predicted: " in done.stdout
    assert "[4/4] attention/dynnsiha forward T=256 R=16 m=1: " in done.stdout
    assert "Run: dynbench-results/" in done.stdout
    assert done.stdout.splitlines()[-1] == str(
        next(folder.rglob("report.html")).relative_to(folder)
    )
    return folder


@pytest.fixture
def inside(folder: Path, monkeypatch) -> Path:
    monkeypatch.chdir(folder)
    return folder


def run_folder(folder: Path) -> Path:
    (found,) = (folder / "dynbench-results").iterdir()
    return found


# Start-up


@pytest.mark.parametrize(
    "arguments", [["--help"], ["run", "--help"], ["profile", "--help"], ["list"], []]
)
def test_help_and_list_load_nothing_heavy(arguments, tmp_path):
    script = (
        "import sys, time; began = time.process_time()\n"
        "from dynbench.cli import main\n"
        "try: main()\n"
        "except SystemExit as stop: code = stop.code or 0\n"
        "heavy = sorted({'torch', 'pandas', 'pyarrow', 'plotly', 'scipy'} & set(sys.modules))\n"
        "print(code, heavy, time.process_time() - began, file=sys.stderr)"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, *arguments],
        cwd=tmp_path,
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
    )
    code, heavy, seconds = re.fullmatch(r"(\S+) (\[.*\]) (\S+)\n", done.stderr).groups()
    assert (code, heavy) == ("0", "[]")
    assert float(seconds) < 1.0
    assert "attention" in done.stdout
    assert not list(tmp_path.iterdir())


def test_list_names_what_run_takes(monkeypatch, capsys):
    code, out, _ = invoke(monkeypatch, capsys, "list")
    assert code == 0
    for name in (
        "attention",
        "layer",
        "generation",
        "training",
        "sdpa",
        ":cudnn",
        "flash-attn",
        "dynnsiha",
        "64/4/128",
    ):
        assert name in out


def test_doctor_says_what_runs_and_how_to_get_the_rest(monkeypatch, capsys):
    code, out, _ = invoke(monkeypatch, capsys, "doctor")
    assert code == 0
    assert re.search(r"^torch version +2", out, re.MULTILINE)
    assert re.search(r"^sdpa +yes +torch", out, re.MULTILINE)
    assert re.search(r"^dynnsiha +yes", out, re.MULTILINE)
    assert re.search(r"^flash +(yes|no +\S.*)", out, re.MULTILINE)
    assert re.search(r"^jieba +(yes|no +not installed.*pip install)", out, re.MULTILINE)


# A run, and what reads it


def test_show_prints_rows_and_filters_them(inside, monkeypatch, capsys):
    code, out, _ = invoke(monkeypatch, capsys, "show")
    assert code == 0
    assert len(re.findall(r"^sdpa +forward", out, re.MULTILINE)) == 2
    code, out, _ = invoke(monkeypatch, capsys, "show", "--provider", "dynnsiha")
    assert not re.search(r"^sdpa ", out, re.MULTILINE)
    assert len(re.findall(r"\d×", out)) == 2  # the speed-up still refers to the rows left out


@pytest.mark.parametrize(("suite", "told"), [("generation", "first token"), ("training", "R  ")])
def test_models_run_from_the_command_line(suite, told, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    words = ("--suite", suite, "--seq", "64", "--layers", "1", "--device", "cpu", "--quick")
    code, out, _ = invoke(monkeypatch, capsys, "run", *words, "--providers", "sdpa,dynnsiha")
    assert code == 0
    table = out[out.index("provider ") :]
    assert "tokens/s" in table
    assert told in table
    assert len(re.findall(r"^(sdpa|dynnsiha) .* ok\b", table, re.MULTILINE)) == 3
    assert len(re.findall(r", \S+ tokens/s", out)) == 3  # of the progress
    (page,) = tmp_path.glob("dynbench-results/*")
    code, out, _ = invoke(monkeypatch, capsys, "report", str(page), "--out", "page.html")
    assert code == 0
    assert "<h2>Tokens a second</h2>" in Path("page.html").read_text()


def test_show_json_has_every_column(inside, monkeypatch, capsys):
    name = run_folder(inside).name
    code, out, _ = invoke(monkeypatch, capsys, "show", name, "--json", "--status", "ok")
    rows = json.loads(out)
    assert code == 0
    assert [row["seq_len"] for row in rows] == [128, 128, 256, 256]
    assert all(row["run_id"] == name and len(row["samples_ms"]) >= 2 for row in rows)
    assert rows[0]["command"].startswith("dynbench run --suite attention --providers sdpa ")
    assert rows[0]["command"].endswith(" --quick")


def test_the_command_of_a_row_repeats_it(inside, monkeypatch, capsys):
    _, out, _ = invoke(monkeypatch, capsys, "show", "--json")
    for row in json.loads(out):
        arguments = shlex.split(row["command"])[1:]
        _, planned, _ = invoke(monkeypatch, capsys, *arguments, "--dry-run")
        assert re.findall(r"^[0-9a-f]{16}", planned, re.MULTILINE) == [row["case_id"]]


def test_stages_are_printed_kept_and_drawn(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    code, out, err = invoke(monkeypatch, capsys, *TINY, "--seq", "256", "--stages", "--report")
    assert code == 0, err
    words = " ".join(out.partition("where the time goes")[2].split())
    assert re.match(r"dynnsiha forward 256 .* pairs [\d.]+ (ms|µs) \(\d+ %\), .* other ", words)
    (page,) = tmp_path.rglob("report.html")
    assert "Where the time goes" in page.read_text(encoding="utf-8")
    dense, sparse = json.loads(invoke(monkeypatch, capsys, "show", "--json")[1])
    assert dense["stages_ms"] is None
    assert {"summaries", "compressed", "choice", "pairs"} <= set(json.loads(sparse["stages_ms"]))
    assert sparse["command"].endswith(" --quick --stages")


def test_the_window_can_be_left_out_beside_fla(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    options = ("--providers", "dynnsiha,fla", "--branches", "compressed,selected", "--quick")
    words = ("run", "--seq", "256", "--query-tile", "1", *options)
    code, out, err = invoke(monkeypatch, capsys, *words)
    assert code == 0, err
    assert re.search(r"dynnsiha +forward +compressed,selected .* ok", out)
    assert re.search(r"fla +forward +compressed,selected .*un(available|supported): ", out)


def test_show_csv(inside, monkeypatch, capsys):
    _, out, _ = invoke(monkeypatch, capsys, "show", "--csv")
    header, *lines = out.splitlines()
    assert header.startswith("run_id,case_id,workload_id")
    assert len(lines) == 4


def test_report_writes_a_page_and_prints_its_path(inside, monkeypatch, capsys):
    code, out, _ = invoke(monkeypatch, capsys, "report")
    page = Path(out.strip())
    assert code == 0
    assert page == Path("dynbench-results") / run_folder(inside).name / "report.html"
    assert "dynnsiha" in page.read_text(encoding="utf-8")
    code, out, _ = invoke(monkeypatch, capsys, "report", "--out", "pages/one.html")
    assert (code, out) == (0, "pages/one.html\n")
    assert Path("pages/one.html").stat().st_size > 100_000


def test_report_names_and_skips_broken_files(inside, monkeypatch, capsys, tmp_path):
    parquet = next(run_folder(inside).glob("*.parquet")).read_bytes()
    (tmp_path / "torn.parquet").write_bytes(parquet[: len(parquet) // 2])
    page = str(tmp_path / "page.html")
    torn = str(tmp_path / "torn.parquet")
    code, _, err = invoke(monkeypatch, capsys, "report", torn, "--out", page)
    assert code == 4
    assert "torn.parquet" in err
    assert not Path(page).exists()
    good = str(run_folder(inside))
    code, out, err = invoke(monkeypatch, capsys, "report", torn, good, "--out", page)
    assert (code, out.strip()) == (0, page)
    assert len(err.splitlines()) == 1
    assert "torn.parquet" in err


def test_report_skips_another_schema_version(inside, monkeypatch, capsys, tmp_path):
    import pyarrow.parquet as pq

    table = pq.read_table(next(run_folder(inside).glob("*.parquet")))
    metadata = {**table.schema.metadata, b"dynbench.schema_version": b"999"}
    pq.write_table(table.replace_schema_metadata(metadata), tmp_path / "later.parquet")
    page = tmp_path / "page.html"
    later = str(tmp_path / "later.parquet")
    code, _, err = invoke(monkeypatch, capsys, "report", later, "--out", str(page))
    assert code == 4
    assert "later.parquet" in err
    assert "999" in err
    assert not page.exists()


WRONG = "def attention(q, k, v):\n    return q * 0\n"
MEMOIZING = """
import functools
import torch

@functools.cache
def attention(q, k, v):
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))
    return torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2)
"""


@pytest.mark.parametrize("source", [WRONG, MEMOIZING])
def test_a_run_without_an_ok_row_ends_with_4(source, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "wrong.py").write_text(source)
    code, out, err = invoke(
        *(monkeypatch, capsys),
        *("run", "--device", "cpu", "--quick", "--seq", "128"),
        *("--providers", "wrong", "--provider-file", "wrong.py"),
    )
    assert code == 4
    assert "incorrect" in out
    assert not err


def test_the_readmes_own_kernel_is_measured(tmp_path, monkeypatch, capsys):
    """The ten lines that the README shows, run as it says."""
    monkeypatch.chdir(tmp_path)
    (source,) = re.findall(r"```python\n(import torch\n.*?)```", README.read_text(), re.DOTALL)
    (tmp_path / "my_kernel.py").write_text(source)
    code, out, err = invoke(
        *(monkeypatch, capsys),
        *("run", "--device", "cpu", "--quick", "--seq", "128", "--pass", "forward,backward"),
        *("--providers", "sdpa,my_kernel", "--provider-file", "my_kernel.py", "--q-heads", "2"),
    )
    assert code == 0, err
    rows = re.findall(r"^my_kernel +(forward|backward).*×.* ok\b", out, re.MULTILINE)
    assert sorted(rows) == ["backward", "forward"]


def test_an_output_may_be_an_input(tmp_path):
    """Of one token, attention is v itself: what is overwritten before a check must not be v."""
    file = tmp_path / "first.py"
    file.write_text("def attention(q, k, v):\n    return v\n")
    (case,) = plan(PlanOptions((1,), "cpu", providers=("first",), provider_files=(file,)))
    row = measure(prepare(case, (file,)), case, {}, None, Limits.quick())
    assert row["status"] == "ok", row["reason"]


# Interruptions

SLOW = """
import os, time
import torch

def attention(q, k, v):
    while q.shape[1] == 256 and not os.path.exists("go"):
        time.sleep(0.05)
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))
    return torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2)
"""


@pytest.mark.parametrize("stop", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_an_interrupted_run_is_resumed(stop, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "slow.py").write_text(SLOW)
    arguments = ["run", "--device", "cpu", "--quick", "--budget", "10m", "--seq", "128,256,128"]
    arguments += ["--providers", "slow", "--provider-file", "slow.py", "--out", "runs"]
    process = subprocess.Popen(
        command(*arguments), cwd=tmp_path, env=ENVIRONMENT, stderr=subprocess.PIPE, text=True
    )
    deadline = time.monotonic() + 60
    while not any(path.stat().st_size for path in tmp_path.glob("runs/*/rows.jsonl")):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    process.send_signal(stop)
    _, err = process.communicate(timeout=30)
    assert process.returncode == (-signal.SIGKILL if stop == signal.SIGKILL else 130)
    if stop != signal.SIGKILL:
        assert not list(tmp_path.glob("runs/*/rows.jsonl")), "what is finished is compacted"
        assert len(err.splitlines()) == 1
    before = json.loads(invoke(monkeypatch, capsys, "show", "runs", "--json")[1])
    assert [(row["seq_len"], row["status"]) for row in before] == [(128, "ok")]
    (tmp_path / "go").touch()
    code, out, err = invoke(monkeypatch, capsys, *arguments, "--resume")
    assert code == 0, err
    assert "1 case, predicted: " in out
    assert "(1 finished before)" in out
    after = json.loads(invoke(monkeypatch, capsys, "show", "runs", "--json")[1])
    assert [(row["seq_len"], row["status"]) for row in after] == [(128, "ok"), (256, "ok")]
    assert after[0]["started_at"] == before[0]["started_at"]
    assert len(list(tmp_path.glob("runs/*"))) == 1


NOTING = """
import os
import torch

def attention(q, k, v):
    with open("pids", "a") as pids:
        print(os.getpid(), file=pids)
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))
    return torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2)
"""


def test_an_own_kernel_ends_its_worker_and_is_measured_again_once_edited(
    tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    file = tmp_path / "mine.py"
    file.write_text(NOTING)
    arguments = ["run", "--device", "cpu", "--quick", "--seq", "128,256", "--out", "runs"]
    arguments += ["--providers", "mine", "--provider-file", "mine.py"]
    assert invoke(monkeypatch, capsys, *arguments)[0] == 0
    assert len(set((tmp_path / "pids").read_text().split())) == 2  # a worker for each of two cases
    assert "(2 finished before)" in invoke(monkeypatch, capsys, *arguments, "--resume")[1]
    file.write_text(file.read_text() + "# edited\n")
    assert "2 cases, predicted" in invoke(monkeypatch, capsys, *arguments, "--resume")[1]
    code, _, err = invoke(monkeypatch, capsys, *arguments, "--no-quick", "--resume")
    assert code == 2
    assert "this run was made with --quick; add it" in err


def test_a_run_goes_on_when_nobody_reads_it(tmp_path, monkeypatch, capsys):
    line = f"{shlex.join(command(*TINY, '--seq', '128'))} | head -1; echo ${{PIPESTATUS[0]}}"
    done = subprocess.run(
        ["bash", "-c", line], cwd=tmp_path, env=ENVIRONMENT, capture_output=True, text=True
    )
    assert done.stdout.splitlines()[1:] == ["0"]
    assert not done.stderr
    monkeypatch.chdir(tmp_path)
    rows = json.loads(invoke(monkeypatch, capsys, "show", "--json")[1])
    assert [row["status"] for row in rows] == ["ok", "ok"]
    assert list(tmp_path.glob("dynbench-results/*/rows.parquet"))


def test_an_encoding_without_the_signs_ends_nothing(inside):
    done = subprocess.run(
        command("show"),
        cwd=inside,
        env={**ENVIRONMENT, "PYTHONIOENCODING": "ascii"},
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert "1.00?" in done.stdout


@pytest.mark.parametrize("gpus", ["0", "all", "0,1"])
def test_gpus_where_there_is_none(gpus, monkeypatch, capsys, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    code, out, err = invoke(monkeypatch, capsys, "run", "--seq", "128", "--gpus", gpus)
    assert (code, out) == (2, "")
    assert err.startswith(f"dynbench: --gpus {gpus}: torch finds no GPU here; ")
    assert err.count("\n") == 1
    (tmp_path / "sweep.toml").write_text(f"gpus = {json.dumps(gpus)}")
    assert invoke(monkeypatch, capsys, "run", "--config", "sweep.toml") == (2, "", err)
    assert not (tmp_path / "dynbench-results").exists()


@pytest.mark.parametrize("name", ["cpu", "gpu"])
def test_the_self_checks_compare_at_least_200_cases(name, monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    settings = read_settings(Path(__file__).parents[1] / f"results/self-check/{name}.toml")
    assert len(plan(request.wanted_by(settings.run))) >= 200
    assert settings.min_rounds == Settings().min_rounds
    assert name == "gpu" or settings.max_rounds == settings.min_rounds
    assert settings.retest


@pytest.mark.parametrize("name", ["cpu-planted", "gpu"])
def test_slow_downs_are_planted_into_at_least_100_cases(name, monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    settings = read_settings(Path(__file__).parents[1] / f"results/self-check/{name}.toml")
    assert len(plan(request.wanted_by(settings.run))) >= 100
    assert settings.max_rounds > settings.min_rounds == Settings().min_rounds


def test_several_gpus_are_predicted_to_share_the_work(monkeypatch, capsys):
    found = [Gpu(index, "planted", None) for index in range(2)]
    monkeypatch.setattr("dynbench.suites.request.visible_gpus", lambda: found)
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    seconds = []
    for gpus in ("1", "all"):
        arguments = ("run", "--seq", "8k,10k", "--providers", "sdpa", "--gpus", gpus, "--dry-run")
        code, out, _ = invoke(monkeypatch, capsys, *arguments)
        assert code == 0
        match = re.search(r"^4 cases, predicted: (\d+) s$", out, re.MULTILINE)
        assert match is not None, out
        seconds.append(int(match[1]))
    assert seconds[1] < 0.6 * seconds[0]


def test_quick_cases_are_predicted_by_the_limits_they_run_under():
    quick = cli._predictor(RunOptions(quick=True, stages=True))
    assert quick.slow_call_s == Limits.quick().slow_call_s
    assert quick.stage_calls == Limits.quick().stage_calls
    usual = cli._predictor(RunOptions())
    assert (usual.slow_call_s, usual.stage_calls) == (Limits().slow_call_s, 0)


# Bad input

BAD = {
    "--seq 8k..4k": "8k..4k",
    "--seq abc": "abc",
    "--seq 0": "'0'",
    "--seq -8k": "-8k",
    "--providers sdap": "did you mean 'sdpa'",
    "--providers ,": "--providers",
    "--suite attentoin": "did you mean 'attention'",
    "--pass forwad": "did you mean 'forward'",
    "--shape papr": "did you mean 'paper'",
    "--dtype bfloat": "did you mean 'bfloat16'",
    "--device gpu": "gpu",
    "--timer graph": "--timer graph needs a GPU: --device cpu takes --timer wall",
    "--timer evnt": "did you mean 'event'",
    "--out a_file": "a_file",
    "--out a_file/runs": "a_file",
    "--sparsity 1.5": "1.5",
    "--sparsity 1": "1",
    "--sparsity x": "'x'",
    "--sparsity 0.5 --top-n 8": "top_n",
    "--q-heads 6 --kv-heads 4": "kv_heads=4",
    "--q-heads 0": "q_heads=0",
    "--head-dim x": "--head-dim",
    "--shape paper --q-heads 4": "--shape",
    "--batch 0": "batch=0",
    "--top-n 1": "top_n=1",
    "--query-tile 7": "query_tile=7",
    "--query-tile 1,x": "'x'",
    "--private-blocks -1": "-1",
    "--budget soon": "'soon'",
    "--timeout 0": "'0'",
    "--provider-file nothing.py": "nothing.py",
    "--provider-file a_file": "a_file",
    "--config nothing.toml": "nothing.toml",
    "--config a_file": "a_file",
    "--suite quality --task recal": "did you mean 'recall'",
    "--suite quality --variant kll=1": "did you mean 'kl'",
    "--suite quality --variant kl": "'kl' is no name=value",
    "--suite quality --seeds x": "--seeds",
    "--suite quality --train-steps 0": "train_steps=0",
    "--suite quality --block-size 3": "block_size=3",
    "--suite quality --inputs text": "suite quality takes no inputs",
    "--block-size 16": "block_size=16: only suite quality takes it",
    "--task text": "tasks=text: only suite quality takes it",
    "--variant none": "variants=none: only suite quality takes it",
    "--seeds 1,2": "seeds=1,2: only suite quality takes it",
    "--jobs 2": "suite attention measures time",
    "--suite quality --jobs 0": "--jobs 0: must be at least 1",
    "--layers 3": "only the suites of models take it",
    "--model-dim 96": "--suite layer",
    "--resume": "no run",
    "--sequence 8k": "No such option",
    "8k": "'8k' belongs to no option: lengths are --seq",
    "--resume a_file": "'a_file' belongs to no option: --out a_file --resume goes on",
    "--providers nsa, sdpa": "'sdpa' belongs to no option",
}


@pytest.mark.parametrize("arguments", BAD)
def test_bad_input_is_one_line_and_nothing_written(arguments, tmp_path, monkeypatch, capsys):
    (tmp_path / "a_file").write_text("no TOML")
    monkeypatch.chdir(tmp_path)
    words = arguments.split()
    device = [] if "--device" in words else ["--device", "cpu"]
    code, out, err = invoke(monkeypatch, capsys, "run", *device, *words)
    assert (code, out) == (2, "")
    assert len(err.splitlines()) == 1
    assert BAD[arguments] in err
    assert "Traceback" not in err
    assert [path.name for path in tmp_path.iterdir()] == ["a_file"]


@pytest.mark.skipif(os.geteuid() == 0 and not Path("/proc/self").exists(), reason="needs /proc")
def test_a_folder_that_cannot_be_written(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    if os.geteuid() == 0:  # root may write anywhere but where the kernel says no
        locked = Path("/proc/self/runs")
    else:
        locked = tmp_path / "locked"
        locked.mkdir(mode=0o500)
    code, out, err = invoke(
        monkeypatch, capsys, "run", "--device", "cpu", "--seq", "128", "--out", str(locked)
    )
    assert (code, out) == (2, "")
    assert len(err.splitlines()) == 1
    assert str(locked) in err


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        (["show", "nothing"], "no run 'nothing'"),
        (["report", "nothing"], "no run 'nothing'"),
        (["report", "--out", "."], "is a folder"),
        (["report", "--out", "dynbench-results/x.html", "--baseline", "sdap"], "'sdpa'"),
        (["show", "--status", "okay"], "did you mean 'ok'"),
        (["show", "--provider", "sdap"], "did you mean 'sdpa'"),
        (["shwo"], "show"),
    ],
)
def test_bad_input_of_readers(arguments, part, inside, monkeypatch, capsys):
    before = sorted(path.name for path in inside.rglob("*"))
    code, out, err = invoke(monkeypatch, capsys, *arguments)
    assert (code, out, len(err.splitlines())) == (2, "", 1)
    assert part in err
    assert sorted(path.name for path in inside.rglob("*")) == before


def test_readers_without_any_run(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for name in ("show", "report"):
        code, _, err = invoke(monkeypatch, capsys, name)
        assert (code, len(err.splitlines())) == (2, 1)
        assert "dynbench run" in err


@pytest.mark.parametrize("debug", [False, True])
def test_an_internal_error_is_one_line_unless_debugged(debug, monkeypatch, capsys):
    def broken(_: str) -> list[int]:
        raise RuntimeError("planted\nin two lines")

    monkeypatch.delenv("DYNBENCH_DEBUG", raising=False)
    monkeypatch.setattr(cli.sweep, "parse_lengths", broken)
    code, _, err = invoke(monkeypatch, capsys, "run", *["--debug"] * debug)
    assert code == 70
    assert "internal error: RuntimeError: planted in two lines" in err.splitlines()[-1]
    assert ("Traceback" in err) == debug
    assert debug or len(err.splitlines()) == 1


def test_a_closed_pipe_is_no_error(tmp_path):
    line = f"{shlex.join(command('list'))} | true; echo ${{PIPESTATUS[0]}}"
    done = subprocess.run(
        ["bash", "-c", line], cwd=tmp_path, env=ENVIRONMENT, capture_output=True, text=True
    )
    assert (done.stdout, done.stderr) == ("0\n", "")


# Options


def planned(*arguments: str) -> list[str]:
    """Case ids that a command line plans."""
    result = CliRunner().invoke(cli.app, ["run", *arguments, "--dry-run"], catch_exceptions=False)
    return re.findall(r"^[0-9a-f]{16}", result.stdout, re.MULTILINE)


def test_a_config_file_sets_options_and_the_command_line_wins(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    config = tmp_path / "sweep.toml"
    config.write_text(
        'seq = "128,256"\nproviders = ["sdpa", "dynnsiha"]\npass = "backward"\n'
        'query-tile = [1, 16]\ndevice = "cpu"\nq_heads = 2\nsparsity = [0.5, 0.75]\nquick = true\n'
    )
    flags = ["--seq", "128,256", "--providers", "sdpa,dynnsiha", "--pass", "backward"]
    flags += ["--query-tile", "1,16", "--device", "cpu", "--q-heads", "2", "--sparsity", "0.5,0.75"]
    assert planned("--config", str(config)) == planned(*flags)
    assert planned("--config", str(config), "--seq", "512") == planned(*flags, "--seq", "512")
    assert len(planned("--config", str(config))) > 2


@pytest.mark.parametrize(
    ("text", "flags"),
    [
        ('shape = "headless"', ["--q-heads", "2"]),
        ("q-heads = 2\nkv_heads = 1", ["--shape", "headless"]),
        ("sparsity = [0.25, 0.5]", ["--top-n", "5"]),
        ("top_n = 5", ["--sparsity", "0.25"]),
        ("quick = true\nisolate = true", ["--no-quick", "--no-isolate"]),
        ("seeds = [0, 1]", ["--suite", "quality", "--seed", "3"]),
        ("seed = 3", ["--suite", "quality", "--seeds", "0,1"]),
    ],
)
def test_the_command_line_wins_over_what_excludes_it(text, flags, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("sweep.toml").write_text(text)
    common = ["--device", "cpu", "--seq", "2k", "--providers", "sdpa,dynnsiha"]
    found = planned("--config", "sweep.toml", *common, *flags)
    assert found == planned(*common, *flags)
    assert found


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("sec = '8k'", "did you mean 'seq'"),
        ("[seq]\na = 1", "not a table"),
        ("seq = ", "Invalid value"),
    ],
)
def test_a_bad_config_file(text, part, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Path("sweep.toml").write_text(text)
    code, out, err = invoke(monkeypatch, capsys, "run", "--config", "sweep.toml")
    assert (code, out, len(err.splitlines())) == (2, "", 1)
    assert part in err


def test_dry_run_predicts_and_writes_nothing(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    code, out, _ = invoke(monkeypatch, capsys, "run", "--device", "cpu", "--dry-run")
    assert code == 0
    assert re.search(r"^25 cases, predicted: \d+ min$", out, re.MULTILINE)
    assert not list(tmp_path.iterdir())


def requests() -> st.SearchStrategy[PlanOptions]:
    """Sweeps over every axis; a user's own providers and trainings have tests of their own."""
    return st.sampled_from([name for name in SUITES if name != "quality"]).flatmap(_requests_of)


def _requests_of(suite: str) -> st.SearchStrategy[PlanOptions]:
    heads = st.sampled_from([*SHAPES.values(), Shape("", 6, 2, 32, batch=3), Shape("", 8, 8, 80)])
    some = {"min_size": 1, "max_size": 2, "unique": True}
    names = ["sdpa", "sdpa:math", "flash", "nsa", "fla", "dynsiha", "dynnsiha"]
    cuts = st.one_of(
        st.fixed_dictionaries({"top_n": st.none() | st.integers(3, 40)}),
        st.fixed_dictionaries(
            {"sparsities": st.lists(st.floats(0, 0.99), **some).map(tuple)},
        ),
    )
    return st.builds(
        lambda cut, **more: PlanOptions(**more, **cut),
        cut=cuts,
        seq_lens=st.lists(st.integers(1, 200_000), **some).map(tuple),
        device=st.sampled_from(["cpu", "cuda"]),
        suite=st.just(suite),
        providers=st.lists(st.sampled_from(names), **some).map(tuple),
        passes=st.lists(st.sampled_from(SUITES[suite].passes), **some).map(tuple),
        shapes=st.lists(heads, min_size=1, max_size=2).map(tuple),
        dtype=st.none() | st.sampled_from(["float32", "float16", "bfloat16"]),
        batch=st.none() | st.integers(1, 9),
        model_dim=st.none() if suite == "attention" else st.none() | st.integers(1, 999),
        layers=st.none() if suite in ("attention", "layer") else st.none() | st.integers(1, 9),
        window=st.integers(1, 2000),
        branches=st.none()
        | st.sets(st.sampled_from(["compressed", "sliding"])).map(lambda s: ("selected", *s)),
        query_tiles=st.none() | st.lists(st.sampled_from([1, 4, 64, "auto"]), **some).map(tuple),
        private_blocks=st.none() | st.lists(st.integers(0, 20), **some).map(tuple),
        seed=st.integers(0, 2**31),
        timer=st.none() | st.just("wall"),
    )


@given(options=requests())
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_repeat_command_plans_that_case_alone(options, monkeypatch_module):
    for case in plan(options)[:12]:
        assert planned(*shlex.split(repeat_command(case))[2:]) == [case.case_id]


def trainings() -> st.SearchStrategy[PlanOptions]:
    """Sweeps of suite quality over every axis of its own."""
    some = {"min_size": 1, "max_size": 2, "unique": True}
    names = ["sdpa", "sliding", "nsa", "dynsiha", "dynnsiha", "flat"]
    variants = ["none", "kl=0.1,lr=0.01", "compression=conv", "optimizer=rmsuon", "form=flat"]
    return st.builds(
        PlanOptions,
        suite=st.just("quality"),
        seq_lens=st.lists(st.integers(2, 9000), **some).map(tuple),
        device=st.sampled_from(["cpu", "cuda"]),
        providers=st.lists(st.sampled_from(names), **some).map(tuple),
        tasks=st.none() | st.lists(st.sampled_from(list(TASKS)), **some).map(tuple),
        train_steps=st.none() | st.integers(1, 9000),
        layers=st.none() | st.integers(1, 9),
        block_size=st.none() | st.sampled_from([8, 16, 64]),
        window=st.none() | st.integers(1, 700),
        branches=st.none() | st.just(("selected", "sliding")),
        sparsities=st.just(()) | st.just((0.9,)),
        query_tiles=st.none() | st.just((1, 8)),
        private_blocks=st.none() | st.just((0, 2)),
        variants=st.lists(st.sampled_from(variants), max_size=2).map(tuple),
        seeds=st.none() | st.lists(st.integers(0, 99), **some).map(tuple),
    )


@given(options=trainings())
@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_repeat_command_plans_that_training_alone(options, monkeypatch_module):
    for case in plan(options)[:12]:
        assert planned(*shlex.split(repeat_command(case))[2:]) == [case.case_id]


# Trainings

TRAIN = "run --suite quality --device cpu --task copy --seq 16 --q-heads 2 --head-dim 8 --layers 1"
TRAIN += " --batch 2 --train-steps 3 --window 8 --block-size 8 --out runs"


def test_trainings_make_rows_and_curves_and_are_resumed(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    words = [*TRAIN.split(), "--providers", "sdpa,dynnsiha", "--seeds", "1"]
    variants = ("--variant", "none", "--variant", "kl=0.1")
    code, out, err = invoke(monkeypatch, capsys, *words, *variants)
    assert code == 0, err
    assert "4 cases, predicted: " in out
    assert re.search(r"quality/dynnsiha train_step T=16 .* copy seed 1 \(kl=0.1\): ", out)
    assert re.search(r"provider +pass +task +variant +T .* loss +accuracy ", out)
    assert "vs sdpa" not in out
    (folder,) = (tmp_path / "runs").iterdir()
    rows, problems = store.read_rows([folder])
    assert problems == []
    assert [row["status"] for row in rows].count("ok") == 3
    refused = [row for row in rows if row["status"] != "ok"]
    assert {(row["provider"], row["variant"]) for row in refused} == {("sdpa", "kl=0.1")}
    curves = read_curves(folder)
    trained = {row["case_id"]: row for row in rows if row["status"] == "ok"}
    assert {record["case_id"] for record in curves} == set(trained)
    last = {r["case_id"]: r["eval_loss"] for r in curves if not r["layer"]}
    assert last == {case_id: row["eval_loss"] for case_id, row in trained.items()}

    more = [*words[:-1], "0,1", "--resume", "--jobs", "2"]
    code, out, err = invoke(monkeypatch, capsys, *more)
    assert code == 0, err
    assert "2 cases, predicted: " in out
    assert "(2 finished before)" in out
    after = {row["case_id"]: row for row in store.read_rows([folder])[0]}
    assert len(after) == 6
    assert all(after[case_id] == row for case_id, row in trained.items())
    repeat = shlex.split(trained[max(trained)]["command"])[1:]
    code, out, err = invoke(monkeypatch, capsys, *repeat)
    assert code == 0, err
    assert f"loss {trained[max(trained)]['eval_loss']:.4f}" in out
    code, out, err = invoke(monkeypatch, capsys, "show", str(folder))
    assert code == 0, err
    assert re.search(r"provider +pass +task +variant +seed +T .* loss +accuracy ", out)
    assert "vs sdpa" not in out
    code, _, err = invoke(monkeypatch, capsys, "report", str(folder))
    assert code == 0, err


def test_a_training_over_its_time_has_no_result(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    words = [*TRAIN.split(), "--providers", "sdpa", "--timeout", "6s"]
    words[words.index("--train-steps") + 1] = "1000000"
    assert invoke(monkeypatch, capsys, *words)[0] == 4
    ((row,), _) = store.read_rows([tmp_path / "runs"])
    assert row["status"] == "timeout"
    assert row["reason"] == "stopped at its time limit of 6 s (in stage: run)"
    assert row["eval_loss"] is row["latency_ms"] is None
    assert read_curves(next((tmp_path / "runs").iterdir())) == []


@pytest.fixture(scope="module")
def monkeypatch_module(tmp_path_factory):
    """Plan for a GPU on a machine without one, in an empty folder."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("torch.cuda.is_available", lambda: True)
        patch.chdir(tmp_path_factory.mktemp("repeat"))
        yield


# Profiles


def test_a_case_of_a_run_is_profiled_by_its_id_and_reported(inside, monkeypatch, capsys):
    run = run_folder(inside)
    code, out, _ = invoke(monkeypatch, capsys, "show", str(run), "--provider", "dynnsiha")
    ids = re.findall(r"^dynnsiha .* ([0-9a-f]{8}) +ok\b", out, re.MULTILINE)
    assert (code, len(ids)) == (0, 2)
    code, out, err = invoke(monkeypatch, capsys, "profile", ids[0], "--run", str(run))
    assert (code, err) == (0, "profiling with torch\n")
    assert out.startswith("attention/dynnsiha forward T=128 1/1/64 float32")
    assert re.search(r"^torch +\S", out, re.MULTILINE)
    assert "aten::" in out
    assert re.search(r"^proton: .*CPU$", out, re.MULTILINE)
    assert re.search(r"^ncu: .*CPU$", out, re.MULTILINE)
    (profile,) = (run / "profiles").iterdir()
    assert f"Profile: {profile}\n" in out
    code, _, err = invoke(monkeypatch, capsys, "report", str(run), "--out", "page.html")
    assert (code, err) == (0, "")
    assert 'id="profiles"' in (inside / "page.html").read_text()
    assert invoke(monkeypatch, capsys, "show", str(run))[0] == 0


def test_a_profile_repeats_by_its_own_command(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    words = ("--device", "cpu", "--seq", "64", "--providers", "nsa", "--pass", "backward")
    code, out, _ = invoke(monkeypatch, capsys, "profile", *words, "--json")
    rows = json.loads(out)
    assert code == 0
    assert {row["pass"] for row in rows} == {"backward"}
    again = shlex.split(rows[0]["command"])
    assert again[:2] == ["dynbench", "profile"]
    code, out, _ = invoke(monkeypatch, capsys, *again[1:], "--json", "--out", "elsewhere")
    assert code == 0
    assert json.loads(out)[0]["case_id"] == rows[0]["case_id"]
    assert len(list(Path("elsewhere/profiles").iterdir())) == 1


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        ([], "name a case"),
        (["--seq", "1k,2k", "--providers", "sdpa", "--device", "cpu"], "2 cases in the plan"),
        (["nowhere"], "no case 'nowhere' in "),
        (["sdpa*", "--seq", "1k", "--run", "x"], "--run is of stored rows"),
        (["x", "--seq", "1k", "--device", "cpu"], "no case 'x' in the plan of these options"),
    ],
)
def test_what_names_no_single_case_is_a_usage_error(inside, monkeypatch, capsys, words, complaint):
    code, _, err = invoke(monkeypatch, capsys, "profile", *words)
    assert code == 2
    assert complaint in err
    assert err.count("\n") == 1


def test_an_own_kernel_is_profiled_from_its_file(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    kernel = "def attention(q, k, v):\n    return v.clone()\n"
    Path("mine.py").write_text(kernel)
    words = ("--device", "cpu", "--seq", "64", "--providers", "mine", "--provider-file", "mine.py")
    code, _, err = invoke(monkeypatch, capsys, "profile", *words)
    assert code == 4
    assert "attention/mine forward T=64: incorrect: rms error" in err
