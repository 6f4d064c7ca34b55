"""Whether a layer of several blocks computed what it should, beside a readable computation of it.

The reference goes through the experts one by one, in higher precision, with the experts that the
layer itself chose: near ties, rounding decides. That the choice was a right one is judged by the
reference's own logits.

Small cases are compared whole. Since every block attends to all tokens of the last one, rows cannot
be sampled; but no output depends on later tokens, so a large case is compared on its first tokens:
y, and in a further call the gradients of these tokens' outputs. The gradients that were timed must
be the sum of those and of the gradients of the other tokens' outputs, from a second call.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from dynbench.harness.subject import Correctness
from dynbench.suites.compare import (
    BASE_TOLERANCE,
    OUTPUT_FACTOR,
    Comparison,
    compare_parts,
    first_unwritten,
    gradient_tolerance,
    rms_ratio,
    row_parts,
    worst,
)
from dynbench.suites.inputs import LayerInputs
from dynbench.suites.plainblocks import PlainBlock, PlainBlocks
from dynbench.suites.routecheck import routing_problem
from dynbench.suites.rows import CHUNK_ELEMENTS, dense_rows
from dynbench.suites.sampling import affordable_pairs
from dynbench.suites.spec import Spec
from dynnsiha.forms import AttentionLayer, ExpertBlock
from dynnsiha.forms.experts import ExpertRouter
from dynnsiha.forms.refine import RefiningForm

Form = RefiningForm | PlainBlocks
Gradients = Callable[[Tensor], tuple[Tensor, ...]]


class FormReference:
    """A form in another precision, on its first tokens.

    ``indices`` are the experts taken, [B, T, k], of each router in the order of the computation;
    ``logits``, [B, T, E], are what the latest computation gave for them.
    """

    def __init__(self, form: Form, x: Tensor, indices: list[Tensor], dtype: torch.dtype) -> None:
        self.form = copy.deepcopy(form).to(dtype)
        self.x = x.detach().to(dtype, copy=True)
        self.indices = [taken[:, : x.shape[1]] for taken in indices]
        self.logits: list[Tensor] = []

    def output(self) -> Tensor:
        """y [B, T, d]."""
        with torch.no_grad():
            return self._forward()

    def gradients(self, d_out: Tensor) -> tuple[Tensor, ...]:
        """Gradients of x and of the parameters, where y has the gradient d_out."""
        self.x.requires_grad_(True)
        leaves = (self.x, *self.form.parameters())
        found = torch.autograd.grad(
            self._forward(), leaves, d_out.to(self.x.dtype), allow_unused=True
        )
        given = zip(leaves, found, strict=True)
        return tuple(torch.zeros_like(x) if grad is None else grad for x, grad in given)

    def _forward(self) -> Tensor:
        y, resident = torch.zeros_like(self.x), None
        if isinstance(self.form, PlainBlocks):
            for block in self.form.blocks:
                assert isinstance(block, PlainBlock)
                y = y + self._plain(block, self.x + y)
            return y
        chosen = iter(self.indices)
        self.logits.clear()
        for block in self.form.sequence:
            update, resident = self._experts(block, self.x + y, resident, chosen)
            y = y + update
        return y

    def _plain(self, block: PlainBlock, x: Tensor) -> Tensor:
        normal = _rms_normal(x, block.heads_norm)
        o = self._attend(block.heads, block.heads.qkv(normal))
        attended = block.heads.output(o)
        return attended + block.mlp(_rms_normal(x + attended, block.mlp_norm))

    def _experts(
        self, block: ExpertBlock, x: Tensor, resident: Tensor | None, chosen: Iterator[Tensor]
    ) -> tuple[Tensor, Tensor]:
        normal = _rms_normal(x, block.heads_norm)
        kept = block.resident.alpha
        resident = normal if resident is None else normal + kept * resident
        weights = self._weights(block.heads.router, resident, next(chosen))
        qkv_bank, output_bank = block.heads.qkv.weight, block.heads.output.weight
        qkv = _mixture(normal, weights, lambda e, rows: rows @ qkv_bank[e], qkv_bank.shape[2])
        o = self._attend(block.heads, qkv)
        attended = _mixture(o, weights, lambda e, rows: rows @ output_bank[e], x.shape[2])
        normal = _rms_normal(x + attended, block.mlp_norm)
        resident = normal + kept * resident
        weights = self._weights(block.mlp.router, resident, next(chosen))
        inner, outer = block.mlp.inner.weight, block.mlp.output.weight
        mapped = _mixture(
            normal, weights, lambda e, rows: F.silu(rows @ inner[e]) @ outer[e], x.shape[2]
        )
        return attended + mapped, resident

    def _weights(self, router: ExpertRouter, x: Tensor, indices: Tensor) -> Tensor:
        """Weights [B, T, E], 0 for experts not taken."""
        logits = router.prototypes.logits(x)
        self.logits.append(logits.detach())
        taken = torch.zeros_like(logits).scatter(-1, indices, 1.0)
        return router.prototypes.weights(logits) * taken

    def _attend(self, layer: AttentionLayer, qkv: Tensor) -> Tensor:
        """Dense causal attention, never T x T at once: qkv [B, T, (H + 2 K) D] → [B, T, H D]."""
        q, k, v = layer.layout.split(qkv)
        q, k = layer.rotate(q, k, None)
        rows = torch.arange(q.shape[1], device=q.device)
        per_row = q.shape[0] * q.shape[2] * q.shape[1]
        chunks = rows.split(max(1, CHUNK_ELEMENTS[q.device.type] // per_row))
        parts = [checkpoint(dense_rows, q, k, v, chunk, use_reentrant=False) for chunk in chunks]
        return torch.cat(parts, 1).flatten(-2)


class ExpertCheck:
    """Checks outputs of one case; ``gradients_for`` makes the further calls described above."""

    def __init__(
        self, spec: Spec, form: Form, inputs: LayerInputs, gradients_for: Gradients
    ) -> None:
        self.spec, self.form, self.inputs, self.gradients_for = spec, form, inputs, gradients_for
        pairs = affordable_pairs(spec.device.type, sparse=False)
        affordable = math.isqrt(pairs // (spec.batch * spec.q_heads))
        self.tokens = min(spec.seq_len, max(affordable, 1))
        self.whole = self.tokens == spec.seq_len
        self.indices = self._chosen()
        self._expected: list[tuple[Tensor, Tensor | None]] | None = None
        self._further: list[Comparison] = []
        self._rest: tuple[Tensor, ...] = ()
        self._problem = ""

    def __call__(self, outputs: Sequence[Tensor]) -> Correctness:
        """Compare what a call returned: y, or dx and the parameters' gradients, or both."""
        names = self._names()
        checked = self._describe(names)
        like = [self.inputs.x] * ("y" in names)
        if self.spec.differentiated:
            like += [self.inputs.x, *self.form.parameters()]
        for name, output, wanted in zip(names, outputs, like, strict=True):
            if output.shape != wanted.shape or output.dtype != wanted.dtype:
                problem = f"{name} is {list(output.shape)} {output.dtype}"
                return Correctness(float("nan"), 0.0, checked, problem=problem)
        if self._expected is None:
            self._expected = self._references()
            if not self.whole and self.spec.differentiated:
                self._further_calls()
        comparisons = list(self._further)
        compared = names if self.whole else [name for name in names if name == "y"]
        for index, name in enumerate(compared):
            wanted, plain = self._expected[index]
            output = outputs[index]
            part = output[:, : self.tokens] if name == "y" else output
            comparisons += self._compared(name, part, wanted, plain)
        timed = names.index("dx") if "dx" in names else len(names)
        for name, output, rest in zip(names[timed:], outputs[timed:], self._rest, strict=False):
            allowed = 10 * BASE_TOLERANCE[self.spec.dtype]
            comparisons.append(Comparison(f"{name} as a sum", rms_ratio(output, rest), allowed))
        found = worst(comparisons)
        return Correctness(
            rms_error=found.error,
            rms_tolerance=found.tolerance,
            checked=f"{checked}; worst {found.name}",
            problem=first_unwritten(outputs, names) or self._problem,
        )

    def _names(self) -> list[str]:
        gradients = ["dx"] + [f"d {name}" for name, _ in self.form.named_parameters()]
        return {
            "forward": ["y"],
            "backward": gradients,
            "forward_backward": ["y", *gradients],
        }[self.spec.pass_]

    def _describe(self, names: Sequence[str]) -> str:
        parts = [n for n in names if n in ("y", "dx")]
        parts += ["parameter gradients"] * self.spec.differentiated
        if self.whole:
            return f"whole {', '.join(parts)}"
        where = f"the first {self.tokens} tokens"
        said = [f"y on {where}"] if "y" in names else []
        if self.spec.differentiated:
            said.append(f"all gradients of {where} in a further call, and as a sum")
        return "; ".join(said)

    @torch.no_grad()
    def _chosen(self) -> list[Tensor]:
        """Experts that the layer takes, [B, T, k], of each router in turn."""
        if isinstance(self.form, PlainBlocks):
            return []
        _, routing = self.form(self.inputs.x, return_routing=True)
        return [
            experts.indices
            for block in routing.blocks
            for experts in (block.heads.experts, block.mlp)
        ]

    def _reference(self, dtype: torch.dtype) -> FormReference:
        x = self.inputs.x[:, : self.tokens]
        return FormReference(self.form, x, self.indices, dtype)

    def _in_both(
        self, compute: Callable[[FormReference], Sequence[Tensor]]
    ) -> list[tuple[Tensor, Tensor | None]]:
        """Results in float64, each with the same in the case's own precision if that is lower."""
        reference = self._reference(torch.float64)
        wanted: Sequence[Tensor] = compute(reference)
        plain: Sequence[Tensor] | list[None] = [None] * len(wanted)
        plain_logits = None
        if self.spec.dtype != torch.float32:
            low = self._reference(self.spec.dtype)
            plain, plain_logits = compute(low), low.logits
        problem = routing_problem(reference.logits, reference.indices, plain_logits)
        self._problem = problem or self._problem
        return list(zip(wanted, plain, strict=True))

    def _references(self) -> list[tuple[Tensor, Tensor | None]]:
        """What the outputs should be: all of them in a whole case, y alone in a large one."""
        d_out = self.inputs.d_out
        found = []
        if self.spec.pass_ != "backward":
            found += self._in_both(lambda one: [one.output()])
        if self.whole and d_out is not None:
            found += self._in_both(lambda one: one.gradients(d_out))
        return found

    def _further_calls(self) -> None:
        """Gradients of the first tokens' outputs, compared; and their sum with all others'."""
        assert self.inputs.d_out is not None
        first, others = self.inputs.d_out.clone(), self.inputs.d_out.clone()
        first[:, self.tokens :] = 0
        others[:, : self.tokens] = 0
        given = self.gradients_for(first)
        wanted = self._in_both(lambda one: one.gradients(first[:, : self.tokens]))
        names = [name for name in self._names() if name != "y"]
        for name, output, (expected, plain) in zip(names, given, wanted, strict=True):
            part = output[:, : self.tokens] if name == "dx" else output
            self._further += self._compared(f"{name} of the first", part, expected, plain)
        later = given[0][:, self.tokens :]
        if later.any():
            self._problem = "dx of later tokens is not 0 where only first outputs have a gradient"
        rest = self.gradients_for(others)
        self._rest = tuple(one + other for one, other in zip(given, rest, strict=True))

    def _compared(
        self, name: str, output: Tensor, wanted: Tensor, plain: Tensor | None
    ) -> list[Comparison]:
        if name == "y":
            positions = torch.arange(self.tokens, device=output.device)
            parts = row_parts(positions)
            return compare_parts(
                *(name, output, wanted, parts),
                plain=plain,
                dtype=self.spec.dtype,
                factor=OUTPUT_FACTOR,
            )
        allowed = gradient_tolerance(wanted, plain, self.spec.dtype)
        return [Comparison(name, rms_ratio(output, wanted), allowed)]


def _rms_normal(x: Tensor, norm: nn.Module) -> Tensor:
    scale = (x.square().mean(-1, keepdim=True) + 1e-6).rsqrt()
    assert isinstance(norm.weight, Tensor)
    return x * scale * norm.weight


def _mixture(
    x: Tensor, weights: Tensor, expert: Callable[[int, Tensor], Tensor], width: int
) -> Tensor:
    """Σ_e weight_e expert_e(x), each expert on the tokens with a weight for it: [B, T, width]."""
    tokens, factors = x.flatten(0, 1), weights.flatten(0, 1)
    total = x.new_zeros(len(tokens), width)
    for e in range(factors.shape[1]):
        at = (factors[:, e].detach() != 0).nonzero()[:, 0]
        total = total.index_add(0, at, factors[at, e, None] * expert(e, tokens[at]))
    return total.unflatten(0, x.shape[:2])
