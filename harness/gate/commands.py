"""The commands ``gate``, ``compare`` and ``baseline``: they parse, call and print.

They are added to the command line's app, which lends them what this package must not import: what
is measured, and how tables look. Heavy packages are imported inside the commands.
"""

from __future__ import annotations

import shlex
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import date
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer

from dynbench.harness.case import Case
from dynbench.harness.gate.errors import InvalidData, SettingsError
from dynbench.harness.gate.host import Host
from dynbench.harness.gate.publishing import Files, print_outcome, publish
from dynbench.harness.gpus import locked, visible_gpus

if TYPE_CHECKING:
    from dynbench.harness.gate.baselines import Baseline
    from dynbench.harness.gate.outcome import Outcome
    from dynbench.harness.gate.rounds import Progress, Rounds
    from dynbench.harness.gate.selfcheck import SelfCheck
    from dynbench.harness.gate.settings import Settings


def _option(panel: str, flag: str, help_: str, metavar: str | None = None) -> Any:
    return typer.Option(flag, help=help_, metavar=metavar, rich_help_panel=panel)


_AGAINST, _JUDGE, _OUTPUT = "What to compare", "How to judge", "Output"
_GATE = (
    "Judge whether code became slower: exit code 0 means no, 1 a regression.\n\n"
    "Compares stored rows (--baseline with --candidate), or measures dynnsiha/ as it is in another "
    "revision and in this checkout, in A-B-B-A rounds of fresh processes (--rev). --compile judges "
    "what the compiler makes of the Triton kernels, without a GPU: new spills, more stack or "
    "shared memory than there is, and a lost matrix instruction are regressions. Exit code 3: "
    "nothing comparable, or no baseline; 4: data that cannot be trusted. docs/gate.md explains "
    "verdicts, settings and CI."
)
_GATE_BASELINE = (
    "Saved baseline, run or parquet file to compare with; the promoted one if none. With "
    "--compile a file of metrics; results/compile/kernels.parquet if none."
)
_CANDIDATE = "Run, parquet file or folder of rounds to judge; the newest run if not given."
_REV = (
    "Old revision to measure against this checkout, or OLD..NEW; only dynnsiha/ is taken from it."
)
_SELF = "Measure this checkout (or --rev) against itself: its noise, and thresholds below it."
_PLANT = (
    "With --self-check: a slow-down that the gate should find, planted into one case at a time: a "
    "share (0.05) or standard deviations above the threshold (3sd); repeatable."
)
_COMPILE = (
    "Compile every Triton kernel for every architecture, and judge spills, memory, instructions."
)
_KERNELS = (
    "With --compile: a function MODULE:NAME of a Target that returns the launches to compile; "
    "those of dynnsiha if not given."
)
_SAVE = "With --compile: make what was compiled the baseline, show what changed, and end with 0."
_CASE = "Only cases whose label matches (shell wildcards) or whose id begins so; repeatable."
_GATE_CASE = (
    "Only cases whose label matches (shell wildcards) or whose id begins so; with --compile labels "
    "alone; repeatable."
)
_GATE_CONFIG = "TOML file with settings; unknown keys are refused."
_DUMP = "Print the settings in force as TOML, and stop."
_THRESHOLD = "Slow-down that blocks, as a share: 0.03 is 3 %."
_ROUNDS = "Exactly so many rounds; else as many as the noise asks for."
_BUDGET = "Time for the rounds, the retest not counted; two are always measured."
_STRICT = "Ambiguous verdicts end with 1, too."
_ACCEPT = "Record in the baseline that this case may be as slow as it is; needs the next two."
_REASON = "Why the slow-down is wanted."
_UNTIL = "Day until which it is accepted, such as 2030-12-31."
_JSON = "Write everything as JSON (- prints it instead of the table)."
_JUNIT = "Write JUnit XML."
_SUMMARY = "Append markdown; $GITHUB_STEP_SUMMARY if not given and set."
_OUT = "Folder for rounds (results/gates if there is a folder results, else dynbench-gates)."
_RESUME = "Go on with the newest gate in --out (or the one --out names)."
_COMPARED = "A baseline, a run's folder or name, or a parquet file."
_ACROSS = "Compare rows of different machines or versions, too, and say what differs."
_SAVED = "Runs or folders of them: several runs tell the noise between processes. Newest if none."

