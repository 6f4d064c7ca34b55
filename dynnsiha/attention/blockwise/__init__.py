"""Fast torch backend: any device and T, forward and backward, memory linear in T.

One chunk of queries at a time goes through the three branches (``compressed``, ``selected`` and
``sliding``, one module each); no tensor of more than a step's size depends on T twice.
"""

from .continued import selected_after
from .function import blockwise

__all__ = ["blockwise", "selected_after"]
