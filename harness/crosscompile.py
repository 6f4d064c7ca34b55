"""Compiles Triton kernels for GPUs that are not here, and counts what the compiler made of them.

``captured_launches`` notes launches instead of running them, so that the code that launches decides
what is built; it may run on CPU tensors. ``compile_launch`` builds one launch for one target, with
Triton's own compiler, ptxas and flags, and returns a ``Build``: registers, spills, stack and shared
memory as ptxas and Triton report them, and instructions counted in PTX. Equal sources and versions
give equal numbers.

Nothing here needs a GPU. Triton decides at its first import whether kernels are compiled or
interpreted, so ``compile_everywhere`` works in fresh processes and imports no Triton itself.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib
import io
import json
import os
import re
import shutil
import tempfile
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from functools import lru_cache
from multiprocessing import get_context
from typing import Any


@dataclass(frozen=True)
class Target:
    """A GPU architecture.

    Attributes:
        capability: compute capability, 90 for 9.0.
        shared_bytes: most shared memory that one block may ask for.
        matrix: the architecture's own matrix instruction, a key of ``INSTRUCTIONS``.
    """

    name: str
    capability: int
    shared_bytes: int
    matrix: str


TARGETS = {
    target.name: target
    for target in (
        Target("sm_80", 80, 163 << 10, "mma_sync"),
        Target("sm_90a", 90, 227 << 10, "wgmma"),
        Target("sm_100a", 100, 227 << 10, "tcgen05"),
    )
}

INSTRUCTIONS = {
    "mma_sync": r"mma\.sync",
    "wgmma": r"wgmma\.mma_async",
    "tcgen05": r"tcgen05\.mma",
    "tensor_memory_copy": r"tcgen05\.(?:ld|st|cp)",
    "bulk_copy": r"cp\.(?:reduce\.)?async\.bulk(?:\.tensor|\.shared|\.global)",
    "async_copy": r"cp\.async\.c[ag]",
    "block_barrier": r"(?:bar|barrier)\.(?:cta\.)?(?:sync|arrive|red)",
    "memory_barrier": r"mbarrier\.(?:try_wait|test_wait|arrive)",
    "global_load": r"ld\.(?:\w+\.)*global",
    "global_store": r"st\.(?:\w+\.)*global",
    "shared_load": r"(?:ld\.(?:\w+\.)*shared|ldmatrix)",
    "shared_store": r"(?:st\.(?:\w+\.)*shared|stmatrix)",
    "atomic": r"(?:atom|red)\.(?:\w+\.)*(?:global|shared)",
    "shuffle": r"shfl\.sync",
    "exponential": r"ex2\.",
    "conversion": r"cvt\.",
}
"""Kinds of PTX instructions and what they begin with."""

_COUNTED = {kind: re.compile(rf"(?<![\w.$%]){begin}") for kind, begin in INSTRUCTIONS.items()}
_PRODUCT = re.compile(r"tt\.dot\b[^\n]*: tensor<(\d+)x(\d+)x\w+>\s*\*\s*tensor<\d+x(\d+)x\w+>")
_USED = re.compile(r"Used (\d+) registers")
_SPILLED = re.compile(
    r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads"
)


@dataclass(frozen=True)
class Launch:
    """One specialisation of a kernel, as a launch asked for it.

    Attributes:
        kernel: the triton.JITFunction.
        signature: type of every argument; "constexpr" for those compiled in.
        constants: values compiled in, by name.
        attributes: alignment of arguments, as Triton's compiler takes it.
        options: num_warps, num_stages and others of the launch.
    """

    kernel: Any
    signature: dict[str, str]
    constants: dict[str, Any]
    attributes: dict[tuple[int, ...], Any]
    options: dict[str, Any]

    @property
    def name(self) -> str:
        """Module and function."""
        return f"{self.kernel.__module__}.{self.kernel.__name__}"

    @property
    def identity(self) -> str:
        """A stable hash of all that decides what is built, but for sources and versions."""
        parts = [
            self.name,
            sorted(self.signature.items()),
            sorted((k, repr(v)) for k, v in self.constants.items()),
            sorted((k, repr(v)) for k, v in self.attributes.items()),
            sorted((k, repr(v)) for k, v in self.options.items()),
        ]
        return hashlib.sha256(repr(parts).encode()).hexdigest()[:16]


@dataclass(frozen=True)
class Build:
    """What the compiler made of one launch for one target, or why it refused.

    Attributes:
        identity: stable hash of kernel, arguments, constants and options; with ``target`` the key.
        constants: values compiled in, by name; ``signature``: types of the other arguments.
        warps, stages: of the launch; 0 where the launch left them to Triton.
        error: why there is no binary, in one line; numbers are 0 then. Empty where there is one.
        shared_bytes: shared memory of a block; tensor_memory_columns: on sm_100 and later.
        products: shapes (M, N, K) of the matrix products in the source, each one once.
        instructions: PTX instructions by kind (``INSTRUCTIONS``).
        seconds: time of the build; the one number that does not repeat.
    """

    identity: str
    module: str
    kernel: str
    target: str
    constants: dict[str, Any]
    signature: dict[str, str]
    warps: int
    stages: int
    triton_version: str
    error: str = ""
    registers: int = 0
    spill_store_bytes: int = 0
    spill_load_bytes: int = 0
    stack_bytes: int = 0
    shared_bytes: int = 0
    tensor_memory_columns: int = 0
    products: tuple[tuple[int, int, int], ...] = ()
    instructions: dict[str, int] = field(default_factory=dict)
    seconds: float = 0.0

    def row(self) -> dict[str, str | int | float]:
        """The build as flat columns: nested values as JSON, one column a kind of instruction."""
        flat = {k: v for k, v in vars(self).items() if k != "instructions"}
        for name in ("constants", "signature", "products"):
            flat[name] = json.dumps(flat[name], sort_keys=True, default=str)
        return flat | {f"{kind}_count": self.instructions.get(kind, 0) for kind in INSTRUCTIONS}

    def __str__(self) -> str:
        sizes = " ".join(f"{k}={v}" for k, v in self.constants.items())
        return f"{self.module}.{self.kernel} {self.target} {sizes} warps={self.warps}"


@contextlib.contextmanager
def captured_launches() -> Iterator[list[Launch]]:
    """Note the distinct launches of Triton kernels in this context; none of them runs.

    What kernels would have written stays as it was, so code under capture must not branch on it.
    Raises RuntimeError where Triton was imported for its interpreter.
    """
    from triton.runtime.jit import JITFunction

    if _interpreting():
        raise RuntimeError(
            "TRITON_INTERPRET=1 made Triton interpret kernels: capture in a process without it"
        )
    launches: list[Launch] = []
    seen: set[str] = set()

    def note(kernel: Any, *args: Any, grid: Any, warmup: bool, **options: Any) -> None:
        launch = _specialised(kernel, args, options)
        if launch.identity not in seen:
            seen.add(launch.identity)
            launches.append(launch)

    run = JITFunction.run
    JITFunction.run = note
    try:
        yield launches
    finally:
        JITFunction.run = run


def compile_launch(launch: Launch, target: Target) -> Build:
    """Build a launch for a target with Triton's compiler, in no cache.

    Raises FileNotFoundError where Triton came without NVIDIA's assembler.
    """
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    _require_assembler(target)
    source = ASTSource(
        launch.kernel, launch.signature, launch.constants_by_path, launch.attributes
    )
    known = {
        "identity": launch.identity,
        "module": launch.kernel.__module__,
        "kernel": launch.kernel.__name__,
        "target": target.name,
        "constants": launch.constants,
        "signature": {k: v for k, v in launch.signature.items() if v != "constexpr"},
        "warps": launch.options.get("num_warps", 0),
        "stages": launch.options.get("num_stages", 0),
        "triton_version": triton.__version__,
    }
    begin = time.perf_counter()
    try:
        with _fresh_compilation() as log:
            gpu = GPUTarget("cuda", target.capability, 32)
            built = triton.compile(source, target=gpu, options=launch.options)
    except Exception as error:
        cause = error.__cause__ or error
        reason = " ".join(f"{type(cause).__name__}: {cause}".split())
        return Build(**known, error=reason[-500:], seconds=time.perf_counter() - begin)
    used, spilled = _USED.search(log.getvalue()), _SPILLED.search(log.getvalue())
    if used is None or spilled is None:
        raise RuntimeError(f"{launch.name}: no registers and spills in the log of ptxas")
    stack, stores, loads = map(int, spilled.groups())
    return Build(
        **known,
        registers=int(used[1]),
        spill_store_bytes=stores,
        spill_load_bytes=loads,
        stack_bytes=stack,
        shared_bytes=built.metadata.shared,
        tensor_memory_columns=built.metadata.tmem_size or 0,
        products=_products(built.asm["ttir"]),
        instructions=count_instructions(built.asm["ptx"]),
        seconds=time.perf_counter() - begin,
    )
