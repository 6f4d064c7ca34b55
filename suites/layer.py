"""Suite ``layer``: x to y, with synthesis or projections around the attention, and gradients."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dynbench.harness.case import Case
from dynbench.harness.subject import Correctness, Subject, Unsupported
from dynbench.suites.activation import ACTIVATION_TOKENS, open_share
from dynbench.suites.attention import DENSE_FACTS
from dynbench.suites.blocklists import list_facts
from dynbench.suites.catalog import provider_info
from dynbench.suites.expertcheck import ExpertCheck, Form
from dynbench.suites.formwork import ACTIVE, BLOCKS, EXPERTS, FormShape
from dynbench.suites.inputs import LayerInputs, layer_inputs
from dynbench.suites.layercheck import LayerCheck, projected
from dynbench.suites.passes import subject_of
from dynbench.suites.plainblocks import PlainBlock, PlainBlocks
from dynbench.suites.providers.base import Provider
from dynbench.suites.providers.core import library_version
from dynbench.suites.providers.loading import load_provider
from dynbench.suites.spec import Spec
from dynnsiha.attention.config import NSAConfig
from dynnsiha.forms import (
    AttentionLayer,
    DenseCore,
    DimensionDynSIHA,
    DynNSIHA,
    DynSIHA,
    FlatDynSIHA,
    HeadLayout,
    NativeSparseAttention,
    RecursiveDynSIHA,
    linear_projections,
)
from dynnsiha.forms.layer import AttentionCore, CoreRouting
from dynnsiha.forms.nsa import BranchGates

Layer = AttentionLayer | Form


def layer_subject(case: Case, provider_files: Iterable[str | Path] = ()) -> Subject:
    """What the harness measures for a case of this suite, its layer and text on the device."""
    spec = Spec.of(case)
    provider = load_provider(spec, provider_files)
    call = LayerCall(spec, build_layer(spec, provider), layer_inputs(spec))
    return subject_of(case, call, f"{provider.version}, in a layer of {library_version()}")


class OwnSparseCore(AttentionCore):
    """A user's sparse attention between plain projections, with the library's branch gates."""

    def __init__(self, spec: Spec, provider: Provider, config: NSAConfig) -> None:
        super().__init__()
        self.config = config
        self.attention = provider.attention
        self.gates = BranchGates(spec.model_dim, spec.q_heads)

    def forward(
        self, q: Tensor, k: Tensor, v: Tensor, x: Tensor, *, return_routing: bool = False
    ) -> tuple[Tensor, CoreRouting]:
        """See `AttentionCore`; lists that the attention returns beside o are not kept."""
        o = self.attention(q, k, v, self.gates(x), self.config)
        return o[0] if isinstance(o, tuple) else o, CoreRouting()


def build_layer(spec: Spec, provider: Provider) -> Layer:
    """The layer of a case, its parameters drawn from the seed.

    ``dynsiha``, ``dynnsiha`` and ``dimension`` synthesise q, k, v and y; ``flat``, ``recursive``
    and ``transformer`` are several blocks (formwork.py); every other provider stands between plain
    projections. Raises Unsupported for heads that a layer cannot have.
    """
    width = (spec.model_dim, spec.q_heads, spec.kv_heads, spec.head_dim)
    info = provider_info(spec.provider)
    name = info.name if info else ""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(spec.seed)
        try:
            layer: Layer
            if name == "dynsiha":
                layer = DynSIHA(*width)
            elif name == "dimension":
                layer = DimensionDynSIHA(*width)
            elif name in ("flat", "recursive", "transformer"):
                layer = _build_blocks(name, spec, provider)
            elif name == "dynnsiha":
                layer = DynNSIHA(*width, config=spec.config)
            elif name == "nsa":
                layer = NativeSparseAttention(*width, config=spec.config)
            else:
                layout = HeadLayout(*width[1:])
                core: AttentionCore = DenseCore(provider.attention)
                if spec.config is not None:
                    core = OwnSparseCore(spec, provider, spec.config)
                layer = AttentionLayer(layout, linear_projections(spec.model_dim, layout), core)
        except ValueError as error:
            raise Unsupported(f"{spec.provider} in suite layer: {error}") from None
    return layer.to(device=spec.device, dtype=spec.dtype)


def _build_blocks(name: str, spec: Spec, provider: Provider) -> Form:
    """The layers of several blocks, in the sizes of formwork.py."""
    shape = FormShape(spec.model_dim, spec.q_heads, spec.kv_heads, spec.head_dim)
    heads = (spec.model_dim, spec.q_heads, spec.kv_heads, spec.head_dim)
    if name == "transformer":
        block = (spec.model_dim, HeadLayout(*heads[1:]), shape.plain_width, provider.attention)
        return PlainBlocks([PlainBlock(*block) for _ in range(BLOCKS)])
    experts: dict[str, Any] = {
        "experts": EXPERTS,
        "active_experts": ACTIVE,
        "expert_width": shape.expert_width,
        "core": lambda: DenseCore(provider.attention),
    }
    if name == "flat":
        return FlatDynSIHA(*heads, blocks=BLOCKS, **experts)
    return RecursiveDynSIHA(*heads, steps=BLOCKS, **experts)


class LayerCall:
    """One layer on one input: the passes, their check and their facts.

    ``forward`` returns (y,), ``backward`` (dx, gradients of the parameters in their order),
    ``forward_backward`` y before these.
    """

    def __init__(self, spec: Spec, layer: Layer, inputs: LayerInputs) -> None:
        self.spec, self.layer, self.inputs = spec, layer, inputs
        self._kept: Tensor | None = None
        self._checker: LayerCheck | ExpertCheck | None = None
        self._lists: Any = None
        self._backend: str | None = None

    def forward(self) -> tuple[Tensor, ...]:
        """(y,)"""
        with torch.no_grad():
            return (self.layer(self.inputs.x),)

    def keep_forward(self) -> None:
        """The forward pass whose graph ``backward`` goes through, again and again."""
        self._kept = self.layer(self.inputs.x)

    def backward(self) -> tuple[Tensor, ...]:
        """Gradients of x and of every parameter, of the kept forward pass alone."""
        assert self._kept is not None, "keep_forward comes first"
        return self._gradients(self._kept, self.inputs.d_out, keep=True)

    def forward_backward(self) -> tuple[Tensor, ...]:
        """y and the gradients of x and of every parameter."""
        y = self.layer(self.inputs.x)
        return (y.detach(), *self._gradients(y, self.inputs.d_out, keep=False))

    def check(self, outputs: tuple[Tensor, ...]) -> Correctness:
        """Compare outputs of a pass with the layer computed in higher precision, same lists."""
        self._find_lists()
        if self._checker is None:
            self._checker = self._new_checker()
        return self._checker(outputs)

    def _new_checker(self) -> LayerCheck | ExpertCheck:
        if isinstance(self.layer, AttentionLayer):
            return LayerCheck(self.spec, self.layer, self.inputs, self._lists, self.gradients_for)
        return ExpertCheck(self.spec, self.layer, self.inputs, self.gradients_for)

    def gradients_for(self, d_out: Tensor) -> tuple[Tensor, ...]:
        """Gradients of x and the parameters for another gradient of y, in a call of its own."""
        y = self.layer(self.inputs.x) if self._kept is None else self._kept
        return self._gradients(y, d_out, keep=self._kept is not None)

    def facts(self) -> Mapping[str, Any]:
        """Columns measured: sparsity and overlap of the lists, share of open neurons, backend."""
        facts: dict[str, Any] = dict(DENSE_FACTS)
        if self.spec.config is not None:
            self._find_lists()
            facts = {}
            if self._lists is not None:
                facts = {"backend": self._backend}
                facts |= list_facts(self._lists, self.spec.config, self.spec.seq_len)
        rate = self._activation_rate()
        return facts if rate is None else facts | {"activation_rate": rate}

    @torch.no_grad()
    def _activation_rate(self) -> float | None:
        """Share of open neurons in both synthesis layers, over each sequence's first tokens."""
        info = provider_info(self.spec.provider)
        if info is None or not info.synthesised:
            return None
        _, routing = self.layer(self.inputs.x[:, :ACTIVATION_TOKENS], return_routing=True)
        return open_share((routing.qkv, routing.output))

    def _gradients(self, y: Tensor, d_out: Tensor | None, *, keep: bool) -> tuple[Tensor, ...]:
        if not y.requires_grad:
            raise Unsupported(f"{self.spec.provider} has no gradient: its output has no graph")
        leaves = (self.inputs.x, *self.layer.parameters())
        return torch.autograd.grad(y, leaves, d_out, retain_graph=keep)

    @torch.no_grad()
    def _find_lists(self) -> None:
        """The lists that the layer's passes use, from a call of its core alone, once."""
        if self.spec.config is None or self._lists is not None:
            return
        assert isinstance(self.layer, AttentionLayer)
        q, k, v, _ = projected(self.layer, self.inputs.x)
        _, routing = self.layer.core(q, k, v, self.inputs.x, return_routing=True)
        if routing.attention is not None:
            self._lists, self._backend = routing.attention.block_indices, routing.attention.backend
