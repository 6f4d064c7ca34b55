"""From a request to the list of cases. Imports no torch, measures nothing."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from dynbench.harness.case import Case, Value
from dynbench.harness.sweep import MAX_VALUE
from dynbench.harness.timing import TIMERS
from dynbench.suites.axes import Axes, Tile
from dynbench.suites.catalog import (
    DEVICES,
    DTYPES,
    MODEL_SUITES,
    ProviderInfo,
    default_passes,
    default_providers,
    provider_info,
    resolve_providers,
    resolve_suite,
)
from dynbench.suites.own import OwnProvider, read_own_provider
from dynbench.suites.quality.defaults import DEFAULTS
from dynbench.suites.quality.planning import block_size_of, quality_cases
from dynbench.suites.settings import (
    BLOCK_SIZE,
    BRANCHES,
    FORCED_BLOCKS,
    PRIVATE_BLOCKS,
    SMALLEST_BLOCK,
)
from dynbench.suites.shapes import SHAPES, Shape, UsageError, unknown

TOP_N = 16
WINDOW = 512
LAYERS = {"cpu": 2, "cuda": 4}
"""Blocks of a model unless the user says otherwise."""


@dataclass(frozen=True)
class PlanOptions:
    """A request. None means the default of the device, as described in ``plan``.

    Attributes:
        seq_lens: tokens per sequence, in the order to be measured.
        device: ``cpu`` or ``cuda``.
        suite, providers, passes, dtype: names; a provider may carry a variant (``sdpa:cudnn``).
        shapes: head shapes (see shapes.py); batch overrides theirs, model_dim their width in
            every suite but ``attention``.
        layers: blocks of the model in the suites of models.
        top_n, window: selection blocks per query and keys of the sliding branch; WINDOW keys if
            None.
        query_tiles, private_blocks: axes of the providers that compute ``dynnsiha``; ``auto`` fills
            the kernels' rows. private_blocks is irrelevant at query_tile 1 and is 0 there.
        branches: of the sparse providers, ``selected`` among them; None is all that each one has.
        sparsities: shares of causal pairs to leave out; each one solves top_n, per sequence length.
        inputs: distribution of the inputs; None is the suite's first.
        seed: of inputs and parameters.
        tasks, train_steps, block_size, variants, seeds: of suite ``quality``, see quality/; seeds
            stand in place of ``seed``.
        timer: one of the device's TIMERS.
        provider_files: the user's own providers, measured beside ``providers``.
    """

    seq_lens: tuple[int, ...]
    device: str
    suite: str = "attention"
    providers: tuple[str, ...] | None = None
    passes: tuple[str, ...] | None = None
    shapes: tuple[Shape, ...] | None = None
    dtype: str | None = None
    batch: int | None = None
    model_dim: int | None = None
    layers: int | None = None
    top_n: int | None = None
    window: int | None = None
    query_tiles: tuple[Tile, ...] | None = None
    private_blocks: tuple[int, ...] | None = None
    branches: tuple[str, ...] | None = None
    sparsities: tuple[float, ...] = ()
    inputs: str | None = None
    seed: int = 0
    timer: str | None = None
    tasks: tuple[str, ...] | None = None
    train_steps: int | None = None
    block_size: int | None = None
    variants: tuple[str, ...] = ()
    seeds: tuple[int, ...] | None = None
    provider_files: tuple[Path, ...] = ()


_OF_QUALITY = ("tasks", "train_steps", "block_size", "variants", "seeds")


def plan(options: PlanOptions) -> list[Case]:
    """The cases of a request: short sequences first, providers side by side, no duplicates.

    Defaults without a GPU: one head of 64 in float32, the forward pass, providers sdpa, nsa,
    dynsiha and dynnsiha, the last with exact lists and with 16 queries sharing (one private
    block). With a GPU: shape ``paper`` in bfloat16, forward and backward, cuDNN and FlashAttention
    beside them, dynnsiha with its automatic tile. The suites of models have one pass and no
    variants of a provider. The timer is the first of the device's TIMERS.

    Combinations that no provider could serve raise UsageError; those that one provider cannot serve
    are planned, and become rows that say why. Block counts that do not fit are clamped: private
    blocks to what top_n leaves beside the forced ones. Suite ``quality`` has defaults and cases of
    its own: see quality/planning.py.
    """
    suite = resolve_suite(options.suite)
    own = [read_own_provider(Path(path)) for path in options.provider_files]
    _check(options)
    providers = _providers(options, own)
    if suite.name == "quality":
        return quality_cases(options, providers)
    passes = options.passes or default_passes(options.device, options.suite)
    for pass_ in passes:
        if pass_ not in suite.passes:
            raise UsageError(unknown("pass", pass_, suite.passes))
    shapes = options.shapes or (default_shape(options.suite, options.device),)
    axes = _axes(options)
    cases = {
        case.case_id: case
        for shape, seq_len, pass_, (name, info) in itertools.product(
            shapes, options.seq_lens, passes, providers.items()
        )
        for settings in axes.settings(shape, seq_len, info)
        for case in [_case(options, shape, seq_len, pass_, name, settings)]
    }
    return list(cases.values())


def default_shape(suite: str, device: str) -> Shape:
    """Heads, width and batch of a suite's cases unless the user says otherwise."""
    if suite == "quality":
        return DEFAULTS[device].shape
    return SHAPES["cpu" if device == "cpu" else "paper"]


