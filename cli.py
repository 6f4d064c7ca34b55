"""The command line ``dynbench``: parses, calls, prints. What it prints is built elsewhere.

Heavy packages are imported inside the commands: ``dynbench --help`` and ``dynbench list`` load
neither torch nor pandas.
"""

from __future__ import annotations

import contextlib
import inspect
import io
import os
import shlex
import signal
import sys
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperCommand

from dynbench.dashboards import command, terminal
from dynbench.dashboards.errors import ReportError
from dynbench.dashboards.text import count_text
from dynbench.harness import run as runner
from dynbench.harness import store, sweep
from dynbench.harness.case import Case
from dynbench.harness.gate.commands import add_commands
from dynbench.harness.gate.errors import GateError
from dynbench.harness.gate.host import Host
from dynbench.harness.gpus import Gpu, GpuBusy, gpu_lane, locked
from dynbench.harness.lanes import Lane, predicted_duration_s, side_by_side
from dynbench.harness.machine import usable_cpus
from dynbench.harness.measure import Limits
from dynbench.harness.predict import Predictor
from dynbench.harness.profile.errors import NoSuchCase, ProfileError
from dynbench.harness.schema import Status
from dynbench.suites import request
from dynbench.suites.catalog import PROVIDERS, SUITES, provider_info
from dynbench.suites.cost import call_work, further_flops, once_s
from dynbench.suites.own import read_own_provider
from dynbench.suites.plan import plan
from dynbench.suites.quality.defaults import TASKS
from dynbench.suites.shapes import SHAPES, UsageError, unknown

if TYPE_CHECKING:
    import pandas as pd
    from rich.console import Console
    from rich.table import Table

    from dynbench.harness.crosscompile import Target

EXIT_USAGE, EXIT_INVALID_DATA, EXIT_INTERNAL, EXIT_INTERRUPTED = 2, 4, 70, 130
PREPARE = "dynbench.suites.prepare:prepare"
KERNELS = "dynbench.suites.kernels:launches"
QUICK_BUDGET = "1m"
PIPE_WIDTH = 160  # columns of a table that goes to no terminal

PACKAGE = "dynnsiha"  # what `gate --rev` takes from another revision
GATE_WORK = {"seq": "1k,4k", "providers": "nsa,dynnsiha", "pass": "forward,backward"}

