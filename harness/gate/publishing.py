"""An outcome printed, and written where it was asked for: JSON, JUnit XML, GitHub's summary."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dynbench.harness.gate.errors import SettingsError

if TYPE_CHECKING:
    from dynbench.harness.gate.outcome import Outcome

PrintVerdicts = Callable[[Sequence[Mapping[str, Any]]], None]


@dataclass(frozen=True)
class Files:
    """Where an outcome goes: each None is nowhere, a JSON file ``-`` in place of the table."""

    json: Path | None = None
    junit: Path | None = None
    summary: Path | None = None


def publish(
    outcome: Outcome, files: Files, print_verdicts: PrintVerdicts, *, brief: bool = False
) -> None:
    """Write the files, then print the outcome; ``brief`` prints no unchanged cases.

    Raises SettingsError for a file that cannot be written.
    """
    from dynbench.harness.gate.junit import write_junit
    from dynbench.harness.gate.summary import append_summary

    step = os.environ.get("GITHUB_STEP_SUMMARY")
    writers: list[tuple[Path | None, Callable[[Outcome, Path], None]]] = [
        (None if files.json == Path("-") else files.json, _write_json),
        (files.junit, write_junit),
        (files.summary or (Path(step) if step else None), append_summary),
    ]
    for path, write in writers:
        try:
            if path is not None:
                write(outcome, path)
        except OSError as error:
            raise SettingsError(f"{path}: {error.strerror}; name another file") from None
    if files.json == Path("-"):
        print(outcome.to_json())
    else:
        print_outcome(outcome, print_verdicts, brief=brief)


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
