"""What the Flat and the Recursive form share: blocks that refine a stream one after another."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from dynnsiha.attention.cache import KVCache
from dynnsiha.forms.block_caches import BlockCaches
from dynnsiha.forms.expert_block import BlockRouting, CoreFactory, ExpertBlock
from dynnsiha.forms.layer import HeadLayout
from dynnsiha.synthesis.routing import Mask, Router

# sigmoid(-2) = 0.12: a new layer hardly halts.
_CONFIDENCE_BIAS = -2.0


@dataclass(frozen=True)
class RefinementRouting:
    """Everything the input decided in a form of several blocks or steps.

    Attributes:
        blocks: routing of each block or step, in its order.
        going: the factor of each step's update, [B, T, steps]: 1, then falling to exactly 0 as the
            token halts. None without halting.
    """

    blocks: tuple[BlockRouting, ...]
    going: Tensor | None = None

    @property
    def expected_steps(self) -> Tensor | None:
        """Sum of ``going``, [B, T], differentiable: what a cost of thinking would count."""
        return None if self.going is None else self.going.sum(-1)


class Halting(nn.Module):
    """How much of a token's refinement is still to come, from a learned confidence in its stream.

        c = sigmoid(w · RMSNorm(x) + b);   going ← going (1 - c), and exactly 0 once below a bound

    Args:
        d_model: width of x.
        below: the bound, in (0, 1).

    Raises:
        ValueError: the bound is out of range.
    """

    def __init__(self, d_model: int, below: float) -> None:
        super().__init__()
        if not 0 < below < 1:
            raise ValueError(f"halt_below={below}: must lie between 0 and 1, or be None")
        self.below = below
        self.confidence = nn.Linear(d_model, 1)
        nn.init.constant_(self.confidence.bias, _CONFIDENCE_BIAS)

    def forward(self, x: Tensor, going: Tensor) -> Tensor:
        """Stream x [B, T, d] after a step, factor of that step [B, T, 1] → factor of the next."""
        normal = F.rms_norm(x, x.shape[-1:], eps=1e-6)
        left = going * torch.sigmoid(-self.confidence(normal)).to(going.dtype)
        return torch.where(left < self.below, torch.zeros_like(left), left)


class RefiningForm(nn.Module):
    """x [B, T, d] → y [B, T, d], the sum of what each block adds to the stream x.

    y is an update like that of any attention layer: the caller adds it to its own residual. A
    subclass names its blocks in order, the same one several times if it likes, and may set
    ``halting``.
    """

    def __init__(self) -> None:
        super().__init__()
        self.halting: Halting | None = None

    @property
    def sequence(self) -> Sequence[ExpertBlock]:
        """The blocks in the order in which they refine."""
        raise NotImplementedError

    def new_cache(
        self,
        batch: int,
        max_len: int,
        *,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
    ) -> BlockCaches:
        """Empty caches, one a block or step, for ``batch`` sequences of up to ``max_len`` tokens.

        dtype and device are those of the parameters unless given.
        """
        return BlockCaches(
            [
                block.heads.new_cache(batch, max_len, dtype=dtype, device=device)
                for block in self.sequence
            ]
        )

    def forward(
        self,
        x: Tensor,
        positions: Tensor | None = None,
        *,
        cache: BlockCaches | None = None,
        return_routing: bool = False,
        recompute: bool = False,
    ) -> Tensor | tuple[Tensor, RefinementRouting]:
        """x [B, T, d], positions [T] or [B, T] → y [B, T, d], and routing if wanted.

        With a ``cache`` from `new_cache`, x are the tokens after those in it, which they see; the
        cache takes them over, all of them or, if the call fails, none, and no gradient flows.
        Without ``positions`` they count on from what the cache holds. ``recompute`` keeps the
        activations of one block at a time: the backward pass computes each again.
        """
        if x.dim() != 3:
            raise ValueError(f"x: must be [batch, seq_len, d_model], got {list(x.shape)}")
        if cache is not None:
            self._require_fit(x, cache)
            positions = cache.positions(x.shape[1]) if positions is None else positions
        keeping = nullcontext() if cache is None else cache.unless_it_fails()
        with keeping, torch.set_grad_enabled(torch.is_grad_enabled() and cache is None):
            y, routing = self._refine(x, positions, cache, return_routing, recompute)
        return (y, routing) if return_routing else y

    def _require_fit(self, x: Tensor, cache: BlockCaches) -> None:
        if len(cache) != len(self.sequence):
            raise ValueError(
                f"cache: is for {len(cache)} blocks, the form has {len(self.sequence)};"
                " make it with new_cache"
            )
        if x.shape[0] != len(cache.lengths):
            raise ValueError(
                f"x: has batch {x.shape[0]}, the cache {len(cache.lengths)}; make them equal"
            )
        cache.require_room(x.shape[1])

    def _refine(
        self,
        x: Tensor,
        positions: Tensor | None,
        cache: BlockCaches | None,
        return_routing: bool,
        recompute: bool,
    ) -> tuple[Tensor, RefinementRouting]:
        blocks = self.sequence
        caches: Sequence[KVCache | None] = [None] * len(blocks) if cache is None else cache.caches
        resident, routings, factors = None, [], []
        going = x.new_ones(*x.shape[:2], 1)
        y: Tensor | None = None
        for block, own_cache in zip(blocks, caches, strict=True):
            stream = x if y is None else x + y
            call = partial(checkpoint, block, use_reentrant=False) if recompute else block
            update, resident, routing = call(
                stream, resident, positions, cache=own_cache, return_routing=return_routing
            )
            if routing is not None:
                routings.append(routing)
            if self.halting is not None:
                update = going * update
            y = update if y is None else y + update
            if self.halting is None:
                continue
            factors.append(going)
            going = self.halting(x + y, going)
            # With a cache the later steps' keys are needed by tokens still to come.
            if cache is None and not torch.compiler.is_compiling() and not bool(going.any()):
                break
        assert y is not None, "a form has at least one block"
        return y, RefinementRouting(tuple(routings), torch.cat(factors, -1) if factors else None)


def make_block(
    d_model: int,
    heads: int,
    kv_heads: int | None,
    head_dim: int | None,
    *,
    experts: int,
    active_experts: int,
    expert_width: int | None,
    router: Router,
    mask: Mask,
    alpha: float,
    rotary_base: float | None,
    core: CoreFactory,
) -> ExpertBlock:
    """One block by the arguments of a form; the width of an expert defaults to 4 d / k.

    All k active experts of a token are then as wide as an ordinary feed-forward layer. The default
    is rounded up to a multiple of 8, which grouped matmuls want.
    """
    if expert_width is None:
        expert_width = 8 * -(-4 * d_model // (8 * max(active_experts, 1)))
    return ExpertBlock(
        d_model,
        HeadLayout.of(d_model, heads, kv_heads, head_dim),
        experts,
        active_experts,
        expert_width,
        router=router,
        mask=mask,
        alpha=alpha,
        core=core(),
        rotary_base=rotary_base,
    )
