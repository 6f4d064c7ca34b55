"""What can be measured: suites and providers, described without importing any of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from dynbench.suites.settings import BRANCHES
from dynbench.suites.shapes import UsageError, unknown

PASSES = ("forward", "backward", "forward_backward")
MODEL_SUITES = ("generation", "training")
"""Suites that time a step of a whole language model."""

DTYPES = ("float32", "float16", "bfloat16")
DEVICES = ("cpu", "cuda")


@dataclass(frozen=True)
class SuiteInfo:
    """One kind of work. ``inputs`` lists the input distributions it takes, its default first.

    ``seq`` are the lengths measured unless told otherwise; None leaves them to the device.
    """

    name: str
    summary: str
    passes: tuple[str, ...]
    inputs: tuple[str, ...]
    seq: str | None = "8k..128k"


@dataclass(frozen=True)
class ProviderInfo:
    """One implementation.

    Attributes:
        name: what the command line calls it.
        summary: one line for ``dynbench list``.
        computes: ``dense`` causal attention, ``nsa`` (the paper's configuration), ``dynnsiha``
            (64/64 windows, with query_tile and private_blocks as axes) or ``sliding`` (the window
            alone).
        exact: its lists are exact, whatever the axes say.
        branches: of sparse attention, those that it has.
        synthesised: in suite ``layer``, q, k, v and y come from layers whose neurons the input
            opens (sparse Bayesian, or sparse proto) instead of plain projections.
        suites, passes, devices: what it serves; elsewhere its rows are ``unsupported``.
        variants: names after a colon (``sdpa:cudnn``); the bare name lets the provider choose.
        packages: distributions that it needs beside torch, any one of which suffices.
    """

    name: str
    summary: str
    computes: str = "dense"
    exact: bool = False
    branches: tuple[str, ...] = BRANCHES
    synthesised: bool = False
    suites: tuple[str, ...] = ("attention", "layer")
    passes: tuple[str, ...] = PASSES
    devices: tuple[str, ...] = DEVICES
    variants: tuple[str, ...] = ()
    packages: tuple[str, ...] = ()


SUITES: dict[str, SuiteInfo] = {
    suite.name: suite
    for suite in (
        SuiteInfo("attention", "q, k, v (and gates) to o", PASSES, ("normal",)),
        SuiteInfo(
            "layer",
            "x to y: synthesis or projections, attention, output projection; fed by real text",
            PASSES,
            ("text", "normal"),
        ),
        SuiteInfo(
            "generation",
            "a language model's next token through its cache; time to the first token, cache size",
            ("decode",),
            ("text",),
        ),
        SuiteInfo(
            "training",
            "a language model's training step: loss, gradients, AdamW",
            ("train_step",),
            ("text",),
        ),
        SuiteInfo(
            "quality",
            "what a language model has learned after a training, by --task",
            ("train_step",),
            (),
            seq=None,
        ),
    )
}

_WITH_MODEL = ("attention", "layer", *MODEL_SUITES, "quality")

PROVIDERS: dict[str, ProviderInfo] = {
    provider.name: provider
    for provider in (
        ProviderInfo(
            "sdpa",
            "torch's scaled_dot_product_attention; the bare name is torch's own choice of kernel",
            suites=_WITH_MODEL,
            variants=("flash", "cudnn", "efficient", "math"),
        ),
        ProviderInfo(
            "flash",
            "FlashAttention 4, 3 or 2, whichever imports",
            devices=("cuda",),
            packages=("flash-attn-4", "flash-attn-3", "flash-attn"),
        ),
        ProviderInfo(
            "flex",
            "torch's FlexAttention, compiled, with a causal block mask",
            devices=("cuda",),
        ),
        ProviderInfo(
            "nsa",
            "native sparse attention, the paper's windows, exact lists",
            "nsa",
            exact=True,
            suites=_WITH_MODEL,
        ),
        ProviderInfo(
            "sliding",
            "native sparse attention without its lists: the sliding window alone",
            "sliding",
            exact=True,
            branches=("sliding",),
            suites=("quality",),
        ),
        ProviderInfo(
            "fla",
            "flash-linear-attention's parallel_nsa: 64/64 windows, exact lists, no sliding branch",
            "dynnsiha",
            exact=True,
            branches=("compressed", "selected"),
            suites=("attention",),
            devices=("cuda",),
            packages=("fla-core",),
        ),
        ProviderInfo(
            "dynsiha",
            "DynSIHA: dense attention at the same heads; in suite layer with synthesised q, k, v",
            synthesised=True,
            suites=_WITH_MODEL,
        ),
        ProviderInfo(
            "dynnsiha",
            "DynNSIHA: word-guided sparse attention; axes query_tile and private_blocks",
            "dynnsiha",
            synthesised=True,
            suites=_WITH_MODEL,
        ),
        ProviderInfo(
            "dimension",
            "DynSIHA, dimension form (deprecated): a mask per feature of q, k, v and y",
            synthesised=True,
            suites=("layer",),
        ),
        ProviderInfo(
            "flat",
            "DynSIHA, flat form: blocks with head and MLP experts of their own",
            suites=("layer", *MODEL_SUITES, "quality"),
        ),
        ProviderInfo(
            "recursive",
            "DynSIHA, recursive form: one block with head and MLP experts, refining in steps",
            suites=("layer", *MODEL_SUITES, "quality"),
        ),
        ProviderInfo(
            "transformer",
            "plain transformer blocks with as many FLOPs as flat and recursive use",
            suites=("layer",),
        ),
    )
}


def resolve_suite(name: str) -> SuiteInfo:
    """The suite of that name. Raises UsageError naming the nearest one if there is none."""
    if name not in SUITES:
        raise UsageError(unknown("suite", name, list(SUITES)))
    return SUITES[name]


def provider_names() -> list[str]:
    """Every name that ``--providers`` takes, variants included."""
    return [
        name
        for provider in PROVIDERS.values()
        for name in (provider.name, *(f"{provider.name}:{v}" for v in provider.variants))
    ]


def provider_info(name: str) -> ProviderInfo | None:
    """The built-in provider behind a name with or without variant; None for a user's own."""
    return PROVIDERS.get(name.partition(":")[0])


def resolve_providers(
    text: str, suite: str, device: str, own: Sequence[str] = ()
) -> tuple[str, ...]:
    """The providers named in a comma list, in its order and without duplicates.

    ``own`` are the names of the user's provider files. A provider that does not serve the device or
    needs an absent package stays: its rows say so. Raises UsageError for an unknown suite, device
    or provider (naming the nearest) and for an empty list.
    """
    resolve_suite(suite)
    if device not in DEVICES:
        raise UsageError(unknown("device", device, DEVICES))
    names = [part.strip() for part in text.split(",") if part.strip()]
    if not names:
        raise UsageError("no provider given: for example --providers sdpa,dynnsiha")
    known = [*provider_names(), *own]
    for name in names:
        if name not in known:
            raise UsageError(unknown("provider", name, known))
    return tuple(dict.fromkeys(names))


def default_providers(device: str, suite: str = "attention") -> tuple[str, ...]:
    """What is compared by default: on a GPU also torch's cuDNN kernel and FlashAttention.

    Other suites add what suite ``attention`` has not: in suite ``layer`` every form of DynSIHA.
    Suite ``quality`` has the same on every device.
    """
    if suite == "quality":
        return ("sdpa", "sliding", "nsa", "dynsiha", "dynnsiha")
    names: tuple[str, ...] = ("sdpa", "nsa", "dynsiha", "dynnsiha")
    if device != "cpu" and suite not in MODEL_SUITES:
        names = ("sdpa", "sdpa:cudnn", "flash", "nsa", "dynsiha", "dynnsiha")
    forms = (p for p in PROVIDERS.values() if "attention" not in p.suites)
    return names + tuple(form.name for form in forms if suite in form.suites)


def default_passes(device: str, suite: str) -> tuple[str, ...]:
    """What is measured by default: forward, on a GPU also backward, or the suite's only pass."""
    known = SUITES[suite].passes
    wanted = ("forward",) if device == "cpu" else ("forward", "backward")
    return tuple(name for name in wanted if name in known) or known
