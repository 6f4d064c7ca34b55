"""A request as text: what a command line and a config file say, and how to repeat a case.

The grammar of sequence lengths and number lists is the harness's; here are the parts that know
shapes, devices and settings.
"""

from __future__ import annotations

import inspect
import re
import shlex
import tomllib
from collections.abc import Mapping, Sequence, Set
from dataclasses import replace
from pathlib import Path
from typing import Any

from dynbench.harness import sweep
from dynbench.harness.case import Case
from dynbench.harness.gpus import Gpu, visible_gpus
from dynbench.harness.sweep import format_length, parse_floats, parse_ints
from dynbench.suites.catalog import DEVICES, provider_info, resolve_suite
from dynbench.suites.plan import PlanOptions, Tile, default_shape
from dynbench.suites.quality.defaults import DEFAULTS
from dynbench.suites.settings import BRANCHES
from dynbench.suites.shapes import Shape, UsageError, resolve_shape, unknown

MOST_JOBS = 64

_DURATION = re.compile(r"(\d+(?:\.\d+)?)\s*([smh]?)")
_SECONDS = {"": 1, "s": 1, "m": 60, "h": 3600}
_HEADS = ("q_heads", "kv_heads", "head_dim")
_WORK_OPTIONS = (*_HEADS, "model_dim", "layers", "batch", "inputs", "task", "train_steps", "seed")
_EXCLUSIVE = (
    ({"shape"}, {"q-heads", "kv-heads", "head-dim"}),
    ({"top-n"}, {"sparsity"}),
    ({"seed"}, {"seeds"}),
)
_SPARSE_OPTIONS = ("branches", "window", "query_tile", "private_blocks")


def parse_names(text: str | None, option: str) -> tuple[str, ...] | None:
    """The names of a comma list, without duplicates; None for an option that was not given.

    Raises UsageError for a list without a name.
    """
    if text is None:
        return None
    names = tuple(dict.fromkeys(part.strip() for part in text.split(",") if part.strip()))
    if not names:
        raise UsageError(f"{option}: no name given; dynbench list shows what there is")
    return names


def parse_duration_s(text: str, option: str) -> float:
    """Seconds in ``90s``, ``10m``, ``1.5h`` or ``90``. Raises UsageError."""
    match = _DURATION.fullmatch(text.strip())
    seconds = float(match[1]) * _SECONDS[match[2]] if match else 0.0
    if seconds <= 0:
        raise UsageError(f"{option}: {text!r} is no time; write for example 90s, 10m or 1h")
    return seconds


def parse_tiles(text: str | None) -> tuple[Tile, ...] | None:
    """Query tiles: a comma list of numbers and ``auto``; None for None. Raises SweepError."""
    tiles: list[Tile] = []
    for name in parse_names(text, "--query-tile") or ():
        if name == "auto":
            tiles.append("auto")
        else:
            tiles += parse_ints(name, name="--query-tile", low=1, example="1,16 or auto")
    return tuple(tiles) or None


def parse_numbers(text: str | None, option: str) -> tuple[int, ...] | None:
    """Numbers from 0 on, in the sweep grammar; None for None. Raises SweepError."""
    return None if text is None else tuple(parse_ints(text, name=option, example="0,2,4"))


def choose_device(wanted: str | None) -> str:
    """The device to measure: ``wanted``, or cuda where torch finds a GPU and else cpu.

    Imports torch unless cpu is wanted. Raises UsageError for an unknown or absent device.
    """
    if wanted is not None and wanted not in DEVICES:
        raise UsageError(unknown("device", wanted, DEVICES))
    if wanted == "cpu":
        return wanted
    import torch

    found = torch.cuda.is_available()
    if wanted == "cuda" and not found:
        raise UsageError("--device cuda: torch finds no GPU here (dynbench doctor says more)")
    return "cuda" if found else "cpu"


def choose_gpus(text: str | None, device: str | None) -> tuple[Gpu, ...]:
    """The GPUs that ``--gpus`` names, as ``all`` or by number; none where it was not given.

    Raises UsageError where there is no GPU, for a number that no GPU has, and beside ``--device
    cpu``; SweepError for what is no list of numbers.
    """
    if text is None:
        return ()
    if device == "cpu":
        raise UsageError(f"--gpus {text}: excludes --device cpu; leave one of them out")
    found = visible_gpus()
    if not found:
        raise UsageError(
            f"--gpus {text}: torch finds no GPU here; leave it out to measure on the CPU (dynbench "
            "doctor says more)"
        )
    if text.strip() == "all":
        return tuple(found)
    numbers = parse_ints(text, name="--gpus", example="0,1 or all")
    for number in numbers:
        if number >= len(found):
            there = f"GPUs 0 to {len(found) - 1} are" if len(found) > 1 else "only GPU 0 is"
            raise UsageError(f"--gpus {text}: no GPU {number}, {there} here; name those, or all")
    return tuple(found[number] for number in numbers)


