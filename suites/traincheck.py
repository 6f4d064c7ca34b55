"""Whether a training step computed what it should: loss, gradients, and what the optimizer kept.

Loss and gradients are compared with the model in float64 (modelreference.py). Where that is too
much for the whole text, it is done for its first tokens, with the gradients of their predictions
from a further call; the gradients that were timed must be the sum of those and of the gradients of
all other predictions, from a second call. No prediction depends on later tokens.

The optimizer's learning rate is 0 (training.py): parameters must be what they were, bit for bit,
and AdamW's first moment must have come from the gradients of the steps so far, which are all equal.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from dynbench.harness.subject import Correctness
from dynbench.suites.catalog import provider_info
from dynbench.suites.compare import (
    BASE_TOLERANCE,
    Comparison,
    first_unwritten,
    gradient_tolerance,
    rms_ratio,
    tolerance,
    worst,
)
from dynbench.suites.layercheck import KINK_TOLERANCE
from dynbench.suites.modelreference import Decisions, ModelReference
from dynbench.suites.modeltext import TextIds
from dynbench.suites.routecheck import routing_problem
from dynbench.suites.sampling import affordable_pairs
from dynbench.suites.spec import Spec
from dynnsiha import DynNSIHALanguageModel

SUM_FACTOR = 10
"""Times the base tolerance that two gradients may differ from the one that they add up to."""

MOMENT_TOLERANCE = {torch.float32: 1e-3, torch.float16: 5e-2, torch.bfloat16: 5e-2}
"""In low precision a moment stops short of its limit, by about ten roundings."""


class TrainingCheck:
    """Checks (loss, gradients of the parameters in their order) of a step.

    ``gradients_of`` gives loss and gradients of a slice of the predictions, in a call of its own;
    ``before`` are the `parameter_sums` of the model before its first step.
    """

    def __init__(
        self,
        spec: Spec,
        model: DynNSIHALanguageModel,
        text: TextIds,
        optimizer: torch.optim.AdamW,
        decisions: Decisions,
        gradients_of: Callable[[slice], Sequence[Tensor]],
        before: Sequence[float],
    ) -> None:
        self.spec, self.model, self.text, self.optimizer = spec, model, text, optimizer
        self.decisions, self.gradients_of = decisions, gradients_of
        self.names = [f"d {name}" for name, _ in model.named_parameters()]
        self.before = before
        pairs = affordable_pairs(spec.device.type, sparse=spec.config is not None)
        affordable = math.isqrt(pairs // (spec.batch * spec.q_heads * spec.layers))
        self.tokens = min(spec.seq_len - 1, max(affordable, 1))
        self.whole = self.tokens == spec.seq_len - 1
        self._expected: list[tuple[Tensor, Tensor | None]] | None = None
        self._further: list[Comparison] = []
        self._sum: Sequence[Tensor] = ()
        self._problem = decisions.problem

    def __call__(self, outputs: Sequence[Tensor]) -> Correctness:
        """Compare what a step returned."""
        checked = "whole loss, parameter gradients" if self.whole else self._describe()
        names = ["loss", *self.names]
        shapes = [torch.Size(()), *(parameter.shape for parameter in self.model.parameters())]
        if [output.shape for output in outputs] != shapes:
            problem = f"a step returned other than a loss and {len(self.names)} gradients"
            return Correctness(float("nan"), 0.0, checked, problem=problem)
        if self._expected is None:
            self._expected = self._references()
            if not self.whole:
                self._further_calls()
        if self.whole:
            comparisons = self._compared("", outputs)
        else:
            comparisons = [*self._further]
            allowed = SUM_FACTOR * BASE_TOLERANCE[self.spec.dtype]
            for name, output, total in zip(names, outputs, self._sum, strict=True):
                error = rms_ratio(output, total)
                comparisons.append(Comparison(f"{name} as a sum", error, allowed))
        comparisons += self._moments(outputs[1:])
        found = worst(comparisons)
        return Correctness(
            rms_error=found.error,
            rms_tolerance=found.tolerance,
            checked=f"{checked}; worst {found.name}",
            problem=first_unwritten(outputs, names) or self._problem or self._moved(),
        )

    def _describe(self) -> str:
        where = f"the first {self.tokens} tokens"
        return f"loss and parameter gradients of {where} in a further call, and as a sum"

    def _references(self) -> list[tuple[Tensor, Tensor | None]]:
        """Loss and gradients in float64, each with the same in the case's own lower precision."""
        wanted, logits, taken = self._reference(torch.float64)
        plain: list[Tensor] | list[None] = [None] * len(wanted)
        plain_logits = None
        if self.spec.dtype != torch.float32:
            plain, plain_logits, _ = self._reference(self.spec.dtype)
        self._problem = self._problem or routing_problem(logits, taken, plain_logits)
        return list(zip(wanted, plain, strict=True))

    def _reference(self, dtype: torch.dtype) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
        """Loss and gradients in ``dtype``; logits of the routers' calls, and experts taken."""
        reference = ModelReference(self.model, self.decisions, self.text, self.tokens, dtype)
        loss, gradients = reference.gradients()
        pairs = zip(gradients, self.model.parameters(), strict=True)
        found = [loss, *(torch.zeros_like(p) if g is None else g for g, p in pairs)]
        return found, reference.logits, reference.taken

    def _further_calls(self) -> None:
        """Gradients of the first tokens' predictions, compared; and their sum with all others'."""
        first = self.gradients_of(slice(0, self.tokens))
        self._further = self._compared(" of the first", first)
        rest = self.gradients_of(slice(self.tokens, None))
        self._sum = [one + other for one, other in zip(first, rest, strict=True)]

    def _compared(self, which: str, outputs: Sequence[Tensor]) -> list[Comparison]:
        assert self._expected is not None
        comparisons = []
        named = zip(["loss", *self.names], outputs, self._expected, strict=True)
        for name, output, (wanted, plain) in named:
            if name == "loss":
                allowed = tolerance(wanted, plain, self.spec.dtype)
            else:
                allowed = gradient_tolerance(wanted, plain, self.spec.dtype)
                allowed = max(allowed, self._kink())
            comparisons.append(Comparison(f"{name}{which}", rms_ratio(output, wanted), allowed))
        return comparisons

    def _kink(self) -> float:
        """Error always accepted in gradients through synthesis or experts, see layercheck.py.

        In low precision the plain computation has that error too, and is the measure.
        """
        info = provider_info(self.spec.provider)
        opens = info is not None and (info.synthesised or bool(self.decisions.experts))
        return KINK_TOLERANCE if opens and self.spec.dtype == torch.float32 else 0.0

    def _moments(self, gradients: Sequence[Tensor]) -> list[Comparison]:
        """AdamW's first moments beside what as many steps with these gradients make."""
        beta = self.optimizer.defaults["betas"][0]
        allowed = MOMENT_TOLERANCE[self.spec.dtype]
        comparisons = []
        pairs = zip(self.names, self.model.parameters(), gradients, strict=True)
        for name, parameter, gradient in pairs:
            state = self.optimizer.state[parameter]
            if not state:
                self._problem = f"no optimizer step for {name.removeprefix('d ')}"
                continue
            share = 1 - beta ** float(state["step"])
            error = rms_ratio(state["exp_avg"], share * gradient)
            comparisons.append(Comparison(f"first moment of {name}", error, allowed))
        return comparisons

    def _moved(self) -> str:
        """Which parameter a step changed; empty where none was."""
        sums = parameter_sums(self.model)
        pairs = zip(self.names, self.before, sums, strict=True)
        moved = next((name for name, old, new in pairs if old != new), "")
        return f"steps changed {moved.removeprefix('d ')}" if moved else ""


def parameter_sums(model: nn.Module) -> list[float]:
    """A fingerprint of the parameters, which hardly any change leaves as it is."""
    return [p.detach().sum(dtype=torch.float64).item() for p in model.parameters()]
