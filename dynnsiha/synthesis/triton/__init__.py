"""Triton kernels of the synthesis: rotary positions in one pass."""

from .rotary import turned

__all__ = ["turned"]