def check_jobs(jobs: int, suite: str) -> None:
    """Raise UsageError for a number of trainings side by side that cannot be, or is not asked of
    suite ``quality``."""
    if not 1 <= jobs <= MOST_JOBS:
        raise UsageError(f"--jobs {jobs}: must be at least 1, at most {MOST_JOBS}")
    if jobs > 1 and suite != "quality":
        raise UsageError(
            f"--jobs {jobs}: suite {suite} measures time, so that one case at a time must have the"
            " device; leave it out"
        )


def used_gpus(named: Sequence[Gpu], device: str) -> tuple[Gpu, ...]:
    """The GPUs that a sweep on ``device`` measures on: those named, else torch's first one."""
    return tuple(named) if named or device != "cuda" else tuple(visible_gpus()[:1])


def choose_shapes(
    names: str | None,
    q_heads: int | None,
    kv_heads: int | None,
    head_dim: int | None,
    device: str,
    suite: str = "attention",
) -> tuple[Shape, ...] | None:
    """Shapes named in a comma list, or one made from single numbers; None where nothing is given.

    Of the single numbers, those not given are the default shape's; kv_heads is q_heads. In suite
    ``quality`` a named shape has the default batch: its own is meant for calls, not for trainings.
    Raises UsageError for an unknown name, bad numbers, and names and numbers together.
    """
    named = parse_names(names, "--shape")
    given = [number for number in (q_heads, kv_heads, head_dim) if number is not None]
    if named and given:
        raise UsageError("--shape excludes --q-heads, --kv-heads and --head-dim: give one of them")
    base = default_shape(suite, device)
    if named:
        shapes = tuple(resolve_shape(name) for name in named)
        if suite == "quality":
            return tuple(replace(shape, batch=base.batch) for shape in shapes)
        return shapes
    if not given:
        return None
    heads = base.q_heads if q_heads is None else q_heads
    groups = heads if kv_heads is None else kv_heads
    width = base.head_dim if head_dim is None else head_dim
    return (Shape("", heads, groups, width, batch=base.batch),)


def wanted(
    *,
    seq: str | None = None,
    suite: str = "attention",
    providers: str | None = None,
    passes: str | None = None,
    sparsity: str | None = None,
    inputs: str | None = None,
    seed: int = 0,
    shape: str | None = None,
    q_heads: int | None = None,
    kv_heads: int | None = None,
    head_dim: int | None = None,
    model_dim: int | None = None,
    layers: int | None = None,
    batch: int | None = None,
    top_n: int | None = None,
    window: int | None = None,
    query_tile: str | None = None,
    private_blocks: str | None = None,
    branches: str | None = None,
    dtype: str | None = None,
    device: str | None = None,
    timer: str | None = None,
    task: str | None = None,
    train_steps: int | None = None,
    block_size: int | None = None,
    variant: Sequence[str] | None = None,
    seeds: str | None = None,
    provider_files: Sequence[Path] = (),
) -> PlanOptions:
    """The request that options of ``dynbench run`` make, each as its text or number.

    Raises UsageError or SweepError for one that cannot be read, naming it.
    """
    shares = parse_floats(sparsity, 0, 1, name="--sparsity") if sparsity is not None else ()
    chosen = choose_device(device)
    seq = seq or resolve_suite(suite).seq or DEFAULTS[chosen].seq
    return PlanOptions(
        seq_lens=tuple(sweep.parse_lengths(seq)),
        device=chosen,
        suite=suite,
        providers=parse_names(providers, "--providers"),
        passes=parse_names(passes, "--pass"),
        shapes=choose_shapes(shape, q_heads, kv_heads, head_dim, chosen, suite),
        dtype=dtype,
        batch=batch,
        model_dim=model_dim,
        layers=layers,
        top_n=top_n,
        window=window,
        query_tiles=parse_tiles(query_tile),
        private_blocks=parse_numbers(private_blocks, "--private-blocks"),
        branches=parse_names(branches, "--branches"),
        sparsities=tuple(shares),
        inputs=inputs,
        seed=seed,
        timer=timer,
        tasks=parse_names(task, "--task"),
        train_steps=train_steps,
        block_size=block_size,
        variants=tuple(variant or ()),
        seeds=parse_numbers(seeds, "--seeds"),
        provider_files=tuple(provider_files),
    )


