"""``dynbench gate --compile`` once its options are parsed: builds read or made, judged, saved."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from importlib import metadata
from pathlib import Path

from dynbench.harness.compilemetrics import read_metrics, write_metrics
from dynbench.harness.crosscompile import Build, Target, compile_everywhere
from dynbench.harness.gate.compiled import SAVE, check_version, judge_builds
from dynbench.harness.gate.errors import GateError, NothingToCompare, SettingsError
from dynbench.harness.gate.outcome import Outcome
from dynbench.harness.gate.settings import Settings, names_case, nearest
from dynbench.harness.rowfiles import StoreError

BASELINE_FILE = "kernels.parquet"

Say = Callable[[str], None]


@dataclass(frozen=True)
class Compiling:
    """What is compiled, and what it is compared with.

    Attributes:
        source: "package.module:function", as ``compile_everywhere`` takes it.
        baseline: file of metrics to compare with, and to replace if ``save`` is set.
        candidate: file of metrics to judge; None compiles.
        patterns: labels of builds (shell wildcards), all if empty.
    """

    source: str
    targets: tuple[Target, ...]
    baseline: Path
    candidate: Path | None = None
    patterns: tuple[str, ...] = ()
    save: bool = False


def default_baseline() -> Path:
    """The committed file, or one in a folder of its own where there is no folder ``results``."""
    root = Path("results/compile") if Path("results").is_dir() else Path("dynbench-compile")
    return root / BASELINE_FILE


def gate_compile(asked: Compiling, settings: Settings, say: Say) -> Outcome | None:
    """The outcome; None where a first baseline is saved, so that there is none to compare with.

    Raises NothingToCompare without a baseline, for one of another version of Triton (before
    anything is compiled) and where nothing can be compiled here; SettingsError for a source that
    cannot be imported, and StoreError for files that cannot be read.
    """
    if asked.save and asked.patterns:
        raise SettingsError("--save would drop all other builds: leave --case out")
    stored = None if asked.candidate is None else _stored(asked.candidate)
    versions = {_triton_version()} if stored is None else {b.triton_version for b in stored}
    old = _baseline(asked, versions, say)
    new = _compile(asked, say) if stored is None else stored
    if asked.patterns:
        new, old = _chosen(new, asked.patterns), _chosen(old or [], asked.patterns)
    if not new:
        raise NothingToCompare("nothing was compiled: the source makes no launch")
    names = (str(asked.baseline), str(asked.candidate or "this checkout"))
    outcome = None if old is None else judge_builds(old, new, settings, names)
    if asked.save:
        _write(new, asked.baseline)
        outcome = outcome and replace(outcome, notes=[n for n in outcome.notes if SAVE not in n])
        say(f"saved in {asked.baseline}: {len(new)} builds, Triton {new[0].triton_version}")
    return outcome


def _baseline(asked: Compiling, versions: set[str], say: Say) -> list[Build] | None:
    """The baseline's builds; None where it cannot be compared with and is to be replaced."""
    try:
        old = read_metrics(asked.baseline)
        check_version(old, versions, str(asked.baseline))
    except FileNotFoundError:
        if asked.save:
            return None
        raise NothingToCompare(
            f"no baseline {asked.baseline}: name one with --baseline, or write one with {SAVE}"
        ) from None
    except (GateError, StoreError) as error:
        if not asked.save:
            raise
        say(f"replaced without a comparison: {error}")
        return None
    return old


def _stored(path: Path) -> list[Build]:
    try:
        return read_metrics(path)
    except FileNotFoundError:
        raise SettingsError(f"--candidate {path}: no such file") from None


def _triton_version() -> str:
    try:
        return metadata.version("triton")
    except metadata.PackageNotFoundError:
        raise NothingToCompare(
            "Triton is not installed, so nothing can be compiled: pip install triton, on Linux"
        ) from None


def _compile(asked: Compiling, say: Say) -> list[Build]:
    """All builds that are wanted; a terminal shows each one."""
    unwanted: list[str] = []

    def wanted(label: str) -> bool:
        if not asked.patterns or _names(asked.patterns, label):
            return True
        unwanted.append(label)
        return False

    begin, builds = time.monotonic(), []
    try:
        for build in compile_everywhere(asked.source, asked.targets, wanted=wanted):
            builds.append(build)
            _progress(len(builds), build)
    except FileNotFoundError as error:  # no assembler for this machine
        raise NothingToCompare(str(error)) from None
    except (ImportError, AttributeError, ValueError) as error:
        if not _is_of_source(error, asked.source):
            raise
        raise SettingsError(
            f"--kernels {asked.source}: {error}; write package.module:function, and let PYTHONPATH "
            "lead to the module"
        ) from None
    finally:
        if sys.stderr.isatty():
            print(file=sys.stderr)
    if asked.patterns and not builds:
        raise NothingToCompare(
            f"--case {asked.patterns[0]}: names no build; {nearest(asked.patterns[0], unwanted)}"
        )
    say(
        f"{len(builds)} builds for {len(asked.targets)} targets in {time.monotonic() - begin:.0f} s"
    )
    return builds


def _is_of_source(error: Exception, source: str) -> bool:
    """Whether the module or its function is missing, rather than something inside it."""
    module, _, name = source.partition(":")
    if not module or not name:
        return True
    if isinstance(error, ModuleNotFoundError):
        return error.name is not None and f"{module}.".startswith(f"{error.name}.")
    return isinstance(error, AttributeError) and error.name in (None, name)


def _progress(done: int, build: Build) -> None:
    if sys.stderr.isatty():
        print(f"\r{f'{done} {build.label}'[:118]:<118}", end="", file=sys.stderr, flush=True)


def _chosen(builds: Sequence[Build], patterns: Sequence[str]) -> list[Build]:
    return [build for build in builds if _names(patterns, build.label)]


def _names(patterns: Sequence[str], label: str) -> bool:
    return any(names_case(pattern, "", label) for pattern in patterns)


def _write(builds: Sequence[Build], path: Path) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_metrics(builds, path)
    except OSError as error:
        raise SettingsError(f"--baseline {path}: {error.strerror}; name another file") from None