Text = str | None


def add_commands(app: typer.Typer, host: Host) -> None:
    """Add ``gate``, ``compare`` and ``baseline`` to the app."""

    @app.command(help=_GATE)
    def gate(
        baseline: Annotated[Text, _option(_AGAINST, "--baseline", _GATE_BASELINE, "NAME")] = None,
        candidate: Annotated[Text, _option(_AGAINST, "--candidate", _CANDIDATE, "RUN")] = None,
        rev: Annotated[Text, _option(_AGAINST, "--rev", _REV, "REV")] = None,
        self_check: Annotated[bool, _option(_AGAINST, "--self-check", _SELF)] = False,
        plant: Annotated[list[str] | None, _option(_AGAINST, "--plant", _PLANT, "SIZE")] = None,
        compile_: Annotated[bool, _option(_AGAINST, "--compile", _COMPILE)] = False,
        kernels: Annotated[Text, _option(_AGAINST, "--kernels", _KERNELS, "MODULE:NAME")] = None,
        save: Annotated[bool, _option(_AGAINST, "--save", _SAVE)] = False,
        case: Annotated[
            list[str] | None, _option(_AGAINST, "--case", _GATE_CASE, "PATTERN")
        ] = None,
        config: Annotated[Path | None, _option(_JUDGE, "--config", _GATE_CONFIG, "FILE")] = None,
        dump_config: Annotated[bool, _option(_JUDGE, "--dump-config", _DUMP)] = False,
        threshold: Annotated[float | None, _option(_JUDGE, "--threshold", _THRESHOLD)] = None,
        rounds: Annotated[int | None, _option(_JUDGE, "--rounds", _ROUNDS)] = None,
        budget: Annotated[Text, _option(_JUDGE, "--budget", _BUDGET, "TIME")] = None,
        strict: Annotated[bool | None, _option(_JUDGE, "--strict/--no-strict", _STRICT)] = None,
        accept: Annotated[Text, _option(_JUDGE, "--accept", _ACCEPT, "CASE")] = None,
        reason: Annotated[str, _option(_JUDGE, "--reason", _REASON)] = "",
        until: Annotated[Text, _option(_JUDGE, "--until", _UNTIL, "DATE")] = None,
        json: Annotated[Path | None, _option(_OUTPUT, "--json", _JSON, "FILE")] = None,
        junit: Annotated[Path | None, _option(_OUTPUT, "--junit", _JUNIT, "FILE")] = None,
        summary: Annotated[Path | None, _option(_OUTPUT, "--summary", _SUMMARY, "FILE")] = None,
        out: Annotated[Path | None, _option(_OUTPUT, "--out", _OUT, "FOLDER")] = None,
        resume: Annotated[bool, _option(_OUTPUT, "--resume", _RESUME)] = False,
    ) -> None:
        settings = _settings(config, threshold, rounds, strict)
        if dump_config:
            from dynbench.harness.gate.settings import dump_settings

            print(dump_settings(settings), end="")
            return
        files = Files(json, junit, summary)
        of_speed: dict[str, object] = {"--rev": rev, "--self-check": self_check, "--out": out}
        of_speed |= {"--threshold": threshold, "--rounds": rounds, "--budget": budget}
        of_speed |= {"--accept": accept, "--resume": resume, "--plant": plant or None}
        of_accepting = {"--reason": reason or None, "--until": until}
        if compile_:
            why = "is of measured rows, leave it out with --compile"
            _refuse({**of_speed, **of_accepting}, why)
        else:
            why = "is of compiled kernels, give --compile too"
            _refuse({"--kernels": kernels, "--save": save}, why)
        files.check()
        if compile_:
            _compiled(host, baseline, candidate, kernels, case or [], settings, files, save=save)
        measuring = rev is not None or self_check
        if plant and not self_check:
            raise SettingsError("--plant is of the self-check: give --self-check too")
        check: SelfCheck | None = None
        if candidate is not None and measuring:
            raise SettingsError(
                "--candidate is of stored rows: leave it out with --rev and --self-check"
            )
        if accept is not None and (baseline is None or self_check):
            raise SettingsError("--accept records in a baseline: name a saved one with --baseline")
        if accept is not None and until is None:
            raise SettingsError("--until: is no day; --accept needs one, such as 2030-12-31")
        if accept is None:
            _refuse(of_accepting, "is of --accept, name the case with that too")
        day = _day(until) if accept is not None else None
        limit_s = None if budget is None else host.duration_s(budget, "--budget")
        if measuring:
            saved = None if baseline is None else _find(host, baseline)
            plants = tuple(plant or ())
            asked = _Asked(rev, self_check, plants, tuple(case or ()), limit_s, out, resume)
            outcome, check = _measured(host, asked, saved, settings)
        else:
            of_rounds = {"--rounds": rounds, "--budget": budget, "--out": out, "--resume": resume}
            _refuse(of_rounds, "is of measuring, leave it out or give --rev or --self-check")
            saved, outcome = _stored(host, baseline, candidate, settings, case or [])
        if accept is not None and day is not None and saved is not None:
            from dynbench.harness.gate import gating

            outcome, entry = gating.accept(saved, outcome, accept, reason, day)
            _say(f"accepted in {saved.path}: {entry['label']} until {entry['until']}")
        publish(outcome, files, host.print_verdicts)
        if check is not None:
            from dynbench.harness.gate.selfcheck import refuse_low_thresholds

            refuse_low_thresholds(check)
        raise typer.Exit(outcome.exit_code)

    @app.command(help="Compare two runs, baselines or sets of rows, case by case, for people.")
    def compare(
        first: Annotated[str, typer.Argument(metavar="A", help=_COMPARED)],
        second: Annotated[str, typer.Argument(metavar="B", help="What is compared with it.")],
        case: Annotated[list[str] | None, typer.Option(help=_CASE, metavar="PATTERN")] = None,
        across: Annotated[bool, typer.Option("--across", help=_ACROSS)] = False,
        json: Annotated[bool, typer.Option("--json", help="Everything, as JSON.")] = False,
    ) -> None:
        from dynbench.harness.gate import gating
        from dynbench.harness.gate.outcome import EXIT_NOTHING
        from dynbench.harness.gate.settings import Settings

        one, other = _find(host, first), _find(host, second)
        outcome = gating.gate_stored(one, other.path, Settings(), case or [], across=across)
        if json:
            print(outcome.to_json())
        else:
            print_outcome(outcome, host.print_verdicts)
        if not outcome.compared:
            raise typer.Exit(EXIT_NOTHING)

    app.add_typer(_baseline_app(host), name="baseline")


