"""Whether an attention computed what it should: its outputs beside the reference of the same lists.

Small cases are compared whole. Of large ones: o, dq and dgates on sampled rows of sampled heads; dk
and dv on sampled blocks of keys with all their queries, as far as that is affordable; dk and dv of
every key in a further call, whose gradient of o is zero outside the sampled rows; and every output
everywhere for values that were never written. No score matrix of all rows is ever built.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from dynbench.harness.subject import Correctness
from dynbench.suites.blocklists import list_problem, shape_problem
from dynbench.suites.compare import (
    GRADIENT_FACTOR,
    OUTPUT_FACTOR,
    TIE_TOLERANCE,
    Comparison,
    compare_parts,
    first_unwritten,
    key_parts,
    median_row_ratio,
    rms_ratio,
    row_parts,
    worst,
)
from dynbench.suites.inputs import AttentionInputs
from dynbench.suites.rows import Lists, Parts, Slice, cut, key_reference, row_reference
from dynbench.suites.sampling import Sample, sample
from dynbench.suites.settings import BRANCHES
from dynbench.suites.spec import Spec

_DOUBLE_ELEMENTS = 2**26
"""Elements of a slice up to which the reference is computed in float64."""

_DOUBLE_PAIRS = 2**24
"""Pairs up to which gradients of sampled keys are computed in float64."""

_PROBE = "further "

Head = tuple[int, int]


def output_names(spec: Spec) -> tuple[str, ...]:
    """What a call of the pass returns, in order."""
    gradients = gradient_names(spec)
    return {
        "forward": ("o",),
        "backward": gradients,
        "forward_backward": ("o", *gradients),
    }[spec.pass_]


def gradient_names(spec: Spec) -> tuple[str, ...]:
    """The gradients of a case's operands, in the order of the operands."""
    return ("dq", "dk", "dv") + (() if spec.config is None else ("dgates",))


