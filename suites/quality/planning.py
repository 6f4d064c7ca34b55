"""From a request to the cases of suite ``quality``: one training each. Imports no torch."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from dynbench.harness.case import Case, Value
from dynbench.suites.axes import Axes
from dynbench.suites.quality.defaults import DEFAULTS, TASKS, Defaults
from dynbench.suites.quality.variants import canonical_variant, without
from dynbench.suites.settings import PRIVATE_BLOCKS, SMALLEST_BLOCK
from dynbench.suites.shapes import Shape, UsageError, unknown

if TYPE_CHECKING:
    from dynbench.suites.catalog import ProviderInfo
    from dynbench.suites.plan import PlanOptions

PASS = "train_step"
TIMER = "wall"


def quality_cases(options: PlanOptions, providers: Mapping[str, ProviderInfo]) -> list[Case]:
    """The trainings of a request: short sequences first, one seed of all before the next seed.

    Raises UsageError for what no training could be.
    """
    base = DEFAULTS[options.device]
    seeds = options.seeds or (options.seed,)
    _check(options, seeds)
    variants = [canonical_variant(text) for text in options.variants] or [""]
    axes = _axes(options, base)
    cases = {
        case.case_id: case
        for shape, seq_len, task, seed, (name, info), variant in itertools.product(
            options.shapes or (base.shape,),
            options.seq_lens,
            options.tasks or base.tasks,
            seeds,
            providers.items(),
            dict.fromkeys(variants),
        )
        for settings in axes.settings(shape, seq_len, info)
        for case in [
            Case(
                suite="quality",
                provider=name,
                pass_=PASS,
                device=options.device,
                dtype=options.dtype or ("float32" if options.device == "cpu" else "bfloat16"),
                timer=TIMER,
                workload=_workload(options, base, shape, seq_len, task, seed),
                settings=settings | _variant_at(settings, variant),
            )
        ]
    }
    return list(cases.values())


def _variant_at(settings: Mapping[str, Value], variant: str) -> dict[str, Value]:
    """The variant as a setting. Tiles of one query have one scoring: one work, one case id."""
    left = without(variant, "tile_scoring") if settings.get("query_tile") == 1 else variant
    return {"variant": left} if left else {}


def block_size_of(options: PlanOptions) -> int:
    """Tokens in a selection block."""
    return options.block_size or DEFAULTS[options.device].block_size


def _check(options: PlanOptions, seeds: Sequence[int]) -> None:
    if min(seeds) < 0:
        raise UsageError(f"seed={min(seeds)}: must be at least 0, since batches are drawn by it")
    for task in options.tasks or ():
        if task not in TASKS:
            raise UsageError(unknown("task", task, list(TASKS)))
    if options.timer not in (None, TIMER):
        raise UsageError(f"--timer {options.timer}: a training is timed by the host: --timer wall")
    if any(pass_ != PASS for pass_ in options.passes or ()):
        raise UsageError(f"--pass: suite quality has one: {PASS}")
    if min(options.seq_lens) < 2:
        raise UsageError(f"seq_lens={min(options.seq_lens)}: a next character needs at least 2")
    block = block_size_of(options)
    if block % SMALLEST_BLOCK:
        raise UsageError(
            f"block_size={block}: must be a multiple of {SMALLEST_BLOCK}, since the windows of nsa "
            "start at every quarter of a block"
        )


def _workload(
    options: PlanOptions, base: Defaults, shape: Shape, seq_len: int, task: str, seed: int
) -> dict[str, Value]:
    return {
        "batch": options.batch or shape.batch,
        "seq_len": seq_len,
        "q_heads": shape.q_heads,
        "kv_heads": shape.kv_heads,
        "head_dim": shape.head_dim,
        "model_dim": options.model_dim or shape.width,
        "layers": options.layers or base.layers,
        "task": task,
        "train_steps": options.train_steps or base.train_steps,
        "seed": seed,
    }


def _axes(options: PlanOptions, base: Defaults) -> Axes:
    return Axes(
        query_tiles=options.query_tiles or ("auto",),
        private_blocks=options.private_blocks or (PRIVATE_BLOCKS,),
        sparsities=options.sparsities,
        top_n=options.top_n or base.top_n,
        window=options.window or base.window,
        branches=options.branches,
        block_size=block_size_of(options),
    )
