"""Whether a layer computed what it should: its outputs beside the same layer in higher precision.

Small cases are compared whole. Of large ones: y on sampled rows; gradients of x and of the
parameters whole as long as that is affordable, and beyond dx on the last tokens with all their
queries. Since a parameter's gradient sums over all tokens, there is then a further call whose
gradient of y is zero outside the sampled rows: its gradients are compared whole.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from dynbench.harness.subject import Correctness
from dynbench.suites.blocklists import list_problem
from dynbench.suites.catalog import provider_info
from dynbench.suites.compare import (
    GRADIENT_FACTOR,
    OUTPUT_FACTOR,
    TIE_TOLERANCE,
    Comparison,
    compare_parts,
    first_unwritten,
    gradient_tolerance,
    rms_ratio,
    row_parts,
    worst,
)
from dynbench.suites.inputs import LayerInputs
from dynbench.suites.rows import CHUNK_ELEMENTS, Lists, cut, dense_rows
from dynbench.suites.sampling import KEY_BLOCK, affordable_pairs, sample
from dynbench.suites.spec import Spec
from dynnsiha.attention.config import NSAConfig
from dynnsiha.attention.reference import reference_rows
from dynnsiha.forms import AttentionLayer

KINK_TOLERANCE = 5e-3

_DOUBLE_ELEMENTS = 2**26


def projected(layer: AttentionLayer, x: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    """q [B, T, H, D], k, v [B, T, K, D] as the core gets them, and gates [B, T, H, 3] or None."""
    q, k, v = layer.layout.split(layer.qkv(x))
    q, k = layer.rotate(q, k, None)
    gate = getattr(layer.core, "gates", None)
    return q, k, v, None if gate is None else gate(x)


class LayerReference:
    """A layer in another precision, for chosen rows of y and for gradients of these rows.

    ``config`` None attends densely; ``lists`` None lets the reference choose.
    """

    def __init__(
        self,
        layer: AttentionLayer,
        x: Tensor,
        config: NSAConfig | None,
        lists: Lists | None,
        dtype: torch.dtype,
    ) -> None:
        self.layer = copy.deepcopy(layer).to(dtype)
        self.x = x.detach().to(dtype, copy=True)
        self.config, self.lists = config, lists

    @torch.no_grad()
    def outputs(self, rows: Tensor) -> Tensor:
        """y of the rows: [B, N, d]."""
        operands = projected(self.layer, self.x)
        parts = [self._finish(operands, chunk) for chunk in self._chunks(rows)]
        return torch.cat(parts, 1)

    def gradients(self, d_out: Tensor, rows: Tensor) -> list[Tensor]:
        """dx [B, T, d] and the parameters' gradients, of the rows of y alone.

        The projections are run through once; in between, operands are leaves of their own, so that
        the rows can be attended in chunks.
        """
        self.x.requires_grad_(True)
        parameters = list(self.layer.parameters())
        made = [t for t in projected(self.layer, self.x) if t is not None]
        leaves = [t.detach().requires_grad_(True) for t in made]
        inner = [*leaves, *self.layer.output.parameters()]
        sums = [
            torch.zeros_like(t, dtype=torch.promote_types(t.dtype, torch.float32)) for t in inner
        ]
        operands = (*leaves, None)[:4]
        for chunk in self._chunks(rows):
            y = self._finish(operands, chunk)
            found = torch.autograd.grad(y, inner, d_out[:, chunk].to(y.dtype))
            for total, gradient in zip(sums, found, strict=True):
                total += gradient
        into = [total.to(t.dtype) for total, t in zip(sums, made, strict=False)]
        outer = torch.autograd.grad(made, (self.x, *parameters), into, allow_unused=True)
        of_output = dict(
            zip(map(id, self.layer.output.parameters()), sums[len(leaves) :], strict=True)
        )
        result = [outer[0]]
        for parameter, gradient in zip(parameters, outer[1:], strict=True):
            own = of_output.get(id(parameter), gradient)
            result.append(torch.zeros_like(parameter) if own is None else own)
        return [t.detach() for t in result]

    def _finish(self, operands: Sequence[Tensor | None], rows: Tensor) -> Tensor:
        """Attention of the rows and the output projection: [B, N, d]."""
        q, k, v, gates = operands
        assert q is not None
        assert k is not None
        assert v is not None
        if self.config is None:
            o = dense_rows(q, k, v, rows)
        else:
            assert gates is not None
            found = reference_rows(q, k, v, gates, self.config, rows, block_indices=self.lists)
            assert isinstance(found, Tensor)
            o = found
        return self.layer.output(o.flatten(-2))

    def _chunks(self, rows: Tensor) -> Sequence[Tensor]:
        batch, seq_len, _ = self.x.shape
        per_row = batch * self.layer.layout.q_heads * seq_len
        return rows.split(max(1, CHUNK_ELEMENTS[self.x.device.type] // per_row))


class LayerCheck:
    """Checks outputs of one case; ``gradients_for`` makes the further call described above."""

    def __init__(
        self,
        spec: Spec,
        layer: AttentionLayer,
        inputs: LayerInputs,
        lists: Lists | None,
        gradients_for: Callable[[Tensor], tuple[Tensor, ...]],
    ) -> None:
        self.spec, self.layer, self.inputs, self.lists = spec, layer, inputs, lists
        self.gradients_for = gradients_for
        chosen = sample(
            spec.batch, spec.seq_len, spec.q_heads, spec.kv_heads, spec.device.type, spec.seed
        )
        self.whole, self.slices = chosen.whole, chosen.slices
        self.rows = chosen.rows.to(spec.device)
        self.tail = self._tail()
        self.all_gradients = len(self.tail) == spec.seq_len
        self._expected: dict[str, tuple[Tensor, Tensor | None]] | None = None
        self._probe: list[Comparison] = []
        self._list_problem = ""

    def __call__(self, outputs: Sequence[Tensor]) -> Correctness:
        """Compare what a call returned: y, or dx and the parameters' gradients, or both."""
        names = self._names()
        checked = self._describe(names)
        like = {"y": self.inputs.x, "dx": self.inputs.x}
        like |= {f"d {name}": p for name, p in self.layer.named_parameters()}
        for name, output in zip(names, outputs, strict=True):
            if output.shape != like[name].shape or output.dtype != like[name].dtype:
                problem = f"{name} is {list(output.shape)} {output.dtype}"
                return Correctness(float("nan"), 0.0, checked, problem=problem)
        if self._expected is None:
            self._list_problem = self._check_lists()
            self._expected = self._references()
            self._probe = self._probe_gradients()
        given = dict(zip(names, outputs, strict=True))
        comparisons = list(self._probe)
        for name, (wanted, plain) in self._expected.items():
            comparisons += self._compared(name, given[name], wanted, plain)
        found = worst(comparisons)
        return Correctness(
            rms_error=found.error,
            rms_tolerance=found.tolerance,
            checked=f"{checked}; worst {found.name}",
            dense_error=self._dense_error(given["y"]) if "y" in given else None,
            problem=first_unwritten(outputs, names) or self._list_problem,
        )

    def _names(self) -> list[str]:
        gradients = ["dx"] + [f"d {name}" for name, _ in self.layer.named_parameters()]
        return {
            "forward": ["y"],
            "backward": gradients,
            "forward_backward": ["y", *gradients],
        }[self.spec.pass_]

    def _describe(self, names: Sequence[str]) -> str:
        short = [n for n in names if n in ("y", "dx")]
        short += ["parameter gradients"] * self.spec.differentiated
        if self.whole:
            return f"whole {', '.join(short)}"
        parts = [f"y on {len(self.rows)} rows"] if "y" in names else []
        if self.spec.differentiated:
            if self.all_gradients:
                return "; ".join([*parts, "whole dx, parameter gradients"])
            parts.append(f"dx on the last {len(self.tail)} tokens")
            parts.append(f"all gradients of {len(self.rows)} rows in a further call")
        return "; ".join(parts)

    def _tail(self) -> Tensor:
        """Last tokens whose dx is compared: as many as the budget of pairs allows queries."""
        s = self.spec
        budget = affordable_pairs(s.device.type, sparse=s.config is not None)
        budget //= s.batch * s.q_heads * s.seq_len
        queries = s.seq_len if self.whole else min(s.seq_len, max(budget, KEY_BLOCK))
        return torch.arange(s.seq_len - queries, s.seq_len, device=s.device)

    def _dtypes(self) -> list[torch.dtype]:
        """Precision of the reference, then that of the plain computation where one is needed."""
        s = self.spec
        width = (s.q_heads + 2 * s.kv_heads) * s.head_dim
        small = s.batch * s.seq_len * max(width, s.model_dim) <= _DOUBLE_ELEMENTS
        wide = torch.float64 if small else torch.float32
        return [wide] if s.dtype == torch.float32 else [wide, s.dtype]

    def _reference(self, dtype: torch.dtype, *, dense: bool = False) -> LayerReference:
        config = None if dense else self.spec.config
        lists = None if self._list_problem else self.lists
        return LayerReference(self.layer, self.inputs.x, config, lists, dtype)

    def _references(self) -> dict[str, tuple[Tensor, Tensor | None]]:
        """Expected outputs by name, with the plain ones beside them: y on rows, dx on the tail."""
        found: list[dict[str, Tensor]] = []
        for dtype in self._dtypes():
            expected = {}
            if self.spec.pass_ != "backward":
                expected["y"] = self._reference(dtype).outputs(self.rows)
            if self.spec.differentiated:
                assert self.inputs.d_out is not None
                gradients = self._reference(dtype).gradients(self.inputs.d_out, self.tail)
                expected["dx"] = gradients[0][:, self.tail]
                if self.all_gradients:
                    names = [name for name, _ in self.layer.named_parameters()]
                    expected |= {f"d {n}": g for n, g in zip(names, gradients[1:], strict=True)}
            found.append(expected)
        plain = found[1] if len(found) > 1 else {}
        return {name: (wanted, plain.get(name)) for name, wanted in found[0].items()}

    def _probe_gradients(self) -> list[Comparison]:
        """Gradients of a further call, zero outside the sampled rows, compared everywhere."""
        if self.all_gradients or not self.spec.differentiated:
            return []
        assert self.inputs.d_out is not None
        d_out = torch.zeros_like(self.inputs.d_out)
        d_out[:, self.rows] = self.inputs.d_out[:, self.rows]
        given = self.gradients_for(d_out)
        wanted, *plain = (self._reference(t).gradients(d_out, self.rows) for t in self._dtypes())
        comparisons = []
        for index, name in enumerate(n for n in self._names() if n != "y"):
            low = plain[0][index] if plain else None
            comparisons += self._whole_comparison(
                f"{name} of rows", given[index], wanted[index], low
            )
        return comparisons

    def _compared(
        self, name: str, output: Tensor, wanted: Tensor, plain: Tensor | None
    ) -> list[Comparison]:
        if name not in ("y", "dx"):
            return self._whole_comparison(name, output, wanted, plain)
        positions = self.rows if name == "y" else self.tail
        comparisons = compare_parts(
            name,
            output[:, positions],
            wanted,
            row_parts(positions),
            plain=plain,
            dtype=self.spec.dtype,
            factor=OUTPUT_FACTOR if name == "y" else GRADIENT_FACTOR,
        )
        least = self._tie() if name == "y" else max(self._tie(), self._kink(plain))
        return [replace(c, tolerance=max(c.tolerance, least)) for c in comparisons]

    def _whole_comparison(
        self, name: str, output: Tensor, wanted: Tensor, plain: Tensor | None
    ) -> list[Comparison]:
        allowed = gradient_tolerance(wanted, plain, self.spec.dtype)
        allowed = max(allowed, self._kink(plain), self._tie())
        return [Comparison(name, rms_ratio(output, wanted), allowed)]

    def _tie(self) -> float:
        """Error always accepted where the lists are unknown; 0 elsewhere."""
        unknown = self.spec.config is not None and self.lists is None
        return TIE_TOLERANCE[self.spec.dtype] if unknown else 0.0

    def _kink(self, plain: Tensor | None) -> float:
        """Error always accepted in gradients through a synthesis layer; 0 for other layers.

        Where a score meets its gate, rounding decides whether the neuron is open, and its gradient
        jumps: a share of neurons near the precision itself, so an RMS error near its square root.
        A plain computation in the same precision has that error too, and is then the measure.
        """
        info = provider_info(self.spec.provider)
        if info is None or not info.synthesised or plain is not None:
            return 0.0
        return max(KINK_TOLERANCE, math.sqrt(2 * torch.finfo(self.spec.dtype).eps))

    @torch.no_grad()
    def _check_lists(self) -> str:
        """The first broken rule of the lists, judged by the layer's own q and k."""
        if self.lists is None:
            return ""
        q, k, v, gates = projected(self.layer, self.inputs.x)
        for one in self.slices:
            part = cut(q, k, v, gates, self.spec.config, self.lists, *one)
            problem = list_problem(part.cast(self._dtypes()[0]), self.rows)
            if problem:
                return problem
        return ""

    def _dense_error(self, y: Tensor) -> float:
        """RMS distance to the same layer with dense attention, over that one's RMS."""
        dense = self._reference(self._dtypes()[0], dense=True).outputs(self.rows)
        return rms_ratio(y[:, self.rows], dense)