def wanted_by(values: Mapping[str, object]) -> PlanOptions:
    """The request that a table of a TOML file makes: options of ``dynbench run`` and their values.

    Raises UsageError for an option that says nothing about what is measured, and as ``wanted``.
    """
    kinds = {
        name: str(parameter.annotation).removesuffix(" | None")
        for name, parameter in inspect.signature(wanted).parameters.items()
        if name not in ("provider_files", "variant")
    }
    options: dict[str, Any] = {}
    for key, value in values.items():
        option = key.replace("-", "_")
        name = "passes" if option == "pass" else option
        if name not in kinds or option == "passes":
            known = sorted("pass" if kind == "passes" else kind for kind in kinds)
            raise UsageError(f"[run]: {unknown('key', key, known)}")
        items = value if isinstance(value, list) else [value]
        if any(isinstance(item, (dict, list, bool)) for item in items):
            raise UsageError(f"[run]: {key} = {value!r}: must be a value or a list of values")
        if kinds[name] == "str":
            options[name] = ",".join(map(str, items))
        elif isinstance(value, int):
            options[name] = value
        else:
            raise UsageError(f"[run]: {key} = {value!r}: must be a whole number")
    return wanted(**options)


def describe(cases: Sequence[Case]) -> str:
    """The kind of work in one line: ``attention forward in float32, heads (H/K/D) 1/1/64``."""
    work = sorted({f"{case.suite} {case.pass_} in {case.dtype}" for case in cases})
    heads = sorted({tuple(int(case.workload[name]) for name in _HEADS) for case in cases})
    return f"{', '.join(work)}, heads (H/K/D) {', '.join('/'.join(map(str, h)) for h in heads)}"


def read_config(path: Path, repeatable: Mapping[str, bool]) -> dict[str, str | list[str]]:
    """A TOML file's values as the command line would give them: text, or texts where repeatable.

    ``repeatable`` has every known option (``q-heads``; the file may also write ``q_heads``) and
    whether it may be given several times; elsewhere a list becomes a comma list. Raises UsageError
    for a file that cannot be read, an unknown key (naming the nearest) and a table.
    """
    try:
        values = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UsageError(f"--config {path}: {error.strerror}") from None
    except ValueError as error:  # no TOML, or no UTF-8
        raise UsageError(f"--config {path}: {error}") from None
    texts: dict[str, str | list[str]] = {}
    for key, value in values.items():
        name = key.replace("_", "-")
        if name not in repeatable:
            raise UsageError(f"--config {path}: {unknown('key', key, sorted(repeatable))}")
        if isinstance(value, dict):
            raise UsageError(f"--config {path}: {key} takes a value or a list, not a table")
        items = [str(item) for item in (value if isinstance(value, list) else [value])]
        texts[name] = items if repeatable[name] else ",".join(items)
    return texts


def overridden(given: Set[str]) -> set[str]:
    """Options of a config file that do not count where a command line gives these ones.

    They are the ones given, and those that exclude one that is given.
    """
    excluded: set[str] = set()
    for one, other in _EXCLUSIVE:
        excluded |= (other if given & one else set()) | (one if given & other else set())
    return {*given, *excluded}


def repeat_command(
    case: Case,
    provider_files: Sequence[Path] = (),
    how: Sequence[str] = (),
    *,
    command: str = "run",
) -> str:
    """The command line that plans exactly ``case`` and nothing else: for ``run``, or ``profile``.

    ``provider_files`` are the user's own providers of the run; the case's own one is named. ``how``
    are further words: those that change how a case is measured, such as ``--quick``.
    """
    words = ["dynbench", command, "--suite", case.suite, "--providers", case.provider]
    for path in provider_files:
        words += ["--provider-file", str(path)] if path.stem == case.provider else []
    words += ["--pass", case.pass_, "--seq", format_length(int(case.workload["seq_len"]))]
    values = {name: case.workload[name] for name in _WORK_OPTIONS if name in case.workload}
    if "target_sparsity" in case.settings:
        values["sparsity"] = case.settings["target_sparsity"]
    elif "top_n" in case.settings:
        values["top_n"] = case.settings["top_n"]
    values |= {name: case.settings[name] for name in _SPARSE_OPTIONS if name in case.settings}
    info = provider_info(case.provider)
    if "branches" not in values and "window" in values and info and info.branches != BRANCHES:
        values["branches"] = ",".join(BRANCHES)  # asked for all, also those that it does not have
    if values.get("window") == 0:  # no window of 0 keys, but no sliding branch: --branches says so
        del values["window"]
    if info and info.computes == "sliding":
        values.pop("branches", None)  # it has no other
    if case.suite == "quality":
        named = {"block_size", "variant"} & set(case.settings)
        values |= {name: case.settings[name] for name in sorted(named)}
    values |= {"dtype": case.dtype, "device": case.device, "timer": case.timer}
    for name, value in values.items():
        words += [f"--{name.replace('_', '-')}", str(value)]
    return shlex.join([*words, *how])
