"""The passes that every suite's call has, as a subject for the harness."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

from torch import Tensor

from dynbench.harness.case import Case
from dynbench.harness.subject import Correctness, Subject
from dynbench.suites.work import case_work
from dynnsiha.attention.stages import record_stages


class Call(Protocol):
    """One provider on one set of inputs; ``backward`` differentiates what ``keep_forward`` kept."""

    inputs: Any

    def forward(self) -> tuple[Tensor, ...]: ...
    def keep_forward(self) -> None: ...
    def backward(self) -> tuple[Tensor, ...]: ...
    def forward_backward(self) -> tuple[Tensor, ...]: ...
    def check(self, outputs: tuple[Tensor, ...]) -> Correctness: ...
    def facts(self) -> Mapping[str, Any]: ...


def subject_of(case: Case, call: Call, version: str) -> Subject:
    """What the harness measures: the case's pass of the call.

    Stages are those of the library's core, and any that a user's kernel wraps in its ``stage``.
    """
    passes = {
        "forward": call.forward,
        "backward": call.backward,
        "forward_backward": call.forward_backward,
    }
    return Subject(
        run=passes[case.pass_],
        check=call.check,
        work=case_work(case),
        version=version,
        setup=call.keep_forward if case.pass_ == "backward" else None,
        facts=call.facts,
        inputs=call.inputs,
        record_stages=lambda: record_stages(case.device),
    )
