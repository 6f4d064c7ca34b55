"""What passes through the attention of a model in one call: seen by hooks, the model is as ever."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from dynnsiha.forms.dispatch import Dispatch
from dynnsiha.forms.experts import Choice, ExpertRouter
from dynnsiha.forms.layer import AttentionCore, CoreRouting

Chosen = Callable[[str, ExpertRouter, Choice], Choice | None]


@dataclass(frozen=True)
class CoreCall:
    """One call of an attention core: q and o [B, T, H, D], k and v [B, T, K, D]; x [B, T, d]."""

    name: str
    core: AttentionCore
    q: Tensor
    k: Tensor
    v: Tensor
    x: Tensor
    o: Tensor
    routing: CoreRouting


@contextmanager
def watched_cores(model: nn.Module, note: Callable[[CoreCall], None]) -> Iterator[None]:
    """Have ``note`` called with every call of an attention core, in the order of the calls."""
    with ExitStack() as hooks:
        for name, module in model.named_modules():
            if isinstance(module, AttentionCore):
                hooks.enter_context(module.register_forward_hook(_noting(name, note)))
        yield


@contextmanager
def watched_routers(model: nn.Module, note: Chosen) -> Iterator[None]:
    """Have ``note`` called with the name and the choice of every router; it may return another."""
    with ExitStack() as hooks:
        for name, module in model.named_modules():
            if isinstance(module, ExpertRouter):
                hooks.enter_context(module.register_forward_hook(_choosing(name, note)))
        yield


def with_experts(router: ExpertRouter, logits: Tensor, indices: Tensor) -> Choice:
    """The choice of these experts, int64 [B, T, k], with the weights that logits [B, T, E] give."""
    weights = router.prototypes.weights(logits).gather(-1, indices)
    dispatch = Dispatch.of(indices.flatten(0, 1), logits.shape[-1])
    return Choice(logits, indices, weights, dispatch)


def _noting(name: str, note: Callable[[CoreCall], None]) -> Callable[..., None]:
    def hook(core: Any, given: tuple[Tensor, ...], returned: tuple[Tensor, CoreRouting]) -> None:
        q, k, v, x = given
        note(CoreCall(name, core, q, k, v, x, *returned))

    return hook


def _choosing(name: str, note: Chosen) -> Callable[..., Choice | None]:
    def hook(router: Any, given: Any, choice: Choice) -> Choice | None:
        return note(name, router, choice)

    return hook
