"""An outcome printed, and written where it was asked for: JSON, JUnit XML, GitHub's summary."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dynbench.harness.gate.errors import SettingsError, Unwritten

if TYPE_CHECKING:
    from dynbench.harness.gate.outcome import Outcome

PrintVerdicts = Callable[[Sequence[Mapping[str, Any]]], None]


@dataclass(frozen=True)
class Files:
    """Where an outcome goes: each None is nowhere, a JSON file ``-`` in place of the table."""

    json: Path | None = None
    junit: Path | None = None
    summary: Path | None = None

    def named(self) -> dict[str, Path | None]:
        """JSON, JUnit XML and summary, each by the option or the variable that names it."""
        json = None if self.json == Path("-") else self.json
        step = os.environ.get("GITHUB_STEP_SUMMARY")
        if step and self.summary is None:
            return {"--json": json, "--junit": self.junit, "$GITHUB_STEP_SUMMARY": Path(step)}
        return {"--json": json, "--junit": self.junit, "--summary": self.summary}

    def check(self) -> None:
        """Raise SettingsError for a file that could not be written after hours of measuring."""
        for option, path in self.named().items():
            if path is None:
                continue
            if path.is_dir():
                raise SettingsError(f"{option} {path}: is a folder; name another file")
            if not path.parent.is_dir():
                raise SettingsError(
                    f"{option} {path}: there is no folder {path.parent}; make it, or name another "
                    "file"
                )
            if not os.access(path if path.exists() else path.parent, os.W_OK):
                raise SettingsError(f"{option} {path}: is not writable; name another file")


def publish(
    outcome: Outcome, files: Files, print_verdicts: PrintVerdicts, *, brief: bool = False
) -> None:
    """Write the files and print the outcome; ``brief`` prints no unchanged cases.

    Raises Unwritten for a file that cannot be written, behind the outcome: with its exit code, or
    with that of wrong usage if it has none.
    """
    from dynbench.harness.gate.junit import write_junit
    from dynbench.harness.gate.summary import append_summary

    unwritten = None
    writers = (_write_json, write_junit, append_summary)
    for (option, path), write in zip(files.named().items(), writers, strict=True):
        try:
            if path is not None:
                write(outcome, path)
        except OSError as error:
            unwritten = f"{option} {path}: {error.strerror}; name another file"
    if files.json == Path("-"):
        print(outcome.to_json())
    else:
        print_outcome(outcome, print_verdicts, brief=brief)
    if unwritten is not None:
        raise Unwritten(unwritten, outcome.exit_code)


def print_outcome(outcome: Outcome, print_verdicts: PrintVerdicts, *, brief: bool = False) -> None:
    """The table, the notes and the headline."""
    records = outcome.records(brief=brief)
    if records:
        print_verdicts(records)
    for note in outcome.notes:
        print(note)
    print(f"{outcome.candidate} against {outcome.baseline}: {outcome.headline}")


def _write_json(outcome: Outcome, path: Path) -> None:
    path.write_text(outcome.to_json() + "\n", encoding="utf-8")
