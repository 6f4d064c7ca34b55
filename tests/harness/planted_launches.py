"""Small kernels and launches of them, for processes that were not started for the interpreter.

Importing this decides how Triton works in a process, so tests import it in processes of their own.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
import triton
import triton.language as tl

from dynbench.harness.crosscompile import Launch, Target, captured_launches


@triton.jit
def product(a, b, c, width, N: tl.constexpr):
    """c [N, N] = a [N, width] times b [width, N]: every stage keeps two tiles in shared memory."""
    n = tl.arange(0, N)
    acc = tl.zeros([N, N], tl.float32)
    for first in range(0, width, N):
        left = tl.load(a + n[:, None] * width + (first + n)[None, :])
        acc = tl.dot(left, tl.load(b + (first + n)[:, None] * N + n[None, :]), acc)
    tl.store(c + n[:, None] * N + n[None, :], acc)


@triton.jit
def centred(x, y, N: tl.constexpr):
    """y = x - mean(x), which holds all of x in registers until the mean is known."""
    at = tl.arange(0, N)
    numbers = tl.load(x + at)
    tl.store(y + at, numbers - tl.sum(numbers) / N)


@triton.jit
def mistaken(x, N: tl.constexpr):
    """Two shapes that do not fit: the compiler refuses them."""
    tl.store(x + tl.arange(0, N), tl.arange(0, 2 * N))


@triton.jit
def copied(x, y, count, step, N: tl.constexpr):
    """y = x, ``count`` numbers ``step`` apart."""
    at = tl.program_id(0) * N + tl.arange(0, N)
    tl.store(y + at, tl.load(x + at * step, mask=at < count), mask=at < count)


def everything(target: Target) -> list[Launch]:
    """One launch of each kind that compilers treat differently."""
    x, y = torch.ones(1 << 14, dtype=torch.bfloat16), torch.ones(1 << 14)
    with captured_launches() as launches:
        product[(1,)](x, x, y, 256, N=64, num_stages=2)
        product[(1,)](x, x, y, 256, N=64, num_stages=16)
        centred[(1,)](y, y, N=1 << 14, num_warps=1)
        mistaken[(1,)](y, N=16)
        copied[(1,)](x, y, 100, 1, N=64)
    return launches


def _pair(*, tile: int = 64, warps: int = 16) -> list[Launch]:
    """A product and a mean, under names that stay whatever their sizes."""
    x, y = torch.ones(1 << 14, dtype=torch.bfloat16), torch.ones(1 << 14)
    with captured_launches() as launches:
        product[(1,)](x, x, y, 256, N=tile, num_stages=2)
        centred[(1,)](y, y, N=1 << 14, num_warps=warps)
    uses = ("tall", "wide"), ("mean",)
    return [replace(launch, uses=use) for launch, use in zip(launches, uses, strict=True)]


def sound(target: Target) -> list[Launch]:
    """What a baseline is made of."""
    return _pair()


def spilling(target: Target) -> list[Launch]:
    """The same with too few warps for the mean, so that registers do not suffice."""
    return _pair(warps=1)


def retiled(target: Target) -> list[Launch]:
    """The same with tiles too small for the matrix instructions of Hopper and Blackwell."""
    return _pair(tile=32)


def crowded(target: Target) -> list[Launch]:
    """The same and one that asks for too much shared memory."""
    deep = [launch for launch in everything(target) if launch.options.get("num_stages") == 16]
    return [*_pair(), *deep]


def nothing(target: Target) -> list[Launch]:
    """No launch at all."""
    return []


def copies() -> dict[str, Any]:
    """What was noted of launches that differ in one thing from the first, or in nothing."""
    x, y = torch.arange(512.0), torch.zeros(512)
    noted: dict[str, tuple[str, str]] = {}
    with captured_launches() as launches:
        for name, arguments, options in (
            ("first", (x, y, 100, 3), {"N": 64}),
            ("again", (x, y, 101, 7), {"N": 64}),
            ("multiple of 16", (x, y, 112, 3), {"N": 64}),
            ("step of 1", (x, y, 100, 1), {"N": 64}),
            ("constant", (x, y, 100, 3), {"N": 128}),
            ("dtype", (x.half(), y, 100, 3), {"N": 64}),
            ("warps", (x, y, 100, 3), {"N": 64, "num_warps": 8}),
        ):
            before = len(launches)
            copied[(1,)](*arguments, **options)
            if len(launches) > before:
                noted[name] = launches[-1].identity, launches[-1].variant
    return {"noted": noted, "written": bool(y.any())}
