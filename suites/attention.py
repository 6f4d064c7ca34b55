"""Suite ``attention``: q, k, v (and gates) to o, and its gradients."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dynbench.harness.case import Case
from dynbench.harness.subject import Correctness, Subject, Unsupported
from dynbench.suites.blocklists import list_facts, shape_problem
from dynbench.suites.check import AttentionCheck
from dynbench.suites.inputs import attention_inputs
from dynbench.suites.passes import subject_of
from dynbench.suites.providers.base import Provider
from dynbench.suites.providers.loading import load_provider
from dynbench.suites.spec import Spec
from dynnsiha.attention import NSAAux

DENSE_FACTS = {"attended_share": 1.0, "sparsity": 0.0}


def attention_subject(case: Case, provider_files: Iterable[str | Path] = ()) -> Subject:
    """What the harness measures for a case of this suite, its inputs on the device."""
    spec = Spec.of(case)
    call = AttentionCall(spec, load_provider(spec, provider_files))
    return subject_of(case, call, call.provider.version)


class AttentionCall:
    """One provider on one set of inputs: the passes, their check and their facts.

    The passes return tuples of tensors, named by ``check.output_names``.
    """

    def __init__(self, spec: Spec, provider: Provider) -> None:
        self.spec, self.provider = spec, provider
        self.inputs = attention_inputs(spec, heads_first=provider.heads_first)
        self._inputs_sum = self._sum_inputs()
        self._checker: AttentionCheck | None = None
        self._kept: Tensor | None = None
        self._lists: Any = None
        self._backend: str | None = None

    def forward(self) -> tuple[Tensor, ...]:
        """(o,)"""
        with torch.no_grad():
            return (self._attend(),)

    def keep_forward(self) -> None:
        """The forward pass whose graph ``backward`` goes through, again and again."""
        self._kept = self._differentiable()

    def backward(self) -> tuple[Tensor, ...]:
        """(dq, dk, dv) and dgates where there are gates, of the kept forward pass alone."""
        assert self._kept is not None, "keep_forward comes first"
        return self._gradients(self._kept, self.inputs.d_out, keep=True)

    def forward_backward(self) -> tuple[Tensor, ...]:
        """(o, dq, dk, dv) and dgates where there are gates."""
        o = self._differentiable()
        return (o.detach(), *self._gradients(o, self.inputs.d_out, keep=False))

    def check(self, outputs: tuple[Tensor, ...]) -> Correctness:
        """Compare outputs of a pass with the reference that follows the latest call's lists."""
        if self._checker is None:
            self._checker = AttentionCheck(self.spec, self.inputs, self.gradients_for)
        self._ask_for_lists()
        verdict = self._checker(outputs, self._lists)
        if self._sum_inputs() != self._inputs_sum:
            return replace(verdict, problem="the provider overwrote its inputs")
        return verdict

    def _sum_inputs(self) -> list[float]:
        """A fingerprint that a write by any kernel changes; autograd's versions see torch's own."""
        operands = (self.inputs.q, self.inputs.k, self.inputs.v, self.inputs.gates)
        return [x.detach().sum(dtype=torch.float64).item() for x in operands if x is not None]

    def gradients_for(self, d_out: Tensor) -> tuple[Tensor, ...]:
        """Gradients of the operands for another gradient of o, in a call of its own."""
        o = self._differentiable() if self._kept is None else self._kept
        return self._gradients(o, d_out, keep=self._kept is not None)

    def facts(self) -> Mapping[str, Any]:
        """Columns measured from the lists: sparsity, overlap; and the backend that ran."""
        s = self.spec
        if s.config is None:
            return DENSE_FACTS
        if self._lists is None or shape_problem(
            self._lists, s.config, s.batch, s.seq_len, s.kv_heads
        ):
            return {}  # a user's kernel that keeps its lists for itself
        facts: dict[str, Any] = list_facts(self._lists, s.config, s.seq_len)
        return facts | ({} if self._backend is None else {"backend": self._backend})

    def _attend(self) -> Tensor:
        i = self.inputs
        if self.provider.sparse:
            result = self.provider.attention(i.q, i.k, i.v, i.gates, self.spec.config)
        else:
            result = self.provider.attention(i.q, i.k, i.v)
        if self.provider.sparse and isinstance(result, tuple) and len(result) == 2:
            result, aux = result
            self._lists = aux
            if isinstance(aux, NSAAux):
                self._lists, self._backend = aux.block_indices, aux.backend
        return result

    def _ask_for_lists(self) -> None:
        """Lists of a provider that returns o alone, but can tell which ones led to it."""
        if self.provider.lists is not None:
            i = self.inputs
            with torch.no_grad():
                self._lists = self.provider.lists(i.q, i.k, i.v, i.gates, self.spec.config)

    def _differentiable(self) -> Tensor:
        o = self._attend()
        if not isinstance(o, Tensor) or not o.requires_grad:
            raise Unsupported(f"{self.spec.provider} has no gradient: its output has no graph")
        return o

    def _gradients(self, o: Tensor, d_out: Tensor | None, *, keep: bool) -> tuple[Tensor, ...]:
        return torch.autograd.grad(o, self.inputs.leaves, d_out, retain_graph=keep)
