"""What routing looked like in one step, layer by layer."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from dynnsiha.attention.config import BRANCHES
from dynnsiha.forms.layer import LayerRouting
from dynnsiha.learning.calls import RoutedCall
from dynnsiha.learning.routed import watch_routing


@dataclass
class _Neurons:
    open_tokens: Tensor  # [d_out]
    tokens: int


@dataclass
class _Branches:
    gates: list[Tensor] = field(default_factory=list)
    blocks: list[Tensor] = field(default_factory=list)


class RoutingStatistics:
    """Counts which neurons open and which branches are read while a model runs."""

    def __init__(self) -> None:
        self._neurons: dict[str, _Neurons] = {}
        self._branches: dict[str, _Branches] = {}

    @contextmanager
    def watching(self, model: nn.Module) -> Iterator[None]:
        """Inside the block, count; what was counted before is forgotten."""
        self._neurons.clear()
        self._branches.clear()
        with watch_routing(model, self._on_layer, self._on_attention):
            yield

    @torch.no_grad()
    def _on_layer(self, call: RoutedCall) -> None:
        is_open = (call.weight > 0).flatten(0, -2)
        counted = _Neurons(is_open.sum(0), len(is_open))
        earlier = self._neurons.get(call.name)
        if earlier is not None:  # a layer that is called several times counts as one
            counted.open_tokens += earlier.open_tokens
            counted.tokens += earlier.tokens
        self._neurons[call.name] = counted

    @torch.no_grad()
    def _on_attention(self, name: str, routing: LayerRouting) -> None:
        seen = self._branches.setdefault(name, _Branches())
        if routing.gates is not None:
            seen.gates.append(routing.gates.float().flatten(0, -2).mean(0))
        if routing.attention is not None:
            seen.blocks.append(routing.attention.block_counts.float().mean())

    def rows(self) -> list[dict[str, Any]]:
        """One row a layer, in the order of the first calls; columns as in `log.COLUMNS`."""
        rows: dict[str, dict[str, Any]] = {}
        for name, neurons in self._neurons.items():
            count = len(neurons.open_tokens)
            rows[name] = {
                "layer": name,
                "neurons": count,
                "activation_rate": float(neurons.open_tokens.sum()) / (count * neurons.tokens),
                "dead_neurons": int((neurons.open_tokens == 0).sum()),
            }
        for name, branches in self._branches.items():
            if not branches.gates:
                continue
            gates = torch.stack(branches.gates).mean(0).tolist()
            row = rows.setdefault(name, {"layer": name})
            row |= {f"gate_{branch}": gate for branch, gate in zip(BRANCHES, gates, strict=True)}
            if branches.blocks:  # a dense warm-up has no lists
                row["selected_blocks"] = float(torch.stack(branches.blocks).mean())
        return list(rows.values())
