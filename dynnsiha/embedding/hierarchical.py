"""Hierarchical embedding: a character, the word that guides it and its position in one vector."""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor, nn

PositionKind = Literal["learned", "sinusoidal", "none"]


class HierarchicalEmbedding(nn.Module):
    """x = char_embed[c] + word_embed[w] + pos_embed[t], once, at the input.

    x has unit variance at initialisation, each part an equal share: what the calibration of
    `SparseBayesianLinear` assumes.

    Args:
        d_model: width of x.
        char_vocab: character ids, see `character_ids`.
        word_vocab: word ids, `WordSegmenter.num_ids`.
        positions: "sinusoidal" (no parameters, any length), "learned" (a table of ``max_positions``
            rows) or "none" (where attention has rotary positions).
        max_positions: rows of the learned table; only with ``positions="learned"``.

    Raises:
        ValueError: an unknown kind of positions, a size below 1, or a max_positions that is missing
            or not used.
    """

    def __init__(
        self,
        d_model: int,
        char_vocab: int,
        word_vocab: int,
        *,
        positions: PositionKind = "sinusoidal",
        max_positions: int | None = None,
    ) -> None:
        super().__init__()
        for name, size in (
            ("d_model", d_model),
            ("char_vocab", char_vocab),
            ("word_vocab", word_vocab),
        ):
            if size < 1:
                raise ValueError(f"{name}={size}: must be at least 1")
        if positions not in ("learned", "sinusoidal", "none"):
            raise ValueError(f"positions={positions!r}: must be 'learned', 'sinusoidal' or 'none'")
        if (max_positions is not None) != (positions == "learned"):
            raise ValueError(
                f"max_positions={max_positions} with positions={positions!r}:"
                " a learned table needs a size, the others take none"
            )
        if max_positions is not None and max_positions < 1:
            raise ValueError(f"max_positions={max_positions}: must be at least 1")
        self.d_model, self.positions = d_model, positions
        self.char_embed = nn.Embedding(char_vocab, d_model)
        self.word_embed = nn.Embedding(word_vocab, d_model)
        self.pos_embed = nn.Embedding(max_positions, d_model) if max_positions else None
        self._parts = 2 if positions == "none" else 3
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw the tables afresh."""
        for table in (self.char_embed, self.word_embed, self.pos_embed):
            if table is not None:
                nn.init.normal_(table.weight, std=self._parts**-0.5)

    def forward(
        self, char_ids: Tensor, word_ids: Tensor, positions: Tensor | None = None
    ) -> Tensor:
        """char_ids, word_ids [B, T], positions [T] or [B, T] (0 ... T - 1 when None) → [B, T, d].

        Raises:
            ValueError: the ids' shapes differ, or (on a CPU) an id or position has no row.
        """
        if char_ids.shape != word_ids.shape:
            raise ValueError(
                f"word_ids has shape {tuple(word_ids.shape)}: must be that of char_ids,"
                f" {tuple(char_ids.shape)}, one word id for each character"
            )
        _require_rows(self.char_embed, char_ids, "char_ids", "raise char_vocab")
        _require_rows(self.word_embed, word_ids, "word_ids", "word_vocab is WordSegmenter.num_ids")
        x = self.char_embed(char_ids) + self.word_embed(word_ids)
        if self.positions == "none":
            return x
        if positions is None:
            positions = torch.arange(char_ids.shape[-1], device=char_ids.device)
        if self.pos_embed is None:
            # Sines have a mean square of one half.
            return x + sinusoidal_positions(positions, self.d_model).to(x.dtype) * math.sqrt(2 / 3)
        fix = "raise max_positions, or use positions='sinusoidal' or 'none'"
        _require_rows(self.pos_embed, positions, "positions", fix)
        return x + self.pos_embed(positions)


def _require_rows(table: nn.Embedding, ids: Tensor, name: str, fix: str) -> None:
    # Reading values back would stall an accelerator, whose own lookup reports them anyway.
    if ids.device.type != "cpu" or ids.numel() == 0:
        return
    lowest, highest = (int(end) for end in ids.aminmax())
    if lowest < 0 or highest >= table.num_embeddings:
        worst = lowest if lowest < 0 else highest
        raise ValueError(
            f"{name} has {worst}: the table has {table.num_embeddings} rows, from 0; {fix}"
        )


def sinusoidal_positions(positions: Tensor, width: int) -> Tensor:
    """Sines and cosines of geometric frequencies (arXiv 1706.03762), float32 [..., T, width]."""
    half = (width + 1) // 2
    exponent = torch.arange(half, device=positions.device, dtype=torch.float32) / half
    angle = positions.float()[..., None] * 10_000.0**-exponent
    return torch.cat((angle.sin(), angle.cos()), dim=-1)[..., :width]
