"""Triton kernels of the forms with experts: who takes which expert, and rows that move there.

``choice`` turns logits into experts, weights and an order, ``cosine`` does so from the router's
input; ``rows`` carries the rows of tokens to their experts and back. What they compute is what
plain torch computes in ``dynnsiha.forms.experts`` and ``dynnsiha.forms.dispatch``, in a few
launches in place of dozens.
"""

from .choice import choose
from .cosine import choose_by_cosine
from .rows import spread, weighted_sum, weighted_sum_backward

__all__ = ["choose", "choose_by_cosine", "spread", "weighted_sum", "weighted_sum_backward"]
