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
import os
import re
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from functools import lru_cache
from multiprocessing import get_context
from typing import Any

from dynbench.harness.ptx import count_instructions


@dataclass(frozen=True)
class Target:
    """A GPU architecture.

    Attributes:
        capability: compute capability, 90 for 9.0.
        shared_bytes: most shared memory that one block may ask for.
        matrix: the architecture's own matrix instruction, a key of ``ptx.INSTRUCTIONS``.
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

_PRODUCT = re.compile(r"tt\.dot\b[^\n]*: tensor<(\d+)x(\d+)x\w+>\s*\*\s*tensor<\d+x(\d+)x\w+>")
_USED = re.compile(r"Used (\d+) registers")
_STATIC_SHARED = re.compile(r"(\d+) bytes smem")
_INTEGERS = ("i32", "i64", "u64")  # types that Triton gives to Python's integers
_REASON = 500  # characters of a compiler's message that are kept
_COLUMNS = 512  # of tensor memory, all that a multiprocessor has
_SPILLED = re.compile(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads")


@dataclass(frozen=True)
class Launch:
    """One specialisation of a kernel, as a launch asked for it.

    Attributes:
        kernel: the triton.JITFunction.
        signature: type of every argument; "constexpr" for those compiled in.
        constants: values compiled in, by their path in the arguments.
        attributes: alignment of arguments by path, as Triton's compiler takes it.
        options: num_warps, num_stages and others of the launch.
        uses: what makes this launch, for people and for comparisons: names that stay while sizes
            of tiles change.
    """

    kernel: Any
    signature: dict[str, Any]
    constants: dict[tuple[int, ...], Any]
    attributes: dict[tuple[int, ...], Any]
    options: dict[str, Any]
    uses: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """Module and function."""
        return f"{self.kernel.__module__}.{self.kernel.__name__}"

    @property
    def named_constants(self) -> dict[str, Any]:
        """Values compiled in, by argument; members of a tuple argument as ``name.0``."""
        names = list(self.signature)
        return {
            ".".join([names[path[0]], *map(str, path[1:])]): value
            for path, value in self.constants.items()
        }

    @property
    def identity(self) -> str:
        """A stable hash of all that decides what is built, except sources and versions."""
        return _hash(self.name, self.signature, self.constants, self.attributes, self.options)

    @property
    def variant(self) -> str:
        """As ``identity``, blind to what is known of integers: that they are 1, or multiples."""
        fixed = {p.name for p in self.kernel.params if p.is_constexpr}
        constants = {k: v for k, v in self.named_constants.items() if k in fixed}
        integers = {
            *self.named_constants,
            *(k for k, v in self.signature.items() if v in _INTEGERS),
        }
        types = {k: v for k, v in self.signature.items() if k not in integers}
        return _hash(self.name, types, constants, self.options)


@dataclass(frozen=True)
class Build:
    """What the compiler made of one launch for one target, or why the launch cannot run there.

    Attributes:
        identity: stable hash of kernel, arguments, constants and options; with ``target`` the key.
        constants: values compiled in, by name; ``signature``: types of the other arguments.
        warps, stages: of the launch; 0 where the launch left them to Triton.
        uses: as in ``Launch``.
        error: why the launch cannot run, in one line; empty where it can. Numbers are 0 where there
            is no binary.
        shared_bytes: shared memory that the launch asks for, a block.
        static_shared_bytes: shared memory fixed in the binary, on top.
        tensor_memory_columns: of a block, on sm_100 and later.
        products: shapes (M, N, K) of the matrix products in the source, each one once.
        instructions: PTX instructions by kind (``ptx.INSTRUCTIONS``).
        seconds: time of the build, the one number that does not repeat.
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
    uses: tuple[str, ...] = ()
    error: str = ""
    registers: int = 0
    spill_store_bytes: int = 0
    spill_load_bytes: int = 0
    stack_bytes: int = 0
    shared_bytes: int = 0
    static_shared_bytes: int = 0
    tensor_memory_columns: int = 0
    products: tuple[tuple[int, int, int], ...] = ()
    instructions: dict[str, int] = field(default_factory=dict)
    seconds: float = 0.0

    @property
    def label(self) -> str:
        """Target, kernel and its first use, in one line."""
        return label_of(self.target, f"{self.module}.{self.kernel}", self.uses, self.identity)

    def __str__(self) -> str:
        sizes = " ".join(f"{k}={v}" for k, v in self.constants.items())
        return f"{self.module}.{self.kernel} on {self.target}: {sizes} num_warps={self.warps}"