def _baseline_app(host: Host) -> typer.Typer:
    app = typer.Typer(help="Baselines that a gate compares with: save, list, promote.")

    @app.command(help="Save the rows of runs as a baseline, in place of an older one.")
    def save(
        name: Annotated[str, typer.Argument(metavar="NAME", help="Letters, digits, dots, dashes.")],
        runs: Annotated[list[str] | None, typer.Argument(metavar="[RUN]...", help=_SAVED)] = None,
    ) -> None:
        from dynbench.harness.gate import baselines
        from dynbench.harness.store import read_rows

        paths = host.run_paths(runs or [])
        rows, problems = read_rows(paths)
        if problems:
            raise InvalidData(problems[0])
        saved = baselines.save(_baselines_root(), name, rows, [str(path) for path in paths])
        facts = saved.facts
        print(f"{saved.path}: {facts['cases']} cases, {facts['runs']} processes")

    @app.command("list", help="Print the saved baselines; the promoted one is marked.")
    def list_() -> None:
        from dynbench.harness.gate import baselines

        root = _baselines_root()
        promoted = baselines.default_name(root)
        rows = [
            (
                f"{found.name}{' *' if found.name == promoted else ''}",
                str(found.facts.get("saved_at", "")),
                str(found.facts.get("cases", "")),
                str(found.facts.get("runs", "")),
                ", ".join(commit[:10] for commit in found.facts.get("commits", ())),
                str(len(found.accepted)),
                ", ".join(found.facts.get("devices", ())),
            )
            for found in baselines.listed(root)
        ]
        headings = ("baseline", "saved", "cases", "processes", "commits", "accepted", "device")
        host.print_texts(headings, rows)

    @app.command(help="Make a baseline the one that gate takes where none is named.")
    def promote(
        name: Annotated[str, typer.Argument(metavar="NAME", help="A saved baseline.")],
    ) -> None:
        from dynbench.harness.gate import baselines

        print(f"{baselines.promote(_baselines_root(), name).path}: promoted")

    return app


