"""What the command line lends the gate's commands: what this package must not import."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dynbench.harness.case import Case

if TYPE_CHECKING:
    from dynbench.harness.crosscompile import Target


@dataclass(frozen=True)
class Host:
    """What the command line lends.

    Attributes:
        prepare: as ``run_cases`` takes it.
        package: the folder of a checkout that another revision is taken of.
        plan: cases for options of ``dynbench run`` (a default for none).
        describe: cases in one line.
        repeat_command: the command line for one case, with further words.
        duration_s: seconds in a text, and the option it is from.
        default_root: the folder of local runs.
        run_paths: paths of runs named (the newest for none).
        row_line: a row in one line.
        kernels: what ``gate --compile`` compiles, as ``compile_everywhere`` takes it.
        targets: what it compiles for.
        print_verdicts, print_texts: tables of verdicts, and of texts under headings.
    """

    prepare: str
    package: str
    plan: Callable[[Mapping[str, Any]], list[Case]]
    describe: Callable[[Sequence[Case]], str]
    repeat_command: Callable[[Case, Sequence[str]], str]
    duration_s: Callable[[str, str], float]
    default_root: Callable[[], Path]
    run_paths: Callable[[Sequence[str]], list[Path]]
    row_line: Callable[[Mapping[str, Any]], str]
    kernels: str
    targets: Callable[[], Sequence[Target]]
    print_verdicts: Callable[[Sequence[Mapping[str, Any]]], None]
    print_texts: Callable[[Sequence[str], Sequence[Sequence[str]]], None]
