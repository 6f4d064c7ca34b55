"""Per-token gradient norms of neurons and experts, without a gradient per token."""

from __future__ import annotations

from torch import Tensor


def neuron_gradient_norms(
    grad_y: Tensor, weight: Tensor, matmul_input: Tensor
) -> tuple[Tensor, Tensor]:
    """Per-token gradient norms of each neuron of y = weight * (u muᵀ + bias).

    The gradient of one token's mu_j is the product of dL/dvalue_j and u, a matrix of rank one: its
    norm is |dL/dvalue_j| ||u||, and no per-token matrix is ever made. The path through a layer's
    keys is left out.

    Args:
        grad_y: dL/dy [..., d_out].
        weight: the multipliers [..., d_out].
        matmul_input: u [..., d_in], what mu really multiplies.

    Returns:
        |dL/dy_j| and ||dL/dmu_j||, each [..., d_out].
    """
    value_norm = (grad_y * weight).abs()
    return grad_y.abs(), value_norm * matmul_input.norm(dim=-1, keepdim=True)


def expert_gradient_norms(
    grad_y: Tensor, weight: Tensor, matmul_input: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Per-token gradient norms of each expert of y = Σ_e weight_e E_e(x).

    ||dL/dE_e|| = |weight_e| ||dL/dy||; for experts that end in a matrix, E_e(x) = W_e u_e, the norm
    of that matrix's gradient is ||dL/dE_e|| ||u_e||.

    Args:
        grad_y: dL/dy [..., d].
        weight: the experts' weights [..., E].
        matmul_input: u_e of every expert [..., E, h], or one u for all [..., 1, h]; ||u_e|| counts
            as 1 if None.

    Returns:
        ||dL/dE_e|| and ||dL/dW_e||, each [..., E].
    """
    output_norm = weight.abs() * grad_y.norm(dim=-1, keepdim=True)
    if matmul_input is None:
        return output_norm, output_norm
    return output_norm, output_norm * matmul_input.norm(dim=-1)
