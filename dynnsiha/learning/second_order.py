"""Forward passes whose gradients can be differentiated again."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from dynnsiha.forms.nsa import SparseCore
from dynnsiha.model import DynNSIHALanguageModel


@contextmanager
def twice_differentiable(model: nn.Module) -> Iterator[None]:
    """Inside the block, attention runs in a form that has second-order gradients.

    Fast attention kernels have first-order gradients only. Here torch's own attention runs in its
    math form and the sparse core on its reference backend; both take memory in T². Language models
    keep their activations, whatever ``activation_checkpointing`` says. The backward passes may come
    after the block.
    """
    cores = [module for module in model.modules() if isinstance(module, SparseCore)]
    backends = [core.backend for core in cores]
    wholes = [module for module in model.modules() if isinstance(module, DynNSIHALanguageModel)]
    recomputing = [whole.activation_checkpointing for whole in wholes]
    try:
        for core in cores:
            core.backend = "reference"
        for whole in wholes:  # recomputed after the block, attention would be in another form
            whole.activation_checkpointing = False
        with sdpa_kernel(SDPBackend.MATH):
            yield
    finally:
        for core, backend in zip(cores, backends, strict=True):
            core.backend = backend
        for whole, recompute in zip(wholes, recomputing, strict=True):
            whole.activation_checkpointing = recompute


def is_twice_differentiable(gradient: Tensor) -> bool:
    """Whether all of the graph of a first-order ``gradient`` can be differentiated again.

    A function that forbids it (``once_differentiable``) leaves an error in the graph, on a dead end
    that is never run when gradients of chosen inputs are asked for: the result would then be wrong,
    in silence.
    """
    waiting, seen = [gradient.grad_fn], set()
    while waiting:
        node = waiting.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if node.name().rsplit("::", 1)[-1] in ("Error", "DelayedError"):
            return False
        waiting += [following for following, _ in node.next_functions]
    return True