def label_of(target: str, name: str, uses: Sequence[str], identity: str) -> str:
    """``compile/sm_90a module.kernel, first use``: the beginning of the identity if it has none."""
    short = ".".join(name.split(".")[-2:])
    return f"compile/{target} {short}, {uses[0] if uses else identity[:8]}"


@contextlib.contextmanager
def captured_launches() -> Iterator[list[Launch]]:
    """Note the distinct launches of Triton kernels in this context; none of them runs.

    What kernels would have written stays as it was, so the code that launches must not branch on
    it. Raises RuntimeError where kernels are for Triton's interpreter: those of Triton's own
    library, since it was imported with TRITON_INTERPRET=1, or those that are imported from now on.
    """
    from triton import knobs
    from triton.language import cdiv
    from triton.runtime.jit import JITFunction

    if knobs.runtime.interpret or not isinstance(cdiv, JITFunction):
        raise RuntimeError("TRITON_INTERPRET=1: capture launches in a process without it")
    launches: list[Launch] = []
    seen: set[str] = set()

    def note(kernel: Any, *args: Any, grid: Any, warmup: bool, **named: Any) -> None:
        launch = _specialised(kernel, args, named)
        if launch.identity not in seen:
            seen.add(launch.identity)
            launches.append(launch)

    run = JITFunction.run
    JITFunction.run = note
    try:
        yield launches
    finally:
        JITFunction.run = run


def _specialised(kernel: Any, args: Sequence[Any], named: dict[str, Any]) -> Launch:
    """A launch as Triton would specialise it; that does not depend on the architecture."""
    from triton.backends.compiler import GPUTarget
    from triton.compiler import make_backend
    from triton.runtime.jit import create_function_from_signature

    backend = make_backend(GPUTarget("cuda", 90, 32))
    bind = create_function_from_signature(kernel.signature, kernel.params, backend)
    bound, kinds, options = bind(*args, **named)
    _, signature, constants, attributes = kernel._pack_args(backend, named, bound, kinds, options)
    return Launch(kernel, signature, constants, attributes, options)


def compile_launch(launch: Launch, target: Target) -> Build:
    """Build a launch for a target with Triton's compiler, past its cache.

    Raises FileNotFoundError where Triton came without NVIDIA's assembler.
    """
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    _require_assembler(target)
    constants = launch.named_constants
    known: dict[str, Any] = {
        "identity": launch.identity,
        "module": launch.kernel.__module__,
        "kernel": launch.kernel.__name__,
        "target": target.name,
        "constants": constants,
        "signature": {k: str(v) for k, v in launch.signature.items() if k not in constants},
        "warps": launch.options.get("num_warps", 0),
        "stages": launch.options.get("num_stages", 0),
        "triton_version": triton.__version__,
        "uses": launch.uses,
    }
    source = ASTSource(launch.kernel, launch.signature, launch.constants, launch.attributes)
    gpu = GPUTarget("cuda", target.capability, 32)
    begin = time.perf_counter()
    try:
        with _past_the_cache() as log:
            built = triton.compile(source, target=gpu, options=launch.options)
    except Exception as error:  # the compiler raises whatever its passes raise
        cause = error.__cause__ or error
        reason = " ".join(f"{type(cause).__name__}: {cause}".split())
        return Build(**known, error=reason[:_REASON], seconds=time.perf_counter() - begin)
    used, spilled = _USED.search(log.getvalue()), _SPILLED.search(log.getvalue())
    fixed = _STATIC_SHARED.search(log.getvalue())
    if used is None or spilled is None:
        raise RuntimeError(f"{launch.name}: ptxas reported neither registers nor spills")
    stack, stores, loads = map(int, spilled.groups())
    shared, columns = built.metadata.shared, built.metadata.tmem_size or 0
    static = int(fixed[1]) if fixed else 0
    return Build(
        **known,
        error=_excess(target, shared + static, columns),
        registers=int(used[1]),
        spill_store_bytes=stores,
        spill_load_bytes=loads,
        stack_bytes=stack,
        shared_bytes=shared,
        static_shared_bytes=static,
        tensor_memory_columns=columns,
        products=_products(built.asm["ttir"]),
        instructions=count_instructions(built.asm["ptx"]),
        seconds=time.perf_counter() - begin,
    )


