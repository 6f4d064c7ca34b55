"""Suite ``training``: one step on a batch of real text: forward, backward, optimizer.

The optimizer is AdamW with a learning rate of 0. A step then does all the work of any other (it
reads gradients, updates both moments and writes every parameter) and leaves each parameter as it
was, bit for bit: the first sample and the thousandth train the same model on the same text, and the
gradients of every call can be checked. With a real rate the model would learn its one batch by
heart, and with it neurons open or close and experts are chosen otherwise: other work.

Parameters, gradients and moments are in the case's dtype. Moments, activations and gradients count
in the peak memory; the parameters do not.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from dynbench.harness.case import Case
from dynbench.harness.subject import Correctness, Subject, Unsupported
from dynbench.suites.attention import DENSE_FACTS
from dynbench.suites.cost import call_work
from dynbench.suites.modelreference import Decisions, decisions_of, partial_loss
from dynbench.suites.modeltext import TextIds, text_ids
from dynbench.suites.providers.core import library_version
from dynbench.suites.spec import Spec
from dynbench.suites.stepmodel import activation_share, parameter_count, step_model
from dynbench.suites.traincheck import TrainingCheck, parameter_sums
from dynnsiha import DynNSIHALanguageModel
from dynnsiha.attention.stages import record_stages

WEIGHT_DECAY = 0.1


def training_subject(case: Case) -> Subject:
    """What the harness measures for a case of this suite, its model and text on the device."""
    spec = Spec.of(case)
    if spec.seq_len < 2:
        raise Unsupported("seq_len=1: a next character to learn from needs at least 2")
    if spec.dtype == torch.float16:
        raise Unsupported(
            "dtype=float16: AdamW's second moments are too small for it, use bfloat16 or float32"
        )
    call = TrainingCall(spec, step_model(spec), text_ids(spec, spec.seq_len))
    return Subject(
        run=call.step,
        check=call.check,
        work=call_work(case),
        version=library_version(),
        facts=call.facts,
        inputs=[list(call.model.parameters()), call.text],
        record_stages=lambda: record_stages(case.device),
        tokens=spec.batch * spec.seq_len,
    )


class TrainingCall:
    """One model on one batch of text, and its optimizer."""

    def __init__(self, spec: Spec, model: DynNSIHALanguageModel, text: TextIds) -> None:
        self.spec, self.model, self.text = spec, model, text
        on_gpu = spec.device.type == "cuda"
        self.optimizer = torch.optim.AdamW(
            model.parameters(), lr=0.0, weight_decay=WEIGHT_DECAY, fused=on_gpu, capturable=on_gpu
        )
        self._before = parameter_sums(model)
        self._checker: TrainingCheck | None = None
        self._decisions: Decisions | None = None

    def step(self) -> tuple[Tensor, ...]:
        """The loss and the gradient of every parameter, in their order; the optimizer has stepped.

        No gradient is left on the model, so that the next step begins as this one did.
        """
        loss = self.model.loss(self.text.chars, self.text.words)
        loss.backward()
        self.optimizer.step()
        return (loss.detach(), *self._taken_gradients())

    def gradients_of(self, predictions: slice) -> tuple[Tensor, ...]:
        """Loss and gradients of some predictions alone, without a step of the optimizer."""
        logits = self.model(self.text.chars, self.text.words)[:, :-1]
        loss = partial_loss(logits[:, predictions], self.text.chars, predictions)
        loss.backward()
        return (loss.detach(), *self._taken_gradients())

    def check(self, outputs: tuple[Tensor, ...]) -> Correctness:
        """Compare a step's outputs with the model in higher precision, same lists and experts."""
        if self._checker is None:
            self._checker = TrainingCheck(
                self.spec,
                self.model,
                self.text,
                self.optimizer,
                self._chosen(),
                self.gradients_of,
                self._before,
            )
        return self._checker(outputs)

    def facts(self) -> Mapping[str, Any]:
        """Columns measured: parameters, sparsity and overlap of the lists, open neurons."""
        facts: dict[str, Any] = {"parameters": parameter_count(self.model)}
        rate = activation_share(self.model, self.text)
        if rate is not None:
            facts["activation_rate"] = rate
        chosen = self._chosen()
        if not chosen.facts:
            return facts | DENSE_FACTS
        for name in chosen.facts[0]:  # averaged over the layers
            told = [value for one in chosen.facts if (value := one[name]) is not None]
            facts[name] = statistics.fmean(told) if told else None
        return facts | {"backend": chosen.backend}

    def _chosen(self) -> Decisions:
        if self._decisions is None:
            self._decisions = decisions_of(self.spec, self.model, self.text)
        return self._decisions

    def _taken_gradients(self) -> tuple[Tensor, ...]:
        gradients = [parameter.grad for parameter in self.model.parameters()]
        self.optimizer.zero_grad(set_to_none=True)
        return tuple(gradient for gradient in gradients if gradient is not None)
