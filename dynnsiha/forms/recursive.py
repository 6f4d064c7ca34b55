"""DynSIHA, recursive form: one block and one repository of experts, used again and again."""

from __future__ import annotations

from collections.abc import Sequence

from dynnsiha.forms.expert_block import CoreFactory, ExpertBlock
from dynnsiha.forms.layer import DenseCore
from dynnsiha.forms.refine import Halting, RefiningForm, make_block
from dynnsiha.synthesis.routing import Mask, Router


class RecursiveDynSIHA(RefiningForm):
    """T_steps refinements by one block, whose experts every step routes anew.

    x [B, T, d_model] → y [B, T, d_model]: what the steps add to the stream x. It equals
    `FlatDynSIHA` with that many blocks of the same weights; its parameters do not depend on the
    number of steps, which may be changed at any time (``form.steps = 8``). Steps tell themselves
    apart by the stream and by the routers' resident stream alone.

    With halting, a learned confidence in the stream decides how much of the next step's update a
    token takes: going ← going (1 - c), and nothing once that is below ``halt_below``. The token's
    stream then stays as it is, and the steps end when every token has halted. The factors come back
    with the routing; their sum, the expected steps, can be added to a loss.

    Args:
        d_model: width of x and y.
        heads, kv_heads, head_dim: of the head that a token composes, see `ExpertHeads`; defaults
            are one head as wide as the model.
        steps: T_steps.
        experts, active_experts: E and k, for head experts and MLP experts alike.
        expert_width: hidden width of an MLP expert; 4 d_model / k by default.
        router, mask: see `ExpertRouter`.
        alpha: initial share of the routers' resident stream that is kept from step to step, see
            `PrototypeResident`; 0 for the ablation.
        halt_below: bound below which a token halts, in (0, 1); None refines all tokens to the end.
        rotary_base: base of the rotary positions; None for none.
        core: makes the attention, dense by default.

    Raises:
        ValueError: a number below 1, more active experts than experts, heads that do not fit
            together, or alpha or halt_below out of range.
    """

    def __init__(
        self,
        d_model: int,
        heads: int = 1,
        kv_heads: int | None = None,
        head_dim: int | None = None,
        *,
        steps: int = 4,
        experts: int = 16,
        active_experts: int = 2,
        expert_width: int | None = None,
        router: Router = "cpr",
        mask: Mask = "relu",
        alpha: float = 0.5,
        halt_below: float | None = None,
        rotary_base: float | None = 10_000.0,
        core: CoreFactory = DenseCore,
    ) -> None:
        super().__init__()
        if steps < 1:
            raise ValueError(f"steps={steps}: must be at least 1")
        self.steps = steps
        self.block = make_block(
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
        self.halting = None if halt_below is None else Halting(d_model, halt_below)

    @property
    def sequence(self) -> Sequence[ExpertBlock]:
        """See `RefiningForm`."""
        return [self.block] * self.steps

    def extra_repr(self) -> str:
        return f"steps={self.steps}"
