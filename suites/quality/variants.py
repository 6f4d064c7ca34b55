"""Ablations as text: what ``--variant`` may change in a model or its training. Imports no torch.

A variant is ``name=value`` pairs with commas between them. Its canonical form has them in the order
of their names, numbers as short as they read back, and nothing that is the default anyway: one
change, one text, one case.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from dynbench.suites.quality.defaults import LEARNING_RATE
from dynbench.suites.shapes import UsageError, unknown

PLAIN = "none"
"""The text of the variant that changes nothing."""

_SYNTHESISED = ("dynsiha", "dynnsiha")
_EXPERTS = ("flat", "recursive")
_BLOCKS = ("sdpa", "sliding", "nsa", *_SYNTHESISED)


@dataclass(frozen=True)
class Knob:
    """One name that a variant may set.

    Attributes:
        default: what holds where it is not set.
        values: the values it takes; empty for a number from 0 on.
        providers: those that have what it changes; empty for all, or where the model decides.
        meaning: one line for the docs.
    """

    default: str
    meaning: str
    values: tuple[str, ...] = ()
    providers: tuple[str, ...] = ()


KNOBS: dict[str, Knob] = {
    "alignment": Knob(
        "0",
        "weight of the loss by which the choice of blocks learns from dense attention",
        providers=("nsa", "dynnsiha"),
    ),
    "compression": Knob(
        "mean",
        "what summarises a block: its mean, or a network",
        ("mean", "conv", "attention", "mlp", "projection", "transformer"),
        ("nsa", "dynnsiha"),
    ),
    "dense_warmup": Knob(
        "0",
        "share of the steps, at first, in which a query selects every block",
        ("0", "0.25", "0.5", "0.75"),
        ("nsa", "dynnsiha"),
    ),
    "fars": Knob("0", "weight of Fisher-aware routing shaping"),
    "feed_forward": Knob(
        "swiglu", "the feed-forward: plain, or synthesised", ("swiglu", "moie"), _BLOCKS
    ),
    "form": Knob(
        "blocks",
        "blocks of attention and feed-forward, or of head and MLP experts",
        ("blocks", "flat", "recursive"),
        _SYNTHESISED,
    ),
    "gate_start": Knob(
        "sliding",
        "what the gates of a new layer favour: the window, or no branch",
        ("sliding", "even"),
        ("nsa", "dynnsiha"),
    ),
    "init": Knob(
        "calibrated", "scale of the gates' scores at first", ("calibrated", "notes"), _SYNTHESISED
    ),
    "kl": Knob("0", "weight of the KL term"),
    "length_warmup": Knob(
        "1",
        "sequences are so many times shorter at first, and double over the first half of the steps",
        ("1", "2", "4", "8", "16"),
    ),
    "lr": Knob(f"{LEARNING_RATE:g}", "peak learning rate"),
    "optimizer": Knob("adamw", "what trains it", ("adamw", "rmsuon")),
    "router": Knob("cpr", "how a token chooses experts", ("cpr", "capr", "dot"), _EXPERTS),
    "routing": Knob("dot", "match of an input with a neuron", ("dot", "cosine"), _SYNTHESISED),
    "sars": Knob("0", "weight of surprise-aware routing shaping"),
    "sars_sign": Knob("plus", "sign of goodness in SARS", ("plus", "minus")),
    "sml": Knob("0", "weight of surprise minimisation"),
    "synthesis": Knob(
        "sbl",
        "sparse Bayesian layers, those of v and the output alone, or plain projections",
        ("sbl", "values", "linear"),
        _SYNTHESISED,
    ),
    "tile_scoring": Knob(
        "leader",
        "who chooses a tile's shared blocks: its first query, or those that end there",
        ("leader", "aggregate"),
        ("dynnsiha",),
    ),
    "word_embedding": Knob("on", "whether characters carry their word", ("on", "off")),
}
"""Every name of a variant, in their order."""


def canonical_variant(text: str) -> str:
    """The canonical form of a variant's text; empty where it changes nothing.

    Raises UsageError, in one line, for a pair that cannot be read, an unknown name or value (naming
    the nearest), a number out of range, a name given twice and a sign without SARS.
    """
    if text.strip() == PLAIN:
        return ""
    values: dict[str, str] = {}
    for part in text.split(","):
        name, equals, value = (piece.strip() for piece in part.partition("="))
        if not equals or not name or not value:
            raise UsageError(
                f"--variant {text}: {part.strip()!r} is no name=value; write for example "
                f"kl=0.1,optimizer=rmsuon, or {PLAIN}"
            )
        if name not in KNOBS:
            raise UsageError(f"--variant {text}: {unknown('name', name, list(KNOBS))}")
        if name in values:
            raise UsageError(f"--variant {text}: {name} is there twice; give it once")
        values[name] = _value(text, name, value)
    if "sars_sign" in values and float(values.get("sars", "0")) == 0:
        raise UsageError(f"--variant {text}: sars_sign needs a weight: add sars=0.1, say")
    changed = {name: value for name, value in values.items() if value != KNOBS[name].default}
    return ",".join(f"{name}={changed[name]}" for name in sorted(changed))


def without(variant: str, name: str) -> str:
    """A canonical variant with the default of ``name``."""
    return ",".join(part for part in variant.split(",") if part.partition("=")[0] != name)


def variant_values(variant: str) -> Mapping[str, str]:
    """What holds under a canonical variant: a value for every name."""
    changed = dict(part.split("=", 1) for part in variant.split(",") if part)
    return {name: changed.get(name, knob.default) for name, knob in KNOBS.items()}


def variant_problem(variant: str, provider: str) -> str:
    """Why a provider's model has nothing that the variant could change; empty where it has."""
    changed = dict(part.split("=", 1) for part in variant.split(",") if part)
    for name in changed:
        served = KNOBS[name].providers
        if name == "router" and "form" in changed:
            continue  # that form has experts
        if served and provider not in served:
            return f"{provider} has no {name} to change: {name} is of {', '.join(served)}"
    found = sorted({"init", "routing"} & changed.keys())
    if found and not _has_bayesian_layers(variant_values(variant)):
        return f"{found[0]} is of sparse Bayesian layers, and the rest of the variant leaves none"
    return ""


def _has_bayesian_layers(values: Mapping[str, str]) -> bool:
    """Whether q, k and v, or the feed-forward, are made by them; experts have none."""
    synthesised = values["synthesis"] != "linear" or values["feed_forward"] == "moie"
    return values["form"] == "blocks" and synthesised


def _value(text: str, name: str, value: str) -> str:
    knob = KNOBS[name]
    if knob.values:
        if value not in knob.values:
            raise UsageError(f"--variant {text}: {unknown(f'value of {name}', value, knob.values)}")
        return value
    try:
        number = float(value)
    except ValueError:
        number = math.nan
    if not (0 <= number < math.inf and (number > 0 or name != "lr")):
        least = "above 0" if name == "lr" else "at least 0"
        raise UsageError(f"--variant {text}: {name}={value} must be a number {least}, like 0.1")
    return repr(number).removesuffix(".0")
