"""A small language model for every form, attention and feed-forward; tests go through all."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from dynnsiha import NSAConfig

EXACT = NSAConfig(
    block_size=16, compress_block=8, compress_stride=4, top_n=4, local_blocks=1, window=24
)
HYBRID = replace(EXACT, compress_block=16, compress_stride=16, query_tile=4, private_blocks=1)
VARIANTS: dict[str, dict[str, Any]] = {
    "dynsiha": {"attention": "dynsiha"},
    "dimension": {"attention": "dimension"},
    "nsa": {"attention": "nsa", "nsa": EXACT},
    "dense": {"attention": "dense"},
    "dynnsiha exact": {"nsa": EXACT},
    "dynnsiha hybrid": {"nsa": HYBRID, "positions": "sinusoidal"},
    "dynnsiha dynamic": {"nsa": replace(HYBRID, top_p=0.5, per_head_lists=True)},
    "dynnsiha values": {"nsa": HYBRID, "synthesis": "values"},
    "dynnsiha compressed": {"nsa": HYBRID, "compression": "mlp"},
    "nsa compressed": {"attention": "nsa", "nsa": EXACT, "compression": "transformer"},
    "moie": {"nsa": HYBRID, "feed_forward": "moie"},
    "deep embed": {"nsa": HYBRID, "feed_forward": "deep_embed"},
    "deep embed 1x": {"attention": "dynsiha", "feed_forward": "deep_embed", "deep_embed": "1x"},
    "flat": {"form": "flat", "attention": "dynsiha", "experts": 4},
    "flat sparse": {"form": "flat", "nsa": EXACT, "experts": 4},
    "recursive": {"form": "recursive", "attention": "dynsiha", "experts": 4},
    "recursive sparse": {"form": "recursive", "nsa": HYBRID, "experts": 4},
    "recursive halting": {
        "form": "recursive",
        "attention": "dynsiha",
        "experts": 4,
        "layers": 3,
        "halt_below": 0.5,
    },
}
every_variant = pytest.mark.parametrize("name", VARIANTS)


def of_experts(name: str) -> bool:
    """Whether a variant has experts: rounding then depends on how many tokens an expert has."""
    return "form" in VARIANTS[name]