def _refuse(options: Mapping[str, object], why: str) -> None:
    """Raise SettingsError for one of these options that was given: it would decide nothing."""
    for name, value in options.items():
        if value is not None and value is not False:
            raise SettingsError(f"{name}: {why}")


def _compiled(
    host: Host,
    baseline: str | None,
    candidate: str | None,
    kernels: str | None,
    patterns: Sequence[str],
    settings: Settings,
    files: Files,
    *,
    save: bool,
) -> NoReturn:
    """Judge what the compiler makes of kernels, and end with the exit code."""
    from dynbench.harness.gate.compiling import Compiling, default_baseline, gate_compile

    asked = Compiling(
        source=kernels or host.kernels,
        targets=tuple(host.targets()),
        baseline=Path(baseline) if baseline else default_baseline(),
        candidate=Path(candidate) if candidate else None,
        patterns=tuple(patterns),
        save=save,
    )
    outcome = gate_compile(asked, settings, _say)
    if outcome is not None:
        publish(outcome, files, host.print_verdicts, brief=True)
    raise typer.Exit(0 if save or outcome is None else outcome.exit_code)


def _settings(
    config: Path | None, threshold: float | None, rounds: int | None, strict: bool | None
) -> Settings:
    """The settings of the file, if any, with what the command line says on top."""
    from dynbench.harness.gate.settings import Settings, read_settings

    settings = Settings() if config is None else read_settings(config)
    given: dict[str, Any] = {"threshold": threshold, "strict": strict}
    given |= {"min_rounds": rounds, "max_rounds": rounds}
    return replace(settings, **{name: v for name, v in given.items() if v is not None})


def _baselines_root() -> Path:
    return Path("results/baselines") if Path("results").is_dir() else Path("dynbench-baselines")


def _find(host: Host, name: str | None) -> Baseline:
    from dynbench.harness.gate import baselines

    return baselines.find(_baselines_root(), name, [host.default_root()])


def _day(text: str | None) -> date:
    try:
        return date.fromisoformat(text or "")
    except ValueError:
        raise SettingsError(
            f"--until {text or ''}: is no day; write for example 2030-12-31"
        ) from None


def _stored(
    host: Host,
    baseline: str | None,
    candidate: str | None,
    settings: Settings,
    patterns: Sequence[str],
) -> tuple[Baseline | None, Outcome]:
    """The outcome of stored rows: of two sides, or of rounds in one folder."""
    from dynbench.harness.gate import gating
    from dynbench.harness.gate.rounds import is_gate_folder

    if candidate is not None and baseline is None and is_gate_folder(Path(candidate)):
        return None, gating.gate_folder(Path(candidate), settings, patterns)
    saved = _find(host, baseline)
    (path,) = host.run_paths([candidate] if candidate else [])
    return saved, gating.gate_stored(saved, path, settings, patterns)