def _check(options: PlanOptions) -> None:
    """Raise UsageError for values that no case could have."""
    suite = resolve_suite(options.suite)
    if options.device not in DEVICES:
        raise UsageError(unknown("device", options.device, DEVICES))
    if options.dtype is not None and options.dtype not in DTYPES:
        raise UsageError(unknown("dtype", options.dtype, DTYPES))
    timers = TIMERS[options.device]
    if options.timer is not None and options.timer not in timers:
        known = {name for names in TIMERS.values() for name in names}
        if options.timer not in known:
            raise UsageError(unknown("timer", options.timer, sorted(known)))
        raise UsageError(
            f"--timer {options.timer} needs a GPU: --device {options.device} takes "
            f"--timer {' or '.join(timers)}"
        )
    if options.inputs is not None and not suite.inputs:
        raise UsageError(f"suite {suite.name} takes no inputs: its tasks say what is read")
    if options.inputs is not None and options.inputs not in suite.inputs:
        raise UsageError(
            f"suite {suite.name} takes inputs {' or '.join(suite.inputs)}, not {options.inputs!r}"
        )
    if not options.seq_lens:
        raise UsageError("no sequence length given: for example --seq 8k..128k")
    least = {"seq_lens": 1, "window": 1, "private_blocks": 0, "top_n": FORCED_BLOCKS, "batch": 1}
    least |= {"model_dim": 1, "layers": 1, "train_steps": 1, "block_size": SMALLEST_BLOCK}
    for name, bound in least.items():
        given = getattr(options, name)
        for value in given if isinstance(given, tuple) else (given,):
            if value is not None and not bound <= value <= MAX_VALUE:
                raise UsageError(f"{name}={value}: must be at least {bound}, at most {MAX_VALUE}")
    if abs(options.seed) > MAX_VALUE:
        raise UsageError(f"seed={options.seed}: must be at most {MAX_VALUE} in size")
    if suite.name != "quality":
        for name in _OF_QUALITY:
            if given := getattr(options, name):
                values = ",".join(map(str, given if isinstance(given, tuple) else (given,)))
                raise UsageError(
                    f"{name}={values}: only suite quality takes it; leave it out, "
                    "or add --suite quality"
                )
    with_model = (*MODEL_SUITES, "quality")
    if options.layers is not None and suite.name not in with_model:
        takers = ", ".join(with_model)
        raise UsageError(f"layers={options.layers}: only the suites of models take it: {takers}")
    if options.model_dim is not None and suite.name == "attention":
        raise UsageError(
            f"model_dim={options.model_dim}: suite attention begins at q, k and v; leave it out,"
            " or take --suite layer"
        )
    block = block_size_of(options) if suite.name == "quality" else BLOCK_SIZE
    for tile in options.query_tiles or ():
        if tile != "auto" and (tile < 1 or block % tile):
            divisors = [str(r) for r in range(1, block + 1) if block % r == 0]
            raise UsageError(
                f"query_tile={tile} does not divide blocks of {block}: "
                f"use {', '.join(divisors)} or auto"
            )
    for branch in options.branches or ():
        if branch not in BRANCHES:
            raise UsageError(unknown("branch", branch, BRANCHES))
    if options.branches is not None and "selected" not in options.branches:
        raise UsageError(
            f"branches={','.join(options.branches)}: must have selected among them, "
            "since all the other settings are about its lists"
        )
    for share in options.sparsities:
        if not 0 <= share < 1:
            raise UsageError(f"sparsity={share}: must be at least 0 and below 1, like 0.9")
    if options.sparsities and options.top_n is not None:
        raise UsageError("sparsity and top_n exclude each other: sparsity solves top_n")


def _providers(options: PlanOptions, own: list[OwnProvider]) -> dict[str, ProviderInfo]:
    """What each provider computes, by name, in the order to be measured."""
    of_user = {
        provider.name: ProviderInfo(
            provider.name, provider.version, provider.computes, exact=provider.computes == "nsa"
        )
        for provider in own
    }
    if len(of_user) < len(own):
        raise UsageError("two provider files have the same name: rename one of them")
    names = options.providers or default_providers(options.device, options.suite)
    named = resolve_providers(",".join(names), options.suite, options.device, tuple(of_user))
    built_in = {name: info for name in named if (info := provider_info(name))}
    return {name: (built_in | of_user)[name] for name in dict.fromkeys((*named, *of_user))}


def _axes(options: PlanOptions) -> Axes:
    """What is asked of sparse providers, with the device's defaults."""
    return Axes(
        query_tiles=options.query_tiles or ((1, 16) if options.device == "cpu" else ("auto",)),
        private_blocks=options.private_blocks or (PRIVATE_BLOCKS,),
        sparsities=options.sparsities,
        top_n=options.top_n or TOP_N,
        window=options.window or WINDOW,
        branches=options.branches,
    )


def _case(
    options: PlanOptions,
    shape: Shape,
    seq_len: int,
    pass_: str,
    provider: str,
    settings: Mapping[str, Value],
) -> Case:
    workload: dict[str, Value] = {
        "batch": options.batch or shape.batch,
        "seq_len": seq_len,
        "q_heads": shape.q_heads,
        "kv_heads": shape.kv_heads,
        "head_dim": shape.head_dim,
        "inputs": options.inputs or resolve_suite(options.suite).inputs[0],
        "seed": options.seed,
    }
    if options.suite != "attention":
        workload["model_dim"] = options.model_dim or shape.width
    if options.suite in MODEL_SUITES:
        workload["layers"] = options.layers or LAYERS[options.device]
    return Case(
        suite=options.suite,
        provider=provider,
        pass_=pass_,
        device=options.device,
        dtype=options.dtype or ("float32" if options.device == "cpu" else "bfloat16"),
        timer=options.timer or TIMERS[options.device][0],
        workload=workload,
        settings=dict(settings),
    )
