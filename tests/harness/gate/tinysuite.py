"""A suite that measures ``tinylib``, whichever version a worker imports."""

from __future__ import annotations

import tinylib
import torch

from dynbench.harness.case import Case
from dynbench.harness.subject import Correctness, Subject, Work


def prepare(case: Case, provider_files: tuple[str, ...]) -> Subject:
    """The subject of ``case``; its provider is the name of a function in tinylib."""
    size = int(case.workload["seq_len"])
    source = torch.arange(size, dtype=torch.float32)
    double = getattr(tinylib, case.provider)

    def check(output: torch.Tensor) -> Correctness:
        return Correctness(float((output - 2 * source).abs().max()), 1e-6, f"all {size} values")

    return Subject(lambda: double(source), check, Work(size, 8 * size, size), "tinylib")