@dataclass(frozen=True)
class _Asked:
    """What is to be measured, as the options say it."""

    rev: str | None
    self_check: bool
    plants: tuple[str, ...]
    patterns: tuple[str, ...]
    limit_s: float | None
    out: Path | None
    resume: bool

    @property
    def root(self) -> Path:
        """Where rounds go."""
        return self.out or Path("results/gates" if Path("results").is_dir() else "dynbench-gates")


def _measured(
    host: Host, asked: _Asked, saved: Baseline | None, settings: Settings
) -> tuple[Outcome, SelfCheck | None]:
    """Measure two versions in rounds, or one against itself."""
    from dynbench.harness.gate import gating
    from dynbench.harness.gate.planting import Plant
    from dynbench.harness.gate.revision import versions
    from dynbench.harness.gate.rounds import Clock, gate_folder_for
    from dynbench.harness.gate.selfcheck import self_check

    plants = [Plant.parse(text) for text in asked.plants]
    with versions(Path.cwd(), asked.rev, host.package, against_itself=asked.self_check) as (
        old,
        new,
    ):
        cases = _cases(host, saved, settings, asked.patterns)
        digests = {"baseline": old.digest, "candidate": new.digest}
        folder = gate_folder_for(asked.root, digests, resume=asked.resume)
        rounds = _rounds(host, folder, {"baseline": old, "candidate": new}, settings)
        what = "against itself" if asked.self_check else f"against {old.name}"
        _say(f"{new.name} {what}: {host.describe(cases)}")
        _say(f"cases: {len(cases)}, rows in {folder}")
        clock = Clock(asked.limit_s)
        on_gpu = any(case.device == "cuda" for case in cases)
        with locked(visible_gpus()[:1] if on_gpu else []):
            if not asked.self_check:
                outcome = gating.gate_rounds(
                    rounds, cases, settings, accepted=saved, clock=clock, say=_say
                )
                return outcome, None
            found = self_check(rounds, cases, settings, plants=plants, clock=clock, say=_say)
    labels = found.labels
    for case_id, floor in found.floors.items():
        _say(f"noise floor {100 * floor:.2g} %: {labels[case_id]}")
    return found.outcome, found


def _cases(
    host: Host, saved: Baseline | None, settings: Settings, patterns: Sequence[str]
) -> list[Case]:
    """What rounds measure: the baseline's cases, or those that the settings plan."""
    from dynbench.harness.gate import baselines, gating

    if saved is not None:
        return gating.cases_of(baselines.read(saved), patterns)
    return gating.filter_cases(host.plan(settings.run), patterns)


def _rounds(host: Host, folder: Path, versions: Mapping[str, Any], settings: Settings) -> Rounds:
    from dynbench.harness.gate.rounds import Rounds, Side
    from dynbench.harness.run import RunOptions

    words = ["--quick"] if settings.quick else []
    return Rounds(
        folder=folder,
        sides={
            name: Side(version.name, version.environment, version.columns)
            for name, version in versions.items()
        },
        prepare=host.prepare,
        options=RunOptions(
            timeout_s=settings.timeout_s,
            quick=settings.quick,
            command_for=lambda case: host.repeat_command(case, words),
        ),
        command=shlex.join(["dynbench", *sys.argv[1:]]),
        on_progress=lambda progress: _show(host, progress),
    )


def _show(host: Host, progress: Progress) -> None:
    """On a terminal one line, rewritten for each measurement; elsewhere one for each round."""
    text = f"{progress.stage or 'round'} {progress.round + 1}: {progress.done}/{progress.total}"
    last = progress.done == progress.total
    if sys.stderr.isatty():
        line = f"{text} {progress.side} {host.row_line(progress.row)}"[:118]
        print(f"\r{line:<118}", end="\n" if last else "", file=sys.stderr, flush=True)
    elif last:
        _say(text)


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
