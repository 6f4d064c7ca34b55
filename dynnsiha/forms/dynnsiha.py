"""DynNSIHA: native sparse attention over synthesised q, k and v."""

from __future__ import annotations

from dynnsiha.attention import NSAConfig
from dynnsiha.attention.compression import CompressionFactory
from dynnsiha.forms.layer import AttentionLayer, HeadLayout, Synthesis, synthesis_projections
from dynnsiha.forms.nsa import GateKind, SparseCore
from dynnsiha.synthesis.sbl import Init, Routing


class DynNSIHA(AttentionLayer):
    """SBL → NSA core with parameter-free block summaries → SBL.

    x [B, T, d_model] → y [B, T, d_model]. Fed by `HierarchicalEmbedding`, x holds the word summary
    and so does every key: the mean of a block's keys summarises it without a compression network.

    Args:
        d_model: width of x and y.
        heads, kv_heads, head_dim: defaults are one head as wide as the model; kv_heads defaults to
            heads and head_dim to d_model / heads.
        config: what a query attends to; `NSAConfig.word_guided(heads, kv_heads)` by default.
        backend: see `native_sparse_attention`.
        gates: "sigmoid" or "softmax", see `BranchGates`.
        compression: networks that summarise k and v instead of the mean, to compare with; see
            `SparseCore`.
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
        config: NSAConfig | None = None,
        backend: str = "auto",
        gates: GateKind = "sigmoid",
        compression: CompressionFactory | None = None,
        init: Init = "calibrated",
        routing: Routing = "dot",
        synthesis: Synthesis = "all",
        rotary_base: float | None = 10_000.0,
    ) -> None:
        layout = HeadLayout.of(d_model, heads, kv_heads, head_dim)
        if config is None:
            config = NSAConfig.word_guided(layout.q_heads, layout.kv_heads)
        projections = synthesis_projections(
            d_model, layout, init=init, routing=routing, synthesis=synthesis
        )
        core = SparseCore(
            d_model, layout, config, backend=backend, gates=gates, compression=compression
        )
        super().__init__(layout, projections, core, rotary_base=rotary_base)