def _excess(target: Target, shared_bytes: int, columns: int) -> str:
    """What a block asks for beyond what the target has: the compiler leaves that to the launch."""
    if shared_bytes > target.shared_bytes:
        return f"{shared_bytes} bytes of shared memory: {target.name} has {target.shared_bytes}"
    if columns > _COLUMNS:
        return f"{columns} columns of tensor memory: {target.name} has {_COLUMNS}"
    return ""


def _hash(name: str, *parts: dict[Any, Any]) -> str:
    ordered = [sorted((str(k), repr(v)) for k, v in part.items()) for part in parts]
    return hashlib.sha256(repr([name, *ordered]).encode()).hexdigest()[:16]


def _products(ttir: str) -> tuple[tuple[int, int, int], ...]:
    """(M, N, K) of every kind of matrix product in Triton's first intermediate form."""
    found = {(int(m), int(n), int(k)) for m, k, n in _PRODUCT.findall(ttir)}
    return tuple(sorted(found))


@contextlib.contextmanager
def _past_the_cache() -> Iterator[io.StringIO]:
    """Compile anew, in a folder that vanishes; gives what ptxas prints with -v."""
    from triton import knobs

    log = io.StringIO()
    with contextlib.ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="crosscompile-"))
        for scope in (knobs.cache, knobs.compilation, knobs.nvidia):
            stack.enter_context(scope.scope())
        knobs.cache.dir = folder
        knobs.compilation.always_compile = True
        knobs.nvidia.dump_ptxas_log = True
        stack.enter_context(contextlib.redirect_stdout(log))
        yield log


def _require_assembler(target: Target) -> None:
    from triton import knobs

    name = "ptxas-blackwell" if target.capability >= 100 else "ptxas"
    try:
        _ = knobs.nvidia.ptxas_blackwell if target.capability >= 100 else knobs.nvidia.ptxas
    except RuntimeError:
        raise FileNotFoundError(
            f"{name}: Triton's package has none that runs here, so nothing can be compiled for "
            f"{target.name}; install triton's wheel for Linux on x86"
        ) from None


def compile_everywhere(
    source: str,
    targets: Sequence[Target],
    processes: int | None = None,
    wanted: Callable[[str], bool] = lambda label: True,
) -> Iterator[Build]:
    """Build all launches that a function returns, for every target, in processes of their own.

    Args:
        source: "package.module:function", which takes a ``Target`` and returns launches; it is
            called in every process, and must return the same each time.
        processes: as many as there are processor cores if None.
        wanted: which launches are built, by label; called in this process.

    Yields:
        Builds in the order of targets and launches.
    """
    with ProcessPoolExecutor(
        processes or os.cpu_count(), mp_context=get_context("spawn"), initializer=_uninterpreted
    ) as pool:
        labels = pool.map(_labels, [source] * len(targets), targets)
        tasks = [
            (source, target, index)
            for target, named in zip(targets, labels, strict=True)
            for index, label in enumerate(named)
            if wanted(label)
        ]
        yield from pool.map(_compiled, *zip(*tasks, strict=True)) if tasks else ()


def _uninterpreted() -> None:
    """Before a process imports Triton: kernels are to be compiled, one core each."""
    os.environ.pop("TRITON_INTERPRET", None)
    os.environ["OMP_NUM_THREADS"] = "1"


@lru_cache(maxsize=8)
def _launches(source: str, target: Target) -> list[Launch]:
    module, _, name = source.partition(":")
    launches: list[Launch] = getattr(importlib.import_module(module), name)(target)
    return launches


def _labels(source: str, target: Target) -> list[str]:
    return [
        label_of(target.name, launch.name, launch.uses, launch.identity)
        for launch in _launches(source, target)
    ]


def _compiled(source: str, target: Target, index: int) -> Build:
    return compile_launch(_launches(source, target)[index], target)
