"""What the routed layers of a model did in a forward pass, as it happens."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.utils.hooks import RemovableHandle

from dynnsiha.forms.expert_block import ExpertHeads, ExpertMLP
from dynnsiha.forms.layer import AttentionLayer, LayerRouting
from dynnsiha.learning.calls import ExpertCall, NeuronCall, RoutedCall
from dynnsiha.synthesis.sbl import SparseBayesianLinear
from dynnsiha.synthesis.spl import SparseProtoLinear

Watcher = Callable[[RoutedCall], None]
AttentionWatcher = Callable[[str, LayerRouting], None]


@contextmanager
def watch_routing(
    model: nn.Module, on_layer: Watcher | None = None, on_attention: AttentionWatcher | None = None
) -> Iterator[None]:
    """Inside the block, tell the callbacks of every call of a routed layer in ``model``.

    The model is called as always and returns what it always returns: the layers are asked for
    their routing behind its back. A compiled model runs uncompiled meanwhile, since compiled code
    does not notice who watches it.

    Args:
        model: any module; its parts of type `SparseBayesianLinear`, `SparseProtoLinear`,
            `ExpertHeads`, `ExpertMLP` and `AttentionLayer` are watched.
        on_layer: called with each `RoutedCall`.
        on_attention: called with the name and the `LayerRouting` of each attention layer.
    """
    handles: list[RemovableHandle] = []
    for name, module in model.named_modules():
        if on_layer is not None and isinstance(module, SparseBayesianLinear | SparseProtoLinear):
            handles += _ask_for_routing(module, _neuron_report(name, module, on_layer))
        if on_layer is not None and isinstance(module, ExpertHeads | ExpertMLP):
            handles += _ask_for_routing(module, _expert_report(name, module, on_layer))
        if on_attention is not None and isinstance(module, AttentionLayer):
            handles += _ask_for_routing(module, _attention_report(name, on_attention))
    try:
        with torch.compiler.set_stance("force_eager"):
            yield
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def record_routing(model: nn.Module) -> Iterator[list[RoutedCall]]:
    """Inside the block, collect every `RoutedCall` of ``model``, in the order of the calls.

    The list keeps the tensors, and with them the graph, alive.
    """
    calls: list[RoutedCall] = []
    with watch_routing(model, calls.append):
        yield calls


# (positional arguments, keyword arguments, output, routing) of one call of a module.
_Report = Callable[[tuple[Any, ...], dict[str, Any], Any, Any], None]


def _neuron_report(
    name: str, layer: SparseBayesianLinear | SparseProtoLinear, on_layer: Watcher
) -> _Report:
    def report(args: tuple[Any, ...], kwargs: dict[str, Any], y: Any, routing: Any) -> None:
        x = args[0] if args else kwargs["x"]
        other = args[1] if len(args) > 1 else kwargs.get("routing_input")
        on_layer(NeuronCall(name, layer, x, x if other is None else other, routing, y))

    return report


def _expert_report(name: str, layer: ExpertHeads | ExpertMLP, on_layer: Watcher) -> _Report:
    def report(args: tuple[Any, ...], kwargs: dict[str, Any], y: Any, routing: Any) -> None:
        x = args[0] if args else kwargs["x"]
        other = kwargs.get("routing_input")
        experts = routing.experts if isinstance(layer, ExpertHeads) else routing
        read = x if other is None else other
        # Nothing may be kept for a backward pass here: activation checkpointing, which computes the
        # layer again without this report, would find other tensors kept than the first time.
        with torch.no_grad():
            weight = experts.expert_weights
        on_layer(ExpertCall(name, layer, read, experts, weight))

    return report


def _attention_report(name: str, on_attention: AttentionWatcher) -> _Report:
    def report(args: tuple[Any, ...], kwargs: dict[str, Any], y: Any, routing: Any) -> None:
        on_attention(name, routing)

    return report


def _ask_for_routing(module: nn.Module, report: _Report) -> list[RemovableHandle]:
    """Hooks that add ``return_routing=True``, report it, and hand back what was asked for."""
    asked: list[bool] = []

    def before(
        _: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        asked.append(bool(kwargs.get("return_routing", False)))
        return args, kwargs | {"return_routing": True}

    def after(
        _: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: tuple[Any, Any]
    ) -> Any:
        y, routing = output
        report(args, kwargs, y, routing)
        return output if asked.pop() else y

    # Blocks may be nested: who asked last hears first.
    return [
        module.register_forward_pre_hook(before, with_kwargs=True),
        module.register_forward_hook(after, prepend=True, with_kwargs=True),
    ]
