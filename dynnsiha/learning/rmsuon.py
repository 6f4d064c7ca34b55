"""RMSuon: Muon's direction with the length of Adam's step."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from dynnsiha.learning.newton_schulz import newton_schulz

STACKED_NUMBERS = 1 << 23
"""Numbers of small parameters that take their step together."""


class RMSuon(Optimizer):
    """Orthogonalised steps for matrices, as long as Adam's would be; AdamW for the rest.

        m̂, v̂  = Adam's moments, bias-corrected
        E      = || m̂ / (sqrt(v̂) + eps) ||_F                      length of Adam's step
        O      = Newton-Schulz(m̂ / ||m̂||_F), five steps            singular values near 1
        p      ← p (1 - lr weight_decay) - lr (E / ||O||_F) O

    A parameter [m, n] is a matrix; one of [E, m, n] is a bank of E matrices, each with its own E, O
    and step count. Every other parameter, and groups with ``orthogonal=False`` (embedding tables,
    say), takes AdamW's step. A gradient that is zero throughout is skipped like a missing one:
    neither the parameter nor its moments change; of a bank, this holds matrix by matrix, so that an
    expert that saw no token stays as it is.

    Args:
        params: parameters or groups; a group may set each option below for itself.
        lr: learning rate, the one that suits AdamW.
        betas: decay of the two moments.
        eps: added to sqrt(v̂).
        weight_decay: decoupled, as in AdamW.
        orthogonal: whether matrices take the orthogonalised step.

    State of a parameter: ``step`` (a count, one per matrix of a bank), ``exp_avg`` and
    ``exp_avg_sq``, named as in Adam.

    Raises:
        ValueError: an option out of range.
        RuntimeError: a sparse gradient.

    Source: docs/learning.md.
    """

    def __init__(
        self,
        params: Iterable[Tensor] | Iterable[dict[str, Any]] | Iterable[tuple[str, Tensor]],
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.01,
        *,
        orthogonal: bool = True,
    ) -> None:
        defaults = {
            "lr": lr,
            "betas": betas,
            "eps": eps,
            "weight_decay": weight_decay,
            "orthogonal": orthogonal,
        }
        super().__init__(params, defaults)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """See `torch.optim.Optimizer.add_param_group`; checks the group's options."""
        options = self.defaults | param_group
        for name in ("lr", "eps", "weight_decay"):
            if not options[name] >= 0:
                raise ValueError(f"{name}={options[name]}: must be at least 0")
        if not all(0 <= beta < 1 for beta in options["betas"]):
            raise ValueError(f"betas={options['betas']}: both must lie in [0, 1)")
        super().add_param_group(param_group)

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Take one step. ``closure`` computes the loss again, with gradients; its value returns."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for parameters in _alike(group["params"]):
                self._update(parameters, group)
        return loss

    def _update(self, parameters: list[Tensor], group: dict[str, Any]) -> None:
        """The step of parameters of one shape, computed as one tensor [n, ...] of all."""
        orthogonal = group["orthogonal"] and parameters[0].dim() in (2, 3)
        grad = _stacked([p.grad for p in parameters if p.grad is not None])
        # One decision, step count and length per matrix, or per parameter for the rest; tensors of
        # [n, E, 1, 1] or with ones behind n, so that nothing is read back from the device.
        dims = (-2, -1) if orthogonal else tuple(range(1, grad.dim()))
        active = (grad != 0).any(dims, keepdim=True) if dims else grad != 0
        states = [self._state(p, active.shape[1:]) for p in parameters]
        changed = [[s[name] for s in states] for name in ("exp_avg", "exp_avg_sq", "step")]
        changed.append(parameters)
        mean, square, count, value = map(_stacked, changed)
        (beta_1, beta_2), lr = group["betas"], group["lr"]
        count = count + active
        mean = torch.where(active, mean.lerp(grad, 1 - beta_1), mean)
        # No lerp: a square beyond the largest number would make the next one inf - inf.
        decayed = torch.addcmul(square * beta_2, grad, grad, value=1 - beta_2)
        square = torch.where(active, decayed, square)

        precision = torch.promote_types(grad.dtype, torch.float32)
        steps = count.clamp(min=1).to(precision)  # 0 where nothing is active, and nothing is used
        mean_hat = mean.to(precision) / (1 - beta_1**steps)
        square_hat = square.to(precision) / (1 - beta_2**steps)
        move = mean_hat / (square_hat.sqrt() + group["eps"])
        if orthogonal:
            length = torch.linalg.matrix_norm(move, keepdim=True)
            direction = newton_schulz(mean_hat)
            norm = torch.linalg.matrix_norm(direction, keepdim=True)
            move = direction * (length / norm.clamp(min=torch.finfo(precision).tiny))
        updated = value.to(precision) * (1 - lr * group["weight_decay"]) - lr * move
        value = torch.where(active, updated.to(value.dtype), value)
        for tensors, new in zip(changed, (mean, square, count, value), strict=True):
            torch._foreach_copy_(tensors, list(new))  # one launch for all of them

    def _state(self, p: Tensor, shape: torch.Size) -> dict[str, Tensor]:
        """The parameter's state, made where it has none yet; ``shape`` is that of its counts."""
        state = self.state[p]
        if not state:
            state["step"] = torch.zeros(shape, dtype=torch.float32, device=p.device)
            state["exp_avg"] = torch.zeros_like(p)
            state["exp_avg_sq"] = torch.zeros_like(p)
        elif state["step"].device != p.device:  # a checkpoint read on another device
            state["step"] = state["step"].to(p.device)
        return state


def _alike(parameters: Iterable[Tensor]) -> list[list[Tensor]]:
    """Parameters with a gradient in lists of one shape, dtype and device, each to be one tensor.

    A small matrix takes longer to launch than to compute, some fifty times a step. Together they
    hold at most STACKED_NUMBERS numbers, and larger ones stay alone: a step takes several times the
    memory of what it computes at once.
    """
    lists: dict[tuple[Any, ...], list[list[Tensor]]] = {}
    for parameter in parameters:
        if parameter.grad is None:
            continue
        if parameter.grad.is_sparse:
            raise RuntimeError(
                "RMSuon takes dense gradients: build the embedding with sparse=False"
            )
        key = (parameter.shape, parameter.dtype, parameter.device)
        found = lists.setdefault(key, [[]])
        if (len(found[-1]) + 1) * parameter.numel() > STACKED_NUMBERS and found[-1]:
            found.append([])
        found[-1].append(parameter)
    return [held for found in lists.values() for held in found]


def _stacked(tensors: list[Tensor]) -> Tensor:
    """[n, ...] of n tensors; of a single one a view."""
    return tensors[0][None] if len(tensors) == 1 else torch.stack(tensors)