@dataclass
class AttentionCheck:
    """Checks outputs of one case. The reference is computed once per set of lists and kept.

    ``gradients_for`` makes the further call described above: from a gradient of o to the gradients
    of the operands.
    """

    spec: Spec
    inputs: AttentionInputs
    gradients_for: Callable[[Tensor], Sequence[Tensor]]

    def __post_init__(self) -> None:
        s = self.spec
        self.sample: Sample = sample(
            s.batch,
            s.seq_len,
            s.q_heads,
            s.kv_heads,
            s.device.type,
            s.seed,
            sparse=s.config is not None,
        )
        self._lists: Lists | None = None
        self._list_problem = ""
        self._known: dict[Head, tuple[Parts, Parts]] = {}
        self._probe: Parts | None = None

    def __call__(self, outputs: Sequence[Tensor], lists: Any = None) -> Correctness:
        """Compare what a call returned (see output_names), computed with these lists.

        ``lists`` None leaves the choice to the reference (and is what dense attention has).
        """
        names = output_names(self.spec)
        checked = self._describe(names, lists is not None)
        config = self.spec.config
        if config is not None and lists is None:
            checked += "; lists unknown, chosen by the reference"
        if config is not None and config.branches != BRANCHES:
            checked += f"; branches {' and '.join(config.branches)} alone"
        problem = self._shape_problem(outputs, names, lists)
        if problem:
            return Correctness(float("nan"), 0.0, checked, problem=problem)
        self._use_lists(lists)
        given = dict(zip(names, outputs, strict=True)) | self._further_call()
        found = worst(c for one in self.sample.slices for c in self._compare(one, given))
        return Correctness(
            rms_error=found.error,
            rms_tolerance=found.tolerance,
            checked=f"{checked}; worst {found.name}",
            dense_error=self._dense_error(given["o"]) if "o" in given else None,
            problem=first_unwritten(outputs, names) or self._list_problem,
        )

    def _describe(self, names: tuple[str, ...], with_lists: bool) -> str:
        """One line for the row: what is compared, and on how much of it."""
        if self.sample.whole:
            return f"whole {', '.join(names)}" + ", lists" * with_lists
        rows = [name for name in names if name not in ("dk", "dv")] + ["lists"] * with_lists
        total = self.spec.batch * self.spec.kv_heads
        text = f"{', '.join(rows)} on {len(self.sample.rows)} rows of {len(self.sample.slices)}"
        text += f" of {total} K/V heads"
        if self.spec.differentiated:
            text += f"; dk, dv on {len(self.sample.keys)} keys from {self.sample.first_query} on"
            text += f" of {len(self.sample.key_slices)}, and of these rows alone on all keys"
        return text

    def _shape_problem(
        self, outputs: Sequence[object], names: tuple[str, ...], lists: object
    ) -> str:
        s, i = self.spec, self.inputs
        like = {"o": i.q, "dq": i.q, "dk": i.k, "dv": i.v, "dgates": i.gates}
        for name, output in zip(names, outputs, strict=True):
            wanted = like[name]
            assert wanted is not None
            if not isinstance(output, Tensor):
                return f"{name} is a {type(output).__name__}, expected a tensor"
            if output.shape != wanted.shape or output.dtype != wanted.dtype:
                got = f"{list(output.shape)} {output.dtype}"
                return f"{name} is {got}, expected {list(wanted.shape)} {wanted.dtype}"
        if lists is None or s.config is None:
            return ""
        return shape_problem(lists, s.config, s.batch, s.seq_len, s.kv_heads)

    def _use_lists(self, lists: Lists | None) -> None:
        """Check these lists; if they are others than before, forget the reference that followed."""
        if self._known and _same(lists, self._lists):
            return
        self._lists, self._list_problem, self._known = lists, "", {}
        for one in self.sample.slices if lists is not None else ():
            part = self._slice(one).cast(self._dtype())
            self._list_problem = self._list_problem or list_problem(part, self._rows())
        if self._list_problem:
            self._lists = None  # the reference could not follow them: let it choose

    def _further_call(self) -> Parts:
        """Gradients of k and v with a gradient of o that is zero outside the sampled rows, once."""
        if self.sample.whole or not self.spec.differentiated:
            return {}
        if self._probe is None:
            d_out = self.inputs.d_out
            assert d_out is not None
            sparse = torch.zeros_like(d_out)
            sparse[:, self._rows()] = d_out[:, self._rows()]
            found = zip(gradient_names(self.spec), self.gradients_for(sparse), strict=True)
            self._probe = {_PROBE + name: g for name, g in found if name in ("dk", "dv")}
        return self._probe

    def _slice(self, one: Head) -> Slice:
        i = self.inputs
        return cut(i.q, i.k, i.v, i.gates, self.spec.config, self._lists, *one)

    def _rows(self) -> Tensor:
        return self.sample.rows.to(self.spec.device)

    def _dtype(self) -> torch.dtype:
        s = self.spec
        small = s.seq_len * s.group * s.head_dim <= _DOUBLE_ELEMENTS
        return torch.float64 if small else torch.float32

    def _compare(self, one: Head, given: Mapping[str, Tensor]) -> list[Comparison]:
        """All comparisons in one slice."""
        if one not in self._known:
            low = self.spec.dtype != torch.float32
            plain = self._expected(one, self.spec.dtype) if low else {}
            self._known[one] = self._expected(one, self._dtype()), plain
        reference, plain = self._known[one]
        comparisons = []
        for name, wanted in reference.items():
            positions = self._positions(name)
            by_block = name in ("dk", "dv")
            comparisons += compare_parts(
                name,
                self._taken(given[name], name, one),
                wanted,
                key_parts(positions) if by_block else row_parts(positions),
                plain=plain.get(name),
                dtype=self.spec.dtype,
                factor=OUTPUT_FACTOR if name == "o" else GRADIENT_FACTOR,
            )
        if self.spec.config is None or self._lists is not None:
            return comparisons
        # The reference may have taken another block in a few rows; a typical row must still agree.
        typical = [
            Comparison(
                f"typical row of {name}",
                median_row_ratio(self._taken(given[name], name, one), reference[name]),
                max(c.tolerance for c in comparisons if c.name == name),
            )
            for name in ("o", "dq")
            if name in reference
        ]
        least = TIE_TOLERANCE[self.spec.dtype]
        return typical + [replace(c, tolerance=max(c.tolerance, least)) for c in comparisons]

    def _positions(self, name: str) -> Tensor:
        """Where an output is compared."""
        if name.startswith(_PROBE):
            return torch.arange(self.spec.seq_len)
        return self.sample.keys if name in ("dk", "dv") else self.sample.rows

    def _taken(self, output: Tensor, name: str, one: Head) -> Tensor:
        """The part of an output that the reference of a slice has: [1, N, G or 1, ...]."""
        batch, head = one
        group = output.shape[2] // self.spec.kv_heads
        index = self._positions(name).to(output.device)
        return output[batch : batch + 1, index, head * group : (head + 1) * group]

    def _expected(self, one: Head, dtype: torch.dtype) -> Parts:
        """What is compared in one slice, as computed in ``dtype``."""
        s, part, d_out = self.sample, self._slice(one), None
        if self.spec.differentiated:
            assert self.inputs.d_out is not None
            group = slice(one[1] * self.spec.group, (one[1] + 1) * self.spec.group)
            d_out = self.inputs.d_out[one[0] : one[0] + 1, :, group]
        found = row_reference(part, d_out, self._rows(), dtype)
        if d_out is not None and not s.whole:
            for name in ("dk", "dv"):
                found[_PROBE + name] = found.pop(name)
            if one in s.key_slices:
                pairs = (self.spec.seq_len - s.first_query) * self.spec.seq_len * self.spec.group
                if dtype == torch.float64 and pairs > _DOUBLE_PAIRS:
                    dtype = torch.float32
                keys = s.keys.to(self.spec.device)
                found |= key_reference(part, d_out, keys, s.first_query, dtype)
        if self.spec.pass_ == "backward":
            del found["o"]
        return found

    def _dense_error(self, o: Tensor) -> float:
        """RMS distance to dense attention's output over its RMS, on the sampled rows."""
        outputs, dense = [], []
        for one in self.sample.slices:
            i = self.inputs
            part = cut(i.q, i.k, i.v, None, None, None, *one)
            dense.append(row_reference(part, None, self._rows(), self._dtype())["o"])
            outputs.append(self._taken(o, "o", one))
        return rms_ratio(torch.cat(outputs), torch.cat(dense))


def _same(one: Lists | None, other: Lists | None) -> bool:
    if one is None or other is None:
        return one is other
    if isinstance(one, Tensor) or isinstance(other, Tensor):
        return isinstance(one, Tensor) and isinstance(other, Tensor) and torch.equal(one, other)
    return all(torch.equal(a, b) for a, b in zip(one, other, strict=True))
