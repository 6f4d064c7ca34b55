"""Suite ``generation``: the next token of a language model, through a cache of those before.

A call is one step of the whole batch: a token each, at position ``seq_len``, that sees all before.
Every call begins by taking back the token of the last one, so that the cache is as long each time.
At lengths that are whole blocks, as usual, the step is the dearest of a tile: the one that chooses
the list that the tile's other tokens share.

The cache and what a step needs beside it count in the peak memory; the weights do not.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from dynbench.harness.case import Case
from dynbench.harness.subject import Correctness, Subject
from dynbench.harness.timing import WallTimer
from dynbench.suites.attention import DENSE_FACTS
from dynbench.suites.blocklists import next_query_facts
from dynbench.suites.coretrace import CoreCall, watched_cores
from dynbench.suites.cost import FIRST_TOKEN_CALLS, call_work
from dynbench.suites.modeltext import TextIds, text_ids
from dynbench.suites.providers.core import library_version
from dynbench.suites.spec import Spec
from dynbench.suites.stepcheck import StepCheck
from dynbench.suites.stepmodel import activation_share, parameter_count, step_model
from dynnsiha import DynNSIHALanguageModel
from dynnsiha.model_cache import ModelCache

_FIRST_TOKEN_S = 10.0
"""Time after which no further prompt is read to measure the time to the first token."""


def generation_subject(case: Case) -> Subject:
    """What the harness measures for a case of this suite; the prompt is read in its setup."""
    spec = Spec.of(case)
    call = GenerationCall(spec, step_model(spec), text_ids(spec, spec.seq_len + 1))
    return Subject(
        run=call.step,
        check=call.check,
        work=call_work(case),
        version=library_version(),
        setup=call.fill_cache,
        facts=call.facts,
        inputs=[list(call.model.parameters()), call.text],
        tokens=spec.batch,
    )


@dataclass
class GenerationCall:
    """One model, the tokens in its cache and the one that comes next (the last of ``text``)."""

    spec: Spec
    model: DynNSIHALanguageModel
    text: TextIds

    def __post_init__(self) -> None:
        self._cache: ModelCache | None = None
        self._checker: StepCheck | None = None

    @property
    def cache(self) -> ModelCache:
        """The cache, of the prompt and perhaps the token of a step."""
        assert self._cache is not None, "read_prompt comes first"
        return self._cache

    def fill_cache(self) -> None:
        """Read the prompt: a step needs it in the cache."""
        self.read_prompt()

    @torch.no_grad()
    def read_prompt(self) -> Tensor:
        """Fill the cache, made at the first call, with the prompt alone: logits [B, V] after it."""
        if self._cache is None:
            self._cache = self.model.new_cache(self.spec.batch, self.spec.seq_len + 1)
        self._shorten(0)
        prompt = self.text.part(slice(0, self.spec.seq_len))
        return self.model(prompt.chars, prompt.words, cache=self._cache)[:, -1]

    @torch.no_grad()
    def step(self) -> Tensor:
        """Logits [B, V] after the next token of each sequence; the cache then holds it."""
        self._shorten(self.spec.seq_len)
        token = self.text.part(slice(self.spec.seq_len, None))
        return self.model(token.chars, token.words, cache=self.cache)[:, -1]

    def check(self, logits: Tensor) -> Correctness:
        """Compare the logits of a step with those of one forward over all the tokens."""
        if self._checker is None:
            self._checker = StepCheck(self.spec, self.model, self.text, self.step)
        return self._checker(logits)

    def facts(self) -> Mapping[str, Any]:
        """Columns measured: time to the first token, size of the cache, sparsity of the step."""
        facts = {"parameters": parameter_count(self.model)} | self._sparsity()
        self._shorten(self.spec.seq_len)
        facts["cache_bytes"] = self.cache.held_bytes
        facts["first_token_ms"] = self._first_token_ms()
        rate = activation_share(self.model, self.text)
        return facts if rate is None else facts | {"activation_rate": rate}

    def _shorten(self, tokens: int) -> None:
        self.cache.truncate([tokens] * self.spec.batch)

    def _first_token_ms(self) -> float:
        """Median time to read the prompt and have the logits of the first token after it."""
        timer, began = WallTimer(self.spec.device.type), time.perf_counter()
        taken_ms: list[float] = []
        while len(taken_ms) < FIRST_TOKEN_CALLS:
            taken_ms.append(timer.time(self.read_prompt).ms)
            if time.perf_counter() - began > _FIRST_TOKEN_S:
                break
        return statistics.median(taken_ms)

    def _sparsity(self) -> dict[str, Any]:
        """What the step's own lists leave out, averaged over the layers; and the backend."""
        config = self.spec.config
        if config is None:
            return dict(DENSE_FACTS)
        found: list[dict[str, float]] = []
        backends: list[str] = []

        def note(call: CoreCall) -> None:
            aux = call.routing.attention
            assert aux is not None
            assert isinstance(aux.block_indices, Tensor)
            found.append(next_query_facts(aux.block_indices, config, self.spec.seq_len))
            backends.append(aux.backend)

        token = self.text.part(slice(self.spec.seq_len, None))
        self._shorten(self.spec.seq_len)
        with watched_cores(self.model, note):
            self.model(token.chars, token.words, cache=self.cache, return_routing=True)
        means = {name: statistics.fmean(one[name] for one in found) for name in found[0]}
        return means | {"backend": backends[0]}
