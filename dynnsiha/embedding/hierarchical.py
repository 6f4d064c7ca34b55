"""Hierarchical embedding: a character, the word that guides it and its position in one vector."""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor, nn

from dynnsiha.embedding.checks import can_read_values, require_rows

PositionKind = Literal["learned", "sinusoidal", "none"]

_WORD_SHARE = 0.1  # of a word's vector at initialisation, over a character's


class HierarchicalEmbedding(nn.Module):
    """x = char_embed[c] + word_embed[w] + pos_embed[t] + bias, once, at the input.

    At initialisation character, position and bias are equal shares of x. Words start a tenth as
    large: rows that are seldom seen are noise until something is learned of them. The bias, which
    all tokens share, stands for those of the layers behind, which have none (docs/findings.md has
    what both are worth). Where a token is a patch of an image or of sound, the patch's vector from
    `PatchEmbedding` stands in place of the character's row.

    Args:
        d_model: width of x.
        char_vocab: character ids, see `character_ids`.
        word_vocab: word ids, `WordSegmenter.num_ids`.
        positions: "sinusoidal" (no parameters, any length), "learned" (a table of ``max_positions``
            rows) or "none" (where attention has rotary positions).
        max_positions: rows of the learned table; only with ``positions="learned"``.
        rms: root mean square of x at initialisation. 1 is what the calibration of
            `SparseBayesianLinear` assumes; where a norm comes between, what matters is how x
            compares to what the layers add to it.

    Raises:
        ValueError: an unknown kind of positions, a size below 1, an rms not above 0, or a
            max_positions that is missing or not used.
    """

    def __init__(
        self,
        d_model: int,
        char_vocab: int,
        word_vocab: int,
        *,
        positions: PositionKind = "sinusoidal",
        max_positions: int | None = None,
        rms: float = 1.0,
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
        if not rms > 0:
            raise ValueError(f"rms={rms}: must be above 0")
        self.d_model, self.positions, self.rms = d_model, positions, rms
        self.char_embed = nn.Embedding(char_vocab, d_model)
        self.word_embed = nn.Embedding(word_vocab, d_model)
        self.pos_embed = nn.Embedding(max_positions, d_model) if max_positions else None
        self.bias = nn.Parameter(torch.empty(d_model))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw the tables and the bias afresh."""
        nn.init.normal_(self.char_embed.weight, std=self._share)
        nn.init.normal_(self.word_embed.weight, std=self._share * _WORD_SHARE)
        if self.pos_embed is not None:
            nn.init.normal_(self.pos_embed.weight, std=self._share)
        nn.init.normal_(self.bias, std=self._share)

    @property
    def _share(self) -> float:
        """Root mean square of the character's, the position's and the bias's part of x."""
        return self.rms / math.sqrt(2 if self.positions == "none" else 3)

    def forward(
        self,
        char_ids: Tensor,
        word_ids: Tensor,
        positions: Tensor | None = None,
        *,
        patches: Tensor | None = None,
        is_patch: Tensor | None = None,
    ) -> Tensor:
        """char_ids, word_ids [B, T], positions [T] or [B, T] (0 ... T - 1 when None) → [B, T, d].

        ``is_patch`` [B, T] marks the tokens that are patches, and ``patches`` [..., d], of unit
        variance, holds their vectors in reading order, sequence by sequence. Their character ids
        are not looked at, but must be ids; their word ids and positions count as every other's.

        Raises:
            ValueError: the shapes differ, one of patches and is_patch is missing, or (on a CPU) an
                id or position has no row or the number of patches is not that of marked tokens.
        """
        if char_ids.shape != word_ids.shape:
            raise ValueError(
                f"word_ids has shape {tuple(word_ids.shape)}: must be that of char_ids,"
                f" {tuple(char_ids.shape)}, one word id for each character"
            )
        require_rows(self.char_embed.num_embeddings, char_ids, "char_ids", "raise char_vocab")
        fix = "word_vocab is WordSegmenter.num_ids"
        require_rows(self.word_embed.num_embeddings, word_ids, "word_ids", fix)
        local = self.char_embed(char_ids)
        if patches is not None or is_patch is not None:
            local = _with_patches(local, patches, is_patch, self._share)
        x = local + self.word_embed(word_ids) + self.bias
        if self.positions == "none":
            return x
        if positions is None:
            positions = torch.arange(char_ids.shape[-1], device=char_ids.device)
        if self.pos_embed is None:
            # Sines have a mean square of one half.
            waves = sinusoidal_positions(positions, self.d_model).to(x.dtype)
            return x + waves * (math.sqrt(2) * self._share)
        fix = "raise max_positions, or use positions='sinusoidal' or 'none'"
        require_rows(self.pos_embed.num_embeddings, positions, "positions", fix)
        return x + self.pos_embed(positions)


def _with_patches(
    rows: Tensor, patches: Tensor | None, is_patch: Tensor | None, scale: float
) -> Tensor:
    """Rows [B, T, d] with the marked ones replaced by patches, each times ``scale``."""
    if patches is None or is_patch is None:
        missing = "patches" if patches is None else "is_patch"
        raise ValueError(f"{missing}=None: patches and is_patch come together")
    if is_patch.shape != rows.shape[:-1]:
        raise ValueError(
            f"is_patch has shape {tuple(is_patch.shape)}: must be that of char_ids,"
            f" {tuple(rows.shape[:-1])}"
        )
    if patches.shape[-1] != rows.shape[-1]:
        raise ValueError(f"patches are {patches.shape[-1]} wide: must be d_model={rows.shape[-1]}")
    if can_read_values(is_patch):
        marked, given = int(is_patch.sum()), patches.shape[:-1].numel()
        if marked != given:
            raise ValueError(f"patches: {given} given, is_patch marks {marked}; give one for each")
    return rows.masked_scatter(is_patch[..., None], (patches * scale).to(rows.dtype))


def sinusoidal_positions(positions: Tensor, width: int) -> Tensor:
    """Sines and cosines of geometric frequencies (arXiv 1706.03762), float32 [..., T, width]."""
    half = (width + 1) // 2
    exponent = torch.arange(half, device=positions.device, dtype=torch.float32) / half
    angle = positions.float()[..., None] * 10_000.0**-exponent
    return torch.cat((angle.sin(), angle.cos()), dim=-1)[..., :width]
