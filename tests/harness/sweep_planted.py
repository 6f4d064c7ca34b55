"""Runs planted providers as the command line would: arguments ROOT RESUME LANES PROVIDER..."""

from __future__ import annotations

import sys
from typing import Any

from dynbench.harness import run
from dynbench.harness.case import Case
from dynbench.harness.lanes import Lane
from dynbench.harness.predict import Predictor
from dynbench.harness.run import RowFinished, RunOptions, run_cases
from dynbench.harness.store import RunWriter, list_runs


class Supervisor(run.Supervisor):
    """Knows the ceilings beforehand, so that no worker spends its first second on them."""

    def __init__(self, *arguments: Any, **more: Any) -> None:
        super().__init__(*arguments, **more)
        self.ceilings["cpu"] = {"float32": [10.0, 0.1]}


def main(root: str, resume: str, lanes: str, *providers: str) -> None:
    """Print one line for each row."""
    run.Supervisor = Supervisor
    log = f"{root}.log"
    names = ("forward", "cpu", "float32", "wall")
    cases = [
        Case("planted", provider, *names, {"seq_len": 1000 + i})
        for i, provider in enumerate(providers)
    ]
    found = list_runs(root)
    writer = RunWriter.resume(found[-1].path) if resume == "1" else RunWriter.create(root, "sweep")

    def tell(event: object) -> None:
        if isinstance(event, RowFinished):
            print(event.case.provider, event.row["status"], flush=True)

    run_cases(
        cases,
        writer,
        prepare="planted:prepare",
        options=RunOptions(quick=True, provider_files=(log,)),
        predictor=Predictor(lambda case: 1),
        lanes=[Lane(f"lane {i}") for i in range(int(lanes))],
        on_event=tell,
    )


if __name__ == "__main__":
    main(*sys.argv[1:])
