"""DynSIHA, single form: dense causal attention over synthesised q, k and v."""

from __future__ import annotations

from dynnsiha.forms.layer import (
    AttentionLayer,
    DenseCore,
    HeadLayout,
    Synthesis,
    synthesis_projections,
)
from dynnsiha.synthesis.sbl import Init, Routing


class DynSIHA(AttentionLayer):
    """One SBL makes q, k and v, causal attention reads them, another SBL makes the output.

    x [B, T, d_model] → y [B, T, d_model]. Scale 1 / sqrt(head_dim); rotary positions come after
    synthesis.

    Args:
        d_model: width of x and y.
        heads, kv_heads, head_dim: defaults are one head as wide as the model; kv_heads defaults to
            heads and head_dim to d_model / heads.
        init, routing: of both SBLs, see `SparseBayesianLinear`.
        synthesis: what the first one makes: "all" of q, k and v, or "values" alone, with a plain
            linear map for q and k.
        rotary_base: base of the rotary positions; None for none.

    Raises:
        ValueError: the heads do not fit together, or head_dim is odd with rotary positions.
    """

    def __init__(
        self,
        d_model: int,
        heads: int = 1,
        kv_heads: int | None = None,
        head_dim: int | None = None,
        *,
        init: Init = "calibrated",
        routing: Routing = "dot",
        synthesis: Synthesis = "all",
        rotary_base: float | None = 10_000.0,
    ) -> None:
        layout = HeadLayout.of(d_model, heads, kv_heads, head_dim)
        projections = synthesis_projections(
            d_model, layout, init=init, routing=routing, synthesis=synthesis
        )
        super().__init__(layout, projections, DenseCore(), rotary_base=rotary_base)
