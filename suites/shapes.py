"""Named head shapes: query heads / key-value heads / head width."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from dataclasses import dataclass

MAX_SIZE = 2**20
"""Most heads, width or sequences that anybody means."""


class UsageError(ValueError):
    """The request cannot be planned. The message is one line that names the fix."""


@dataclass(frozen=True)
class Shape:
    """Heads of one attention layer.

    Attributes:
        name: what the command line calls it; empty for heads given one by one.
        q_heads, kv_heads, head_dim: H, K and D; kv_heads divides q_heads.
        batch: sequences measured together unless the user says otherwise.
        model_dim: width of the residual stream in suite ``layer``; None is q_heads * head_dim.

    Raises:
        UsageError: a number is not positive, or kv_heads does not divide q_heads.
    """

    name: str
    q_heads: int
    kv_heads: int
    head_dim: int
    batch: int = 1
    model_dim: int | None = None
    summary: str = ""

    def __post_init__(self) -> None:
        for field in ("q_heads", "kv_heads", "head_dim", "batch"):
            value = getattr(self, field)
            if not 1 <= value <= MAX_SIZE:
                raise UsageError(f"{field}={value}: must be at least 1, at most {MAX_SIZE}")
        if self.q_heads % self.kv_heads:
            divisors = [k for k in range(1, self.q_heads + 1) if self.q_heads % k == 0]
            raise UsageError(
                f"kv_heads={self.kv_heads} does not divide q_heads={self.q_heads}: "
                f"use one of {', '.join(map(str, divisors))}"
            )

    @property
    def width(self) -> int:
        """Width of the residual stream in suite ``layer``."""
        return self.model_dim or self.q_heads * self.head_dim


SHAPES: dict[str, Shape] = {
    shape.name: shape
    for shape in (
        Shape("paper", 64, 4, 128, model_dim=2560, summary="the NSA paper's: 16 query heads share"),
        Shape("gqa4", 32, 8, 128, summary="common grouped-query heads: 4 share"),
        Shape("headless", 32, 32, 128, summary="no groups, DynSIHA's kind of shape"),
        Shape("single", 1, 1, 256, batch=8, summary="one wide head, DynSIHA's single form"),
        Shape("cpu", 1, 1, 64, summary="one head of 64, what a CPU can serve"),
    )
}
"""All named shapes; ``cpu`` is the default without a GPU, ``paper`` with one."""


def resolve_shape(name: str) -> Shape:
    """The named shape. Raises UsageError naming the nearest one if there is none of that name."""
    if name not in SHAPES:
        raise UsageError(unknown("shape", name, list(SHAPES)))
    return SHAPES[name]


def unknown(kind: str, name: str, known: Sequence[str]) -> str:
    """One line for an unknown name: the nearest known one if any is near, all of them otherwise."""
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    if near:
        return f"unknown {kind} {name!r}: did you mean {near[0]!r}?"
    return f"unknown {kind} {name!r}: choose from {', '.join(known)}"
