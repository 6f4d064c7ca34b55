"""A language model in higher precision, its attention spelt out, with the decisions of the model.

What depends on near ties is taken from the model that is checked: block lists and experts. Whether
they are right is judged apart: lists by the model's own q and k (blocklists.py), experts by the
reference's own logits.
"""

from __future__ import annotations

import copy
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from dynbench.suites.blocklists import list_facts, list_problem
from dynbench.suites.coretrace import CoreCall, watched_cores, watched_routers, with_experts
from dynbench.suites.modeltext import TextIds
from dynbench.suites.rows import CHUNK_ELEMENTS, Lists, cut, dense_rows
from dynbench.suites.sampling import sample
from dynbench.suites.spec import Spec
from dynnsiha import DynNSIHALanguageModel
from dynnsiha.attention.config import NSAConfig
from dynnsiha.attention.reference import reference_rows
from dynnsiha.forms.experts import Choice, ExpertRouter
from dynnsiha.forms.layer import AttentionCore, AttentionLayer, CoreRouting


@dataclass
class Decisions:
    """What a model chose on a text.

    Attributes:
        lists: of each attention core by its name, one for each of its calls.
        experts: of each router by its name, int64 [B, T, k] for each of its calls.
        facts: the sparsity columns of each core's lists.
        backend: of the sparse core; empty for dense attention.
        problem: the first broken rule of a list; empty if there is none.
    """

    lists: dict[str, list[Lists]] = field(default_factory=lambda: defaultdict(list))
    experts: dict[str, list[Tensor]] = field(default_factory=lambda: defaultdict(list))
    facts: list[dict[str, float | None]] = field(default_factory=list)
    backend: str = ""
    problem: str = ""


@torch.no_grad()
def decisions_of(spec: Spec, model: DynNSIHALanguageModel, text: TextIds) -> Decisions:
    """Run the model once over the text and note what it chooses."""
    found = Decisions()

    def note(call: CoreCall) -> None:
        aux = call.routing.attention
        if aux is None or spec.config is None:
            return
        found.lists[call.name].append(aux.block_indices)
        found.facts.append(list_facts(aux.block_indices, spec.config, spec.seq_len))
        found.backend = aux.backend
        found.problem = found.problem or _list_problem(spec, call, aux.block_indices)

    def choose(name: str, router: ExpertRouter, choice: Choice) -> None:
        found.experts[name].append(choice.indices)

    with watched_cores(model, note), watched_routers(model, choose):
        model(text.chars, text.words, return_routing=True)
    return found


def _list_problem(spec: Spec, call: CoreCall, lists: Lists) -> str:
    """The first broken rule of the lists in sampled heads, judged by the call's own q and k."""
    chosen = sample(
        spec.batch, spec.seq_len, spec.q_heads, spec.kv_heads, spec.device.type, spec.seed
    )
    rows = chosen.rows.to(spec.device)
    gates = call.core.gates(call.x) if isinstance(call.core.gates, nn.Module) else None
    for one in chosen.slices:
        part = cut(call.q, call.k, call.v, gates, spec.config, lists, *one)
        problem = list_problem(part.cast(torch.float64), rows)
        if problem:
            return f"{call.name}: {problem}"
    return ""


class ModelReference:
    """The model in ``dtype`` on the first ``tokens`` of its text, with decisions made before.

    ``logits`` [B, T, E] are those of each router's calls, ``taken`` the experts, int64 [B, T, k].
    """

    def __init__(
        self,
        model: DynNSIHALanguageModel,
        decisions: Decisions,
        text: TextIds,
        tokens: int,
        dtype: torch.dtype,
    ) -> None:
        self.model = copy.deepcopy(model).to(dtype)
        self.text, self.tokens = text, tokens
        self.experts = decisions.experts
        self.logits: list[Tensor] = []
        self.taken: list[Tensor] = []
        for name, layer in list(self.model.named_modules()):
            if isinstance(layer, AttentionLayer):
                layer.core = _ReferenceCore(layer.core, decisions.lists[f"{name}.core"], tokens)

    def gradients(self) -> tuple[Tensor, list[Tensor | None]]:
        """The loss of predicting the tokens after each, and the gradient of every parameter.

        The loss is a share of the whole text's: its sum over these tokens, over all predictions.
        """
        read = self.text.part(slice(0, self.tokens))
        taken = {name: iter(calls) for name, calls in self.experts.items()}

        def choose(name: str, router: ExpertRouter, choice: Choice) -> Choice:
            indices = next(taken[name])[:, : self.tokens]
            self.logits.append(choice.logits.detach())
            self.taken.append(indices)
            return with_experts(router, choice.logits, indices)

        with watched_routers(self.model, choose):
            logits = self.model(read.chars, read.words)
        loss = partial_loss(logits, self.text.chars, slice(0, self.tokens))
        parameters = list(self.model.parameters())
        return loss.detach(), list(torch.autograd.grad(loss, parameters, allow_unused=True))


def partial_loss(logits: Tensor, chars: Tensor, of: slice) -> Tensor:
    """Cross-entropy, in nats, of the predictions after the tokens ``of`` a text chars [B, T].

    ``logits`` [B, n, V] are theirs. It is the sum over them, over the number of all predictions.
    """
    wanted = chars[:, 1:][:, of]
    wide = logits.to(torch.promote_types(logits.dtype, torch.float32))
    total = F.cross_entropy(wide.flatten(0, 1), wanted.flatten(), reduction="sum")
    return total / chars[:, 1:].numel()


class _ReferenceCore(AttentionCore):
    """Attention by readable torch, some rows at a time; each call follows lists of its own."""

    def __init__(self, core: AttentionCore, lists: Sequence[Lists], tokens: int) -> None:
        super().__init__()
        gates, config = getattr(core, "gates", None), getattr(core, "config", None)
        self.gates: nn.Module | None = gates
        self.config: NSAConfig | None = config
        tile = 1 if config is None else int(config.query_tile)
        self._lists: Iterator[Lists] = iter([_first(one, tile, tokens) for one in lists])

    def forward(
        self, q: Tensor, k: Tensor, v: Tensor, x: Tensor, *, return_routing: bool = False
    ) -> tuple[Tensor, CoreRouting]:
        """See `AttentionCore`; there is no routing."""
        gates = None if self.gates is None else self.gates(x)
        lists = None if self.config is None else next(self._lists)

        def attend(rows: Tensor) -> Tensor:
            if self.config is None:
                return dense_rows(q, k, v, rows)
            assert gates is not None
            found = reference_rows(q, k, v, gates, self.config, rows, block_indices=lists)
            assert isinstance(found, Tensor)
            return found

        rows = torch.arange(q.shape[1], device=q.device)
        per_row = q.shape[0] * q.shape[2] * q.shape[1]
        chunks = rows.split(max(1, CHUNK_ELEMENTS[q.device.type] // per_row))
        parts = [checkpoint(attend, chunk, use_reentrant=False) for chunk in chunks]
        return torch.cat(parts, 1), CoreRouting()


def _first(lists: Lists, tile: int, tokens: int) -> Lists:
    """The lists of the first tokens: exact ones, or a pair of a tile's and a query's own."""
    if isinstance(lists, Tensor):
        return lists[:, :tokens]
    return lists[0][:, : -(-tokens // tile)], lists[1][:, :tokens]
