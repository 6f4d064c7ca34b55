"""Triton backend: kernels for NVIDIA GPUs, forward and backward.

One family of kernels a file: ``summaries``, ``compressed``, ``choice``, ``compressed_choice`` (both
in one), ``pairs`` (each block meets the queries that chose it), ``tiles`` (queries walk their
blocks), ``prepare``, and for dk and dv ``keys`` and ``sums``. ``function`` calls them in turn;
``geometry``, ``problem``, ``lists``, ``order``, ``ranking``, ``sources``, ``softmax``, ``walk`` and
``tuning`` are shared. NOTES.md is the log of their speed.
"""

from .function import triton_kernels

__all__ = ["triton_kernels"]
