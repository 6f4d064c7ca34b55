"""The nearest orthogonal matrix, about, by matrix products alone."""

from __future__ import annotations

import torch
from torch import Tensor

_COEFFICIENTS = (3.4445, -4.7750, 2.0315)


def newton_schulz(matrix: Tensor, steps: int = 5) -> Tensor:
    """Push every singular value of matrix [..., m, n] towards 1, keeping the singular vectors.

    X ← a X + b (X Xᵀ) X + c (X Xᵀ)² X, starting at matrix / ||matrix||_F, whatever its scale: each
    matrix of a batch is first divided by its largest absolute value. With these coefficients five
    steps bring a singular value of 0.01 and more of the norm to between 0.68 and 1.14; smaller
    ones grow about a hundredfold, and zeros stay zeros.

    Args:
        matrix: one matrix or a batch of them; computed in its dtype, float32 or wider is best.
        steps: iterations.

    Returns:
        The shape and dtype of ``matrix``; a zero matrix gives zeros.

    Source: the iteration of the optimizer Muon (Jordan and others, 2024).
    """
    a, b, c = _COEFFICIENTS
    wide = matrix.shape[-2] <= matrix.shape[-1]
    x = matrix if wide else matrix.mT  # the smaller Gram matrix of the two
    # The norm squares its input: entries below 1e-23 would vanish in it, and those above 1e19 be
    # infinite. The largest number first, then.
    for order in (torch.inf, 2):
        size = torch.linalg.vector_norm(x, order, (-2, -1), keepdim=True)
        x = x / size.clamp(min=torch.finfo(x.dtype).tiny)
    shape, x = x.shape, x.reshape(-1, *x.shape[-2:])
    for _ in range(steps):  # sums inside of the products: small matrices are bound by launches
        gram = torch.bmm(x, x.mT)
        polynomial = torch.baddbmm(gram, gram, gram, beta=b, alpha=c)
        x = torch.baddbmm(x, polynomial, x, beta=a)
    x = x.view(shape)
    return x if wide else x.mT
