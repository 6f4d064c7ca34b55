"""Whether a step through a cache computed what one forward over all the tokens does.

Logits alone would hardly tell: over thousands of tokens a new model's attention averages nearly
everything away. So, in a further step, what each attention got and gave at the new token is
compared as well: q and k, which show the position, v, and o, which shows what the cache holds.

Where experts are chosen, the forward takes those that the step took for its token: near ties,
rounding decides. That they were right ones is judged by the forward's own logits. Lists of sparse
attention may differ at near ties, so a larger error is accepted there.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from dynbench.harness.subject import Correctness
from dynbench.suites.compare import (
    BASE_TOLERANCE,
    TIE_TOLERANCE,
    Comparison,
    first_unwritten,
    rms_ratio,
    worst,
)
from dynbench.suites.coretrace import CoreCall, watched_cores, watched_routers, with_experts
from dynbench.suites.modeltext import TextIds
from dynbench.suites.routecheck import misrouted
from dynbench.suites.spec import Spec
from dynnsiha import DynNSIHALanguageModel
from dynnsiha.forms.experts import Choice, ExpertRouter

STEP_TOLERANCE = {
    torch.float32: BASE_TOLERANCE[torch.float32],
    torch.float16: 2e-2,
    torch.bfloat16: 5e-2,
}
"""RMS error over RMS that is accepted: both sides round in their own order, in every layer."""


@dataclass(frozen=True)
class _Seen:
    """The new token's numbers by name, logits [B, V] among them, and the experts that it took."""

    numbers: dict[str, Tensor]
    experts: list[Tensor]


class StepCheck:
    """Checks logits of a step. The forward is computed once and kept.

    ``text`` has the tokens in the cache and the one of the step; ``step`` makes the further step.
    """

    def __init__(
        self,
        spec: Spec,
        model: DynNSIHALanguageModel,
        text: TextIds,
        step: Callable[[], Tensor],
    ) -> None:
        self.spec, self.model, self.text, self.step = spec, model, text, step
        self._expected: _Seen | None = None
        self._problem = ""

    def __call__(self, logits: Tensor) -> Correctness:
        """Compare the logits [B, V] that a step returned."""
        checked = f"logits, and in a further step q, k, v, o of {self.spec.layers} layers"
        wanted = [self.spec.batch, self.model.config.char_vocab]
        if list(logits.shape) != wanted or logits.dtype != self.spec.dtype:
            problem = f"logits are {list(logits.shape)} {logits.dtype}, expected {wanted}"
            return Correctness(float("nan"), 0.0, checked, problem=problem)
        step = self._watch(self.step, [])
        if self._expected is None:
            self._expected = self._watch(self._forward, step.experts)
        expected = self._expected.numbers
        comparisons = [
            Comparison(f"{name} of the step", rms_ratio(given, expected[name]), self._allowed(name))
            for name, given in step.numbers.items()
        ]
        error = rms_ratio(logits, expected["logits"])
        found = worst([Comparison("logits", error, self._allowed("logits")), *comparisons])
        return Correctness(
            rms_error=found.error,
            rms_tolerance=found.tolerance,
            checked=f"{checked}; worst {found.name}",
            problem=first_unwritten([logits], ["logits"]) or self._problem,
        )

    def _allowed(self, name: str) -> float:
        """By dtype; more after a layer whose lists may be others."""
        dtype = self.spec.dtype
        if self.spec.config is None or name in ("q1", "k1", "v1"):
            return STEP_TOLERANCE[dtype]
        return TIE_TOLERANCE[dtype]

    def _forward(self) -> Tensor:
        return self.model(self.text.chars, self.text.words)[:, -1]

    @torch.no_grad()
    def _watch(self, call: Callable[[], Tensor], taken: list[Tensor]) -> _Seen:
        """What the last token meets in the call, where it takes the experts in ``taken`` if any."""
        numbers: dict[str, Tensor] = {}
        experts: list[Tensor] = []
        prescribed: Iterator[Tensor] = iter(taken)

        def note(one: CoreCall) -> None:
            number = len(numbers) // 4 + 1
            for name, x in (("q", one.q), ("k", one.k), ("v", one.v), ("o", one.o)):
                numbers[f"{name}{number}"] = x[:, -1].clone()

        def choose(name: str, router: ExpertRouter, choice: Choice) -> Choice | None:
            experts.append(choice.indices[:, -1:].clone())
            due = next(prescribed, None)
            if due is None:
                return None
            wrong = misrouted(choice.logits[:, -1:], due)
            if wrong:
                share = wrong / len(due)
                self._problem = f"{share:.0%} of the sequences took an expert not among the best"
            return with_experts(
                router, choice.logits, torch.cat((choice.indices[:, :-1], due), dim=1)
            )

        with watched_cores(self.model, note), watched_routers(self.model, choose):
            logits = call()
        return _Seen(numbers | {"logits": logits}, experts)
