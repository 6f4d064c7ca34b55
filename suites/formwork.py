"""What the forms of several blocks cost a token, and the plain blocks of the same cost.

Suite ``layer`` measures FlatDynSIHA and RecursiveDynSIHA in one size: ``BLOCKS`` blocks or steps, a
repository of ``EXPERTS`` head experts and as many MLP experts, of which a token takes ``ACTIVE``.
Provider ``transformer`` beside them is ``BLOCKS`` ordinary blocks with the same attention, whose
feed-forward is as wide as it takes to make its matrix products the same number.
"""

from __future__ import annotations

from dataclasses import dataclass

EXPERTS = 64
ACTIVE = 2
BLOCKS = 2

SIZE = f"{BLOCKS} blocks, {ACTIVE} of {EXPERTS} experts a token"


@dataclass(frozen=True)
class FormCost:
    """Cost of a layer in closed form.

    Attributes:
        products: weights that meet a token in a matrix product, all blocks together.
        parameters: numbers that the layer holds.
        attentions: how often it attends.
    """

    products: int
    parameters: int
    attentions: int = 1


@dataclass(frozen=True)
class FormShape:
    """Width d of the stream, and the heads of the attention."""

    model_dim: int
    q_heads: int
    kv_heads: int
    head_dim: int

    @property
    def heads_weights(self) -> int:
        """Weights of the maps to q, k, v and back to d."""
        return self.model_dim * (2 * self.q_heads + 2 * self.kv_heads) * self.head_dim

    @property
    def expert_width(self) -> int:
        """Hidden width of an MLP expert: all active ones together are 4 d wide, or a little more.

        Grouped matmuls want a multiple of 8.
        """
        return 8 * -(-4 * self.model_dim // (8 * ACTIVE))

    @property
    def plain_width(self) -> int:
        """Hidden width of a plain feed-forward that makes up for routers and second heads."""
        more_heads = (ACTIVE - 1) * self.heads_weights // (2 * self.model_dim)
        return ACTIVE * self.expert_width + more_heads + EXPERTS


def form_cost(
    provider: str, shape: FormShape, *, blocks: int = BLOCKS, experts: int = EXPERTS
) -> FormCost | None:
    """The cost of ``flat``, ``recursive`` or ``transformer``; None for every other provider.

    ``blocks`` and ``experts`` are of the first two; ``transformer`` is in suite ``layer`` alone.
    """
    d, heads, norms = shape.model_dim, shape.heads_weights, 2 * shape.model_dim
    if provider == "transformer":
        block = heads + 2 * d * shape.plain_width
        return FormCost(BLOCKS * block, BLOCKS * (block + norms), BLOCKS)
    if provider not in ("flat", "recursive"):
        return None
    expert = heads + 2 * d * shape.expert_width
    routers = 2 * experts * d
    held = experts * expert + routers + 2 * experts + norms  # two gates an expert
    products = blocks * (ACTIVE * expert + routers)
    # The recursive form has one block, and learns the share of its resident stream.
    return FormCost(products, blocks * held if provider == "flat" else held + 1, blocks)
