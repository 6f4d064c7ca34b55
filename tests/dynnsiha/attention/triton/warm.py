"""Compile what the tests need before they run, on all cores: Triton keeps it on disk.

Compiling the kernels of all kinds one after the other would take most of the tests' time. Each of
several processes runs its share of the configurations once, and whatever fails here fails again,
visibly, in the test that it belongs to.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from dynnsiha import NSAConfig

from . import cases
from .oracle import run

_ROOT = Path(__file__).parents[4]
_PACKAGE = __name__.rpartition(".")[0]
_PROCESSES = 12
_SECONDS = 240


def variants() -> Iterator[tuple[cases.Case, NSAConfig]]:
    """Everything that compiles anew: kinds, and the configurations of single tests.

    Each as one sequence and packed, which may be read in different ways, at a multiple of 16 tokens
    and beside it, which the compiler tells apart.
    """
    from .test_lists import DYNAMIC, MODES
    from .test_served import ONE_OF

    others = [
        (cases.LIGHT_EXACT if config.query_tile == 1 else cases.LIGHT_HYBRID, config)
        for config in ONE_OF.values()
    ]
    kinds = [(kind, kind.config) for kind in cases.KINDS]
    singles = [(kind, kind.config) for kind in (*MODES.values(), *DYNAMIC.values())]
    for kind, config in kinds:
        for seq_len in (64, 65):
            for batching in ("single", "packed"):
                yield kind.at(seq_len, batching), config
    for kind, config in (*singles, *others):
        yield kind.at(65), config


def share(first: int, step: int) -> int:
    """Run every ``step``-th variant, forward and backward; the number that ran through."""
    done = 0
    for case, config in list(variants())[first::step]:
        with contextlib.suppress(Exception):
            run(case.inputs(), config)
            done += 1
    return done


def start() -> list[subprocess.Popen[bytes]]:
    """One process a share."""
    count = max(1, min(_PROCESSES, (os.cpu_count() or 1) - 2))
    code = f"import {_PACKAGE}.warm as warm, sys; warm.share(int(sys.argv[1]), {count})"
    return [
        subprocess.Popen([sys.executable, "-c", code, str(i)], cwd=_ROOT, stderr=subprocess.DEVNULL)
        for i in range(count)
    ]


def finish(processes: list[subprocess.Popen[bytes]]) -> None:
    """Wait for all of them, and end those that take too long."""
    for process in processes:
        try:
            process.wait(timeout=_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
