"""A plain transformer's attention, in blocks of as many FLOPs as the forms with experts use."""

from __future__ import annotations

from dynbench.suites.formwork import BLOCKS
from dynbench.suites.providers.base import Provider
from dynbench.suites.providers.core import dense_attention
from dynbench.suites.spec import Spec


def load(spec: Spec, variant: str = "") -> Provider:
    """The attention inside; the version tells the number of blocks."""
    return dense_attention(f"{BLOCKS} plain blocks")