app = typer.Typer(
    name="dynbench",
    help="Measure attention: DynNSIHA beside SDPA, FlashAttention, NSA and DynSIHA.",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


@app.callback()
def _common(
    debug: Annotated[
        bool, typer.Option("--debug", help="Show the traceback of an error (or DYNBENCH_DEBUG=1).")
    ] = False,
) -> None:
    """Options of every command; ``main`` reads --debug wherever it stands."""


def main() -> None:
    """Entry point: run the app, and turn every exception into one line and an exit code."""
    arguments = [argument for argument in sys.argv[1:] if argument != "--debug"]
    debug = len(arguments) < len(sys.argv) - 1 or bool(os.environ.get("DYNBENCH_DEBUG"))
    # a cancelled job (or `timeout`) asks by SIGTERM: as orderly an end as Ctrl-C
    with contextlib.suppress(ValueError):  # not in the main thread, where signals go
        signal.signal(signal.SIGTERM, signal.default_int_handler)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # an encoding without "×" must not end a run
            stream.reconfigure(errors="replace")
    try:
        code = app(args=arguments or ["--help"], prog_name="dynbench", standalone_mode=False)
        sys.stdout.flush()
    except BrokenPipeError:  # the reader of a pipe (`head`) has gone: no error of ours
        _mute_stdout()
        code = 0
    except (KeyboardInterrupt, typer.Abort):
        print("dynbench: interrupted", file=sys.stderr)
        code = EXIT_INTERRUPTED
    except Exception as error:
        if debug:
            traceback.print_exc()
        code, line = _explain(error)
        print(f"dynbench: {' '.join(line.split())}", file=sys.stderr)
    sys.exit(code)


def _mute_stdout() -> None:
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _explain(error: Exception) -> tuple[int, str]:
    """Exit code and message of an exception."""
    usage = (UsageError, sweep.SweepError, store.OutputError, GpuBusy, NoSuchCase, ReportError)
    if isinstance(error, usage):
        return EXIT_USAGE, str(error)
    if isinstance(error, GateError):
        return error.exit_code, str(error)
    if isinstance(error, (store.StoreError, ProfileError)):
        return EXIT_INVALID_DATA, str(error)
    if hasattr(error, "format_message"):  # the parser's own, whose classes differ between versions
        return EXIT_USAGE, error.format_message()
    return EXIT_INTERNAL, (
        f"internal error: {type(error).__name__}: {error} (--debug shows the traceback)"
    )


def _option(panel: str, flag: str, help_: str, metavar: str | None = None, **more: Any) -> Any:
    return typer.Option(flag, help=help_, metavar=metavar, rich_help_panel=panel, **more)


_WORK, _SHAPE, _HOW, _FILES = "What to measure", "Shape and settings", "How", "Files"
_SEQ = "Lengths: 8k..128k (doubling, the default), 8k..128k:x4, 8k..128k:+8k or 8k,12k."
_SUITE = (
    "attention (q, k, v to o), layer (x to y), a model's generation or training step, or quality "
    "(what a training reaches)."
)
_PROVIDERS = "Comma list of providers and variants (dynbench list)."
_OWN = "A Python file with attention(q, k, v), measured beside the others; repeatable."
_PASS = "Comma list of forward, backward and forward_backward; a model's suite has its own."
_TASK = f"What a model learns in suite quality: comma list of {', '.join(TASKS)}."
_STEPS = "Optimizer steps of a training in suite quality."
_SEEDS = "Comma list: a training for each, in place of --seed."
_SPARSITY = "Shares of the causal pairs to leave out; each solves --top-n."
_INPUTS = "normal, or text in the other suites."
_SHAPES = "Comma list of head shapes (dynbench list), or the next three options."
_KV_HEADS = "Key/value heads; as many as query heads if not given."
_MODEL_DIM = "Width of the residual stream in suites other than attention."
_LAYERS = "Blocks of a model; 4 on a GPU and 2 on a CPU if not given."
_TOP_N = "Blocks per query; 16 if not given (7 in suite quality)."
_WINDOW = "Keys of the sliding branch; 512 if not given (32 in suite quality)."
_BLOCK = "Tokens in a selection block in suite quality; 16 if not given. Elsewhere it is 64."
_VARIANT = (
    "An ablation in suite quality: name=value pairs with commas, or none (docs/quality.md); "
    "repeatable."
)
_BRANCHES = "Comma list of compressed, selected and sliding; all that a provider has if not given."
_TILE = "Queries that share a block list (R): comma list of numbers and auto."
_PRIVATE = "Blocks that a query adds to a shared list (m): comma list."
_DTYPE = "float32, float16 or bfloat16."
_DEVICE = "cpu or cuda; the GPU if there is one."
_GPUS = "all, or a comma list of numbers: share the cases out among these GPUs, one worker on each."
_JOBS = "Trainings side by side on each device; of suite quality, where time is not what counts."
_TIMER = (
    "event (default on cuda), graph (replays of a CUDA graph), proton (kernels alone) or wall "
    "(default on cpu)."
)
_TIMEOUT = "Limit of one case."
_BUDGET = "Time for the whole run; cases that do not fit are skipped and say so."
_QUICK = "Few samples, and a budget of a minute unless --budget says otherwise."
_STAGES = "Time the stages of each call, too: in further calls, after the samples."
_ISOLATE = "A process of its own for every case."
_DRY_RUN = "Print the cases and the predicted time, measure nothing."
_CONFIG = "TOML file with the same options; the command line wins."
_REPORT = "Write the run's HTML page, too."
_OUT = "Folder for runs (results/local if there is a folder results, else dynbench-results)."
_RESUME = "Measure what is missing in the newest run in --out (or the run that --out names)."
_RUN = "A run's folder or name, or a parquet file; the newest run if not given."
_RUNS = "Run folders, parquet files, folders of runs, or names of runs; the newest run if none."
_PAGE = (
    "The page, or the site's folder; report.html or site in the (first) run's folder if not given."
)
_PAGE_BASELINE = (
    "Provider that speed-ups refer to; sdpa, else flash or another dense one, if not given."
)
_TWO = "Two runs, case by case, with the gate's verdicts and intervals."
_HISTORY = "Latencies over commits, too."
_SITE = "A folder with an index over all runs and machines, without limits of size."
_FIGURES = "Every figure as SVG and PNG, too, in a folder figures."
_BASELINE = "Provider that speed-ups refer to."
_LIVE = "A run's folder or name; the newest one, also when a newer starts, if not given."
_FILTER = "Comma list: only these rows."
_PROFILE = (
    "Profile one call of a case: its kernels by time, with torch's profiler, proton and ncu.\n\n"
    "CASE is the beginning of a case's id, or its label with wildcards: of a stored run (the "
    "newest, or --run), or of what the options of dynbench run plan. Files go to a folder "
    "profiles beside the run's rows, dynbench report shows them; docs/profile.md explains both."
)
_PROFILED = "The beginning of a case's id (dynbench show, dynbench run --dry-run), or its label."
_PROFILED_RUN = "Run with the case: a folder, a name or a parquet file; the newest if not given."
_PROFILE_OUT = "Folder for the folder profiles; the run's own, else where runs go, if not given."
_TOOL_TIMEOUT = "Limit of each tool."

Text = str | None
Number = int | None


def _stray(word: str) -> str:
    """Says what a word of ``dynbench run`` that belongs to no option was likely meant for."""
    if Path(word).exists():
        return f"{word!r} belongs to no option: --out {word} --resume goes on with that run"
    return f"{word!r} belongs to no option: lengths are --seq, a list has commas and no spaces"


class _ConfigCommand(TyperCommand):
    """A command whose --config names a file of defaults, so that the command line wins."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        given, words, _ = self.make_parser(ctx).parse_args(list(args))
        if words:
            raise UsageError(_stray(words[0]))
        if given.get("config"):
            options = {max(p.opts, key=len).removeprefix("--"): p for p in self.params}
            known = {
                name: bool(getattr(p, "multiple", False))
                for name, p in options.items()
                if name not in ("config", "help")
            }
            values = request.read_config(Path(given["config"]), known)
            for name in request.overridden({n for n, p in options.items() if p.name in given}):
                values.pop(name, None)
            ctx.default_map = {str(options[name].name): value for name, value in values.items()}
        return super().parse_args(ctx, args)


@app.command(
    cls=_ConfigCommand, help="Measure a sweep: one row for every case, whatever happens to it."
)
def run(
    seq: Annotated[Text, _option(_WORK, "--seq", _SEQ, "SWEEP")] = None,
    suite: Annotated[str, _option(_WORK, "--suite", _SUITE)] = "attention",
    providers: Annotated[Text, _option(_WORK, "--providers", _PROVIDERS, "LIST")] = None,
    own: Annotated[list[Path] | None, _option(_WORK, "--provider-file", _OWN, "FILE")] = None,
    passes: Annotated[Text, _option(_WORK, "--pass", _PASS, "LIST")] = None,
    sparsity: Annotated[Text, _option(_WORK, "--sparsity", _SPARSITY, "LIST")] = None,
    inputs: Annotated[Text, _option(_WORK, "--inputs", _INPUTS)] = None,
    seed: Annotated[int, _option(_WORK, "--seed", "Seed of inputs and parameters.")] = 0,
    task: Annotated[Text, _option(_WORK, "--task", _TASK, "LIST")] = None,
    train_steps: Annotated[Number, _option(_WORK, "--train-steps", _STEPS)] = None,
    seeds: Annotated[Text, _option(_WORK, "--seeds", _SEEDS, "LIST")] = None,
    shape: Annotated[Text, _option(_SHAPE, "--shape", _SHAPES, "LIST")] = None,
    q_heads: Annotated[Number, _option(_SHAPE, "--q-heads", "Query heads.")] = None,
    kv_heads: Annotated[Number, _option(_SHAPE, "--kv-heads", _KV_HEADS)] = None,
    head_dim: Annotated[Number, _option(_SHAPE, "--head-dim", "Width of a head.")] = None,
    model_dim: Annotated[Number, _option(_SHAPE, "--model-dim", _MODEL_DIM)] = None,
    layers: Annotated[Number, _option(_SHAPE, "--layers", _LAYERS)] = None,
    batch: Annotated[Number, _option(_SHAPE, "--batch", "Sequences in a batch.")] = None,
    top_n: Annotated[Number, _option(_SHAPE, "--top-n", _TOP_N)] = None,
    window: Annotated[Number, _option(_SHAPE, "--window", _WINDOW)] = None,
    block_size: Annotated[Number, _option(_SHAPE, "--block-size", _BLOCK)] = None,
    query_tile: Annotated[Text, _option(_SHAPE, "--query-tile", _TILE, "LIST")] = None,
    private_blocks: Annotated[Text, _option(_SHAPE, "--private-blocks", _PRIVATE, "LIST")] = None,
    branches: Annotated[Text, _option(_SHAPE, "--branches", _BRANCHES, "LIST")] = None,
    variant: Annotated[list[str] | None, _option(_SHAPE, "--variant", _VARIANT, "CHANGES")] = None,
    dtype: Annotated[Text, _option(_SHAPE, "--dtype", _DTYPE)] = None,
    device: Annotated[Text, _option(_HOW, "--device", _DEVICE)] = None,
    gpus: Annotated[Text, _option(_HOW, "--gpus", _GPUS, "LIST")] = None,
    jobs: Annotated[int, _option(_HOW, "--jobs", _JOBS)] = 1,
    timer: Annotated[Text, _option(_HOW, "--timer", _TIMER)] = None,
    timeout: Annotated[str, _option(_HOW, "--timeout", _TIMEOUT, "TIME")] = "10m",
    budget: Annotated[Text, _option(_HOW, "--budget", _BUDGET, "TIME")] = None,
    quick: Annotated[bool, _option(_HOW, "--quick/--no-quick", _QUICK)] = False,
    stages: Annotated[bool, _option(_HOW, "--stages/--no-stages", _STAGES)] = False,
    isolate: Annotated[bool, _option(_HOW, "--isolate/--no-isolate", _ISOLATE)] = False,
    dry_run: Annotated[bool, _option(_HOW, "--dry-run", _DRY_RUN)] = False,
    config: Annotated[Path | None, _option(_FILES, "--config", _CONFIG, "FILE")] = None,
    out: Annotated[Path | None, _option(_FILES, "--out", _OUT, "FOLDER")] = None,
    resume: Annotated[bool, _option(_FILES, "--resume", _RESUME)] = False,
    report: Annotated[bool, _option(_FILES, "--report", _REPORT)] = False,
) -> None:
    own = own or []
    versions = {path.stem: read_own_provider(path).version for path in own}
    limit = QUICK_BUDGET if quick and budget is None else budget
    how = ["--quick", *(["--budget", budget] if budget else [])] if quick else []
    how += ["--stages"] if stages else []
    options = runner.RunOptions(
        timeout_s=request.parse_duration_s(timeout, "--timeout"),
        isolate=isolate,
        budget_s=None if limit is None else request.parse_duration_s(limit, "--budget"),
        quick=quick,
        stages=stages,
        together=jobs == 1,
        provider_files=tuple(str(path) for path in own),
        command_for=lambda case: request.repeat_command(case, own, how),
        distrust=lambda case: provider_info(case.provider) is None,
        version_of=lambda case: versions.get(case.provider),
    )
    named = request.choose_gpus(gpus, device)
    wanted = request.wanted(
        seq=seq,
        suite=suite,
        providers=providers,
        passes=passes,
        sparsity=sparsity,
        inputs=inputs,
        seed=seed,
        task=task,
        train_steps=train_steps,
        seeds=seeds,
        shape=shape,
        q_heads=q_heads,
        kv_heads=kv_heads,
        head_dim=head_dim,
        model_dim=model_dim,
        layers=layers,
        batch=batch,
        top_n=top_n,
        window=window,
        block_size=block_size,
        query_tile=query_tile,
        private_blocks=private_blocks,
        branches=branches,
        variant=variant,
        dtype=dtype,
        device="cuda" if named else device,
        timer=timer,
        provider_files=own,
    )
    cases = plan(wanted)
    request.check_jobs(jobs, suite)
    lanes = _lanes(named, jobs)
    root = store.check_output_root(out or store.default_root())
    if dry_run:
        _print_plan(cases, options, len(lanes))
        return
    with locked(request.used_gpus(named, wanted.device)):
        path = _measure(
            cases,
            options,
            root,
            lanes,
            resume=resume,
            chose_cpu=device is None and wanted.device == "cpu",
        )
    if report:
        _write_report([path], command.ReportOptions())


def _console(*, outlive_pipe: bool = False) -> Console:
    """Where tables go; without a reader it ends the command, or (``outlive_pipe``) goes on mute."""
    from rich.console import Console

    class PipeConsole(Console):
        def on_broken_pipe(self) -> None:  # rich would exit with 1, which means a regression
            if not outlive_pipe:
                raise BrokenPipeError
            _mute_stdout()

    width = None if sys.stdout.isatty() else PIPE_WIDTH
    return PipeConsole(width=width, markup=False, highlight=False)


def _predictor(options: runner.RunOptions) -> Predictor:
    limits = Limits.quick() if options.quick else Limits()
    return Predictor(
        lambda case: call_work(case).flops,
        sample_s=0.5 if options.quick else 3.0,
        slow_call_s=limits.slow_call_s,
        stage_calls=limits.stage_calls if options.stages else 0,
        further_flops_of=further_flops,
        once_s=once_s,
    )


def _print_plan(cases: Sequence[Case], options: runner.RunOptions, lanes: int) -> None:
    predictor = _predictor(options)
    seconds = [predictor.case_seconds(case) for case in cases]
    columns = [case.columns() for case in cases]
    _console().print(terminal.plan_table(columns, seconds))
    predicted_s = predicted_duration_s(
        cases, predictor.case_seconds, lanes, together=options.together
    )
    print(f"{count_text(len(cases), 'case')}, predicted: {terminal.duration_text(predicted_s)}")


def _writer(root: Path, resume: bool, quick: bool) -> store.RunWriter:
    """A new run under ``root``; or the newest one there (``root`` itself, if it is a run)."""
    if not resume:
        return store.RunWriter.create(root, shlex.join(["dynbench", *sys.argv[1:]]), quick=quick)
    runs = store.list_runs(root)
    if not runs:
        raise UsageError(f"--resume: no run in {root}; leave --resume out, or name its --out")
    return store.RunWriter.resume(runs[-1].path, quick=quick)


def _lanes(gpus: Sequence[Gpu], jobs: int) -> list[Lane]:
    """Where cases are measured: on these GPUs, or without any on the device that each names."""
    lanes = [gpu_lane(gpu) for gpu in gpus] or [Lane()]
    threads = usable_cpus() // len(lanes)
    return [one for lane in lanes for one in side_by_side(lane, jobs, threads)]


def _measure(
    cases: Sequence[Case],
    options: runner.RunOptions,
    root: Path,
    lanes: Sequence[Lane],
    *,
    resume: bool,
    chose_cpu: bool,
) -> Path:
    """Run the cases into a run under ``root``, showing progress, then its rows; return its path.

    The ``lanes`` share the cases. Ends with exit code 4 where no row is ok.
    """
    console = _console(outlive_pipe=True)
    with _writer(root, resume, options.quick) as writer, terminal.RunDisplay(console) as display:
        if chose_cpu:
            display.say(f"No GPU here: measuring on the CPU: {request.describe(cases)}")
        try:
            runner.run_cases(
                cases,
                writer,
                prepare=PREPARE,
                options=options,
                predictor=_predictor(options),
                lanes=lanes,
                on_event=lambda event: _show(display, event),
            )
        except KeyboardInterrupt:
            kept = f"{writer.path} keeps every finished row, --resume goes on"
            print(f"dynbench: interrupted: {kept}", file=sys.stderr)
            raise typer.Exit(EXIT_INTERRUPTED) from None
    frame, _ = _read([writer.path])
    console.print(terminal.rows_table(frame))
    _print_stages(console, frame)
    console.print(f"Run: {writer.path} (dynbench report {writer.path} draws it)", soft_wrap=True)
    if not (frame["status"] == "ok").any():
        raise typer.Exit(EXIT_INVALID_DATA)
    return writer.path


def _print_stages(console: Console, frame: pd.DataFrame) -> None:
    table = terminal.stages_table(frame)
    if table is not None:
        console.print("", table)


def _show(display: terminal.RunDisplay, event: runner.Event) -> None:
    match event:
        case runner.RunStarted(total, already_done, predicted_s):
            display.run_started(total, already_done, predicted_s)
        case runner.CaseStarted(case, seconds_left=seconds_left, lane=lane):
            display.case_started(case.label, seconds_left, lane)
        case runner.StageStarted(case, stage, lane):
            display.stage_started(f"{case.label}: {stage}", lane)
        case runner.RowFinished(row=row, done=done, seconds_left=seconds_left, lane=lane):
            display.row_finished(row, done, seconds_left, lane)
        case runner.LaneEnded(lane, reason):
            display.lane_ended(lane, reason)


def _read(paths: Sequence[Path]) -> tuple[pd.DataFrame, list[str]]:
    """All rows under the paths, and what was skipped: that is named; exit 4 if nothing is left."""
    frame, problems = store.read_runs(paths)
    for problem in problems:
        print(f"dynbench: skipped: {problem}", file=sys.stderr)
    if frame.empty:
        print("dynbench: no rows are left", file=sys.stderr)
        raise typer.Exit(EXIT_INVALID_DATA)
    return frame, problems


def _run_paths(names: Sequence[str]) -> list[Path]:
    """Paths of the runs named, as paths or as names under the default root; the newest if none."""
    root = store.default_root()
    if not names:
        runs = store.list_runs(root)
        if not runs:
            raise UsageError(f"no run in {root}: make one with dynbench run, or name its folder")
        return [runs[-1].path]
    paths = [next((p for p in (Path(name), root / name) if p.exists()), None) for name in names]
    missing = [name for name, path in zip(names, paths, strict=True) if path is None]
    if missing:
        raise UsageError(f"no run {missing[0]!r}: it is neither a path nor a run in {root}")
    return [path for path in paths if path is not None]


@app.command(help="Print the rows of a run.")
def show(
    run_name: Annotated[Text, typer.Argument(metavar="[RUN]", help=_RUN)] = None,
    provider: Annotated[Text, typer.Option(help=_FILTER, metavar="LIST")] = None,
    passes: Annotated[Text, typer.Option("--pass", help=_FILTER, metavar="LIST")] = None,
    status: Annotated[Text, typer.Option(help=_FILTER, metavar="LIST")] = None,
    baseline: Annotated[str, typer.Option(help=_BASELINE)] = "sdpa",
    json: Annotated[bool, typer.Option("--json", help="All columns, as a JSON array.")] = False,
    csv: Annotated[bool, typer.Option("--csv", help="All columns, as CSV.")] = False,
) -> None:
    frame, _ = _read(_run_paths([run_name] if run_name else []))
    _check_baseline(frame, baseline)
    chosen = frame
    for column, text in {"provider": provider, "pass": passes, "status": status}.items():
        names = request.parse_names(text, f"--{column}")
        known = sorted({*frame[column], *(Status if column == "status" else ())})
        for name in names or ():
            if name not in known:
                raise UsageError(unknown(column, name, known))
        chosen = chosen[chosen[column].isin(names)] if names else chosen
    if json:
        print(chosen.to_json(orient="records", indent=2, double_precision=15))
    elif csv:
        print(chosen.to_csv(index=False), end="")
    else:
        console = _console()
        console.print(terminal.rows_table(chosen, baseline=baseline, among=frame))
        _print_stages(console, chosen)


@app.command(help="Write an HTML report about runs (a page, or a site), and print its path.")
def report(
    runs: Annotated[list[str] | None, typer.Argument(metavar="[RUN]...", help=_RUNS)] = None,
    out: Annotated[Path | None, typer.Option(help=_PAGE, metavar="PATH")] = None,
    baseline: Annotated[Text, typer.Option(help=_PAGE_BASELINE)] = None,
    compare: Annotated[tuple[str, str] | None, typer.Option(help=_TWO, metavar="A B")] = None,
    history: Annotated[bool, typer.Option("--history", help=_HISTORY)] = False,
    site: Annotated[bool, typer.Option("--site", help=_SITE)] = False,
    figures: Annotated[bool, typer.Option("--figures", help=_FIGURES)] = False,
) -> None:
    if compare and compare[1].startswith("--"):  # the parser takes any two words
        raise UsageError(f"--compare {compare[0]}: names one run; write --compare A B")
    options = command.ReportOptions(out, baseline, history, site, figures)
    _write_report(_run_paths(runs or list(compare or ())), options, compare)


def _write_report(
    paths: Sequence[Path], options: command.ReportOptions, compare: tuple[str, str] | None = None
) -> None:
    """Write what the options ask for about the runs; print the paths."""
    command.check(paths, options)
    frame, problems = _read(paths)
    if options.baseline is not None:
        _check_baseline(frame, options.baseline)
    changes = command.changes_between(*_run_paths(compare)) if compare else None
    for path in command.write(frame, paths, options, problems=problems, changes=changes):
        print(path)


@app.command(help="Show a running sweep in the browser: rows as they land. Ctrl-C ends it.")
def serve(
    run_name: Annotated[Text, typer.Argument(metavar="[RUN]", help=_LIVE)] = None,
    port: Annotated[int, typer.Option(help="Port on this machine.")] = 8050,
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    baseline: Annotated[Text, typer.Option(help=_PAGE_BASELINE)] = None,
) -> None:
    from dynbench.dashboards.live import check_address, live_app, serve_forever

    check_address(host, port)
    (path,) = _run_paths([run_name]) if run_name else [store.default_root()]
    view = live_app(lambda: command.live_rows(path), baseline)
    print(f"http://{host}:{port} (Ctrl-C ends it)", flush=True)
    serve_forever(view, host, port)


def _taking_work(command: Callable[..., None]) -> Callable[..., None]:
    """The command with the options of ``run`` that say what is measured, as its keywords."""
    names = {*inspect.signature(request.wanted).parameters, "own"}
    of_run = inspect.signature(run, eval_str=True).parameters.values()
    work = [p.replace(kind=p.KEYWORD_ONLY) for p in of_run if p.name in names]
    own = inspect.signature(command, eval_str=True).parameters.values()
    kept = [p for p in own if p.kind != p.VAR_KEYWORD]

    def taking(*args: Any, **keywords: Any) -> None:
        command(*args, **keywords)

    taking.__name__, taking.__annotations__ = command.__name__, {}
    taking.__signature__ = inspect.Signature([*kept, *work])  # type: ignore[attr-defined]
    return taking


@app.command(help=_PROFILE)
@_taking_work
def profile(
    ctx: typer.Context,
    case_name: Annotated[Text, typer.Argument(metavar="[CASE]", help=_PROFILED)] = None,
    run_name: Annotated[Text, _option(_FILES, "--run", _PROFILED_RUN, "RUN")] = None,
    out: Annotated[Path | None, _option(_FILES, "--out", _PROFILE_OUT, "FOLDER")] = None,
    timeout: Annotated[str, _option(_HOW, "--timeout", _TOOL_TIMEOUT, "TIME")] = "10m",
    json: Annotated[bool, typer.Option("--json", help="All columns, as a JSON array.")] = False,
    **work: Any,
) -> None:
    from json import dumps

    from dynbench.dashboards import profiles
    from dynbench.harness.profile.profiling import ProfileOptions, profile_case

    own = work.pop("own") or []
    given = [name for name in work if _on_command_line(ctx, name)]
    if given and run_name is not None:
        raise UsageError(
            f"--run is of stored rows: leave it out with --{given[0].replace('_', '-')}"
        )
    planned = plan(request.wanted(**work, provider_files=own)) if given else None
    case, root, run_id = _profiled(case_name, run_name, planned)
    if provider_info(case.provider) is None and case.provider not in {p.stem for p in own}:
        raise UsageError(f"{case.provider} is a kernel of your own: add --provider-file FILE")
    options = ProfileOptions(
        prepare=PREPARE,
        provider_files=tuple(str(path) for path in own),
        limit_s=request.parse_duration_s(timeout, "--timeout"),
        command=request.repeat_command(case, own, command="profile"),
        run_id=run_id,
    )
    folder, rows = profile_case(case, out or root, options, _say_tool)
    if json:
        print(dumps(rows, indent=2))
        return
    console = _console()
    (view,) = profiles.profile_views(rows)
    for line in (view.title, *view.facts):
        console.print(line, soft_wrap=True)
    table = profiles.kernels_table(view)
    console.print(*([table] if table else []), *view.absent, sep="\n", soft_wrap=True)
    console.print(f"Profile: {folder}", soft_wrap=True)


def _on_command_line(ctx: typer.Context, name: str) -> bool:
    return getattr(ctx.get_parameter_source(name), "name", "") == "COMMANDLINE"


def _say_tool(tool: str) -> None:
    print(f"profiling with {tool}", file=sys.stderr, flush=True)


def _profiled(
    name: str | None, run_name: str | None, planned: Sequence[Case] | None
) -> tuple[Case, Path, str | None]:
    """The case meant, the folder that its profile goes to, and the run that it is from, if any."""
    from dynbench.harness.profile.picking import cases_of, pick_case

    if planned is not None:
        return pick_case(planned, name, "the plan of these options"), store.default_root(), None
    if name is None:
        raise UsageError("profile: name a case, or say by options what to measure (--seq 8k ...)")
    (path,) = _run_paths([run_name] if run_name else [])
    rows, problems = store.read_rows([path])
    for problem in problems:
        print(f"dynbench: skipped: {problem}", file=sys.stderr)
    case = pick_case(list(cases_of(rows).values()), name, str(path))
    run_id = next(row["run_id"] for row in reversed(rows) if row["case_id"] == case.case_id)
    return case, path if path.is_dir() else path.parent, run_id


def _check_baseline(frame: pd.DataFrame, baseline: str) -> None:
    """A baseline that no row has is a slip, unless it is the default."""
    known = sorted(set(frame["provider"]))
    if baseline != "sdpa" and baseline not in known:
        raise UsageError(unknown("baseline", baseline, known))


def _gate_host() -> Host:
    """What the gate's commands take from here: work to measure, names of runs, tables."""
    return Host(
        prepare=PREPARE,
        package=PACKAGE,
        plan=lambda options: plan(request.wanted_by(options or GATE_WORK)),
        describe=request.describe,
        repeat_command=lambda case, words: request.repeat_command(case, (), words),
        duration_s=request.parse_duration_s,
        default_root=store.default_root,
        run_paths=_run_paths,
        row_line=terminal.row_line,
        kernels=KERNELS,
        targets=_compile_targets,
        print_verdicts=lambda records: _print_tables(terminal.verdicts_table(records)),
        print_texts=lambda headings, rows: _print_tables(terminal.text_table(headings, rows)),
    )


def _compile_targets() -> Sequence[Target]:
    from dynbench.suites.kernels import SERVED

    return SERVED


add_commands(app, _gate_host())


@app.command("list", help="Print the suites, providers and shapes that run takes.")
def list_() -> None:
    suites = [(s.name, ", ".join(s.passes), s.summary) for s in SUITES.values()]
    providers = [
        (name, " ".join(f":{v}" for v in p.variants), _needs(p.devices, p.packages), p.summary)
        for name, p in PROVIDERS.items()
    ]
    tasks = list(TASKS.items())
    shapes = [
        (s.name, f"{s.q_heads}/{s.kv_heads}/{s.head_dim}", str(s.batch), s.summary)
        for s in SHAPES.values()
    ]
    _print_tables(
        terminal.text_table(("suite", "passes", ""), suites),
        terminal.text_table(("provider", "variants", "needs", ""), providers),
        terminal.text_table(("task", ""), tasks),
        terminal.text_table(("shape", "H/K/D", "batch", ""), shapes),
    )


def _needs(devices: Sequence[str], packages: Sequence[str]) -> str:
    gpu = [] if "cpu" in devices else ["a GPU"]
    return ", ".join([*gpu, *([" or ".join(packages)] if packages else [])])


@app.command(help="Print the device and the versions here, and which providers can run.")
def doctor() -> None:
    from dynbench.harness.machine import available_memory_bytes, machine_facts
    from dynbench.suites.availability import availability, optional_packages

    device = request.choose_device(None)
    facts = {"device": device, **machine_facts(device)}
    facts["available_memory_bytes"] = available_memory_bytes()
    rows = [
        (found.name, "no" if found.problem else "yes", found.problem or found.version)
        for found in (*availability(device), *optional_packages())
    ]
    providers = terminal.text_table(("provider or package", "runs here", ""), rows)
    _print_tables(terminal.facts_table(facts), providers)


def _print_tables(*tables: Table) -> None:
    console = _console()
    for index, table in enumerate(tables):
        console.print(*[""] * (index > 0), table)
