"""Triton backend: kernels for NVIDIA GPUs, forward and backward.

One family of kernels a file: ``summaries``, ``compressed``, ``choice``, ``pairs`` (key-block-outer),
``tiles`` (query-outer), ``keys`` (dk and dv) and ``prepare``. ``function`` calls them in turn;
``geometry``, ``problem``, ``lists``, ``order`` and ``softmax`` are what they share.
"""

from .function import triton_kernels

__all__ = ["triton_kernels"]
