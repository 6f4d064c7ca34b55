"""What a trained model opens, gates and attends to, on held-out data: columns of its row."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from dynbench.suites.attention import DENSE_FACTS
from dynbench.suites.blocklists import list_facts
from dynbench.suites.quality.evaluation import Evaluation
from dynbench.suites.work import dense_pairs, sliding_pairs
from dynnsiha.attention.config import NSAConfig
from dynnsiha.forms.layer import LayerRouting
from dynnsiha.learning.calls import RoutedCall
from dynnsiha.learning.routed import watch_routing

_BATCHES = 2  # looked into, at most
_GATES = ("gate_compressed", "gate_selected", "gate_sliding")


class RoutingFacts:
    """Collects over batches; ``columns`` are means over layers.

    Args:
        config: of the sparse attention; None where it is dense.
        seq_len: of the batches.
    """

    def __init__(self, config: NSAConfig | None, seq_len: int) -> None:
        self.config, self.seq_len = config, seq_len
        self._opened: dict[str, Tensor] = {}  # tokens that opened each neuron, [neurons]
        self._tokens: dict[str, int] = {}
        self._gates: list[Tensor] = []
        self._lists: list[Mapping[str, float | None]] = []
        self._backends: set[str] = set()

    @torch.no_grad()
    def look_into(self, model: nn.Module, evaluation: Evaluation) -> None:
        """Run the first batches of an evaluation."""
        model.eval()
        with watch_routing(model, self._on_layer, self._on_attention):
            for batch in evaluation.batches[:_BATCHES]:
                model(*evaluation.inputs(batch))

    def _on_layer(self, call: RoutedCall) -> None:
        is_open = (call.weight > 0).flatten(0, -2)
        self._opened[call.name] = self._opened.get(call.name, 0) + is_open.sum(0)
        self._tokens[call.name] = self._tokens.get(call.name, 0) + len(is_open)

    def _on_attention(self, name: str, routing: LayerRouting) -> None:
        if routing.gates is not None:
            self._gates.append(routing.gates.float().mean((0, 1, 2)))
        if routing.attention is None or self.config is None:
            return
        self._backends.add(routing.attention.backend)
        if "selected" in self.config.branches:
            lists = routing.attention.block_indices
            self._lists.append(list_facts(lists, self.config, self.seq_len))

    def columns(self) -> dict[str, Any]:
        """Activation, gates and sparsity; columns of what the model has not are absent."""
        return {**self._activation(), **self._mean_gates(), **self._sparsity()}

    def _activation(self) -> dict[str, float]:
        if not self._opened:
            return {}
        opened = sum(float(count.sum()) for count in self._opened.values())
        could = sum(len(count) * self._tokens[name] for name, count in self._opened.items())
        dead = sum(int((count == 0).sum()) for count in self._opened.values())
        neurons = sum(map(len, self._opened.values()))
        return {"activation_rate": opened / could, "dead_neuron_share": dead / neurons}

    def _mean_gates(self) -> dict[str, float]:
        if not self._gates or self.config is None:
            return {}
        means = torch.stack(self._gates).mean(0).tolist()
        branches = self.config.branches
        told = zip(_GATES, means, strict=True)
        return {name: gate for name, gate in told if name.removeprefix("gate_") in branches}

    def _sparsity(self) -> dict[str, Any]:
        if self.config is None:
            return dict(DENSE_FACTS)
        facts: dict[str, Any] = {}
        if self._backends:
            facts["backend"] = ",".join(sorted(self._backends))
        if self.config.branches == ("sliding",):
            share = sliding_pairs(self.seq_len, self.config.window) / dense_pairs(self.seq_len)
            return facts | {"attended_share": share, "sparsity": 1 - share, "mean_blocks": 0.0}
        for name in self._lists[0] if self._lists else ():
            values = [value for found in self._lists if (value := found[name]) is not None]
            facts[name] = sum(values) / len(values) if values else None
        return facts
