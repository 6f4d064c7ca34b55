"""DynSIHA, flat form: blocks that each have a repository of experts of their own."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

from torch import nn

from dynnsiha.forms.expert_block import CoreFactory, ExpertBlock
from dynnsiha.forms.layer import DenseCore
from dynnsiha.forms.refine import RefiningForm, make_block
from dynnsiha.synthesis.routing import Mask, Router


class FlatDynSIHA(RefiningForm):
    """L blocks, each with its own head experts, MLP experts and routers.

    x [B, T, d_model] → y [B, T, d_model]: what the blocks add to the stream x, one after another.
    Of E experts a token takes k, by its content; the outputs are added with the router's weights.
    Tokens are grouped by expert, so that a token costs as much as k experts.

    Args:
        d_model: width of x and y.
        heads, kv_heads, head_dim: of the head that a token composes, see `ExpertHeads`; defaults
            are one head as wide as the model.
        blocks: L.
        experts, active_experts: E and k, for head experts and MLP experts alike.
        expert_width: hidden width of an MLP expert; 4 d_model / k by default.
        router, mask: see `ExpertRouter`.
        alpha: share of the routers' resident stream that is kept from block to block; 0 routes
            each block by its own input alone.
        rotary_base: base of the rotary positions; None for none.
        core: makes the attention of one block, dense by default.

    Raises:
        ValueError: a number below 1, more active experts than experts, heads that do not fit
            together, or an alpha out of range.
    """

    def __init__(
        self,
        d_model: int,
        heads: int = 1,
        kv_heads: int | None = None,
        head_dim: int | None = None,
        *,
        blocks: int = 2,
        experts: int = 16,
        active_experts: int = 2,
        expert_width: int | None = None,
        router: Router = "cpr",
        mask: Mask = "relu",
        alpha: float = 0.0,
        rotary_base: float | None = 10_000.0,
        core: CoreFactory = DenseCore,
    ) -> None:
        super().__init__()
        if blocks < 1:
            raise ValueError(f"blocks={blocks}: must be at least 1")
        self.blocks = nn.ModuleList(
            make_block(
                *(d_model, heads, kv_heads, head_dim),
                experts=experts,
                active_experts=active_experts,
                expert_width=expert_width,
                router=router,
                mask=mask,
                alpha=alpha,
                rotary_base=rotary_base,
                core=core,
            )
            for _ in range(blocks)
        )

    @property
    def sequence(self) -> Sequence[ExpertBlock]:
        """See `RefiningForm`."""
        return cast("list[ExpertBlock]", list(self.blocks))
