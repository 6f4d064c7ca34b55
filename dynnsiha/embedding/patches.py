"""Patches of images and of sound as vectors that stand among characters."""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dynnsiha.embedding.checks import require_rows
from dynnsiha.embedding.hierarchical import PositionKind, sinusoidal_positions

Axes = Literal[1, 2]


class PatchEmbedding(nn.Module):
    """patch [..., patch_width] → linear + where it lies [..., d_model].

    What comes out has unit variance at initialisation for patches of unit mean square, half of it
    from the position, and goes into `HierarchicalEmbedding` as ``patches``. The position here is
    the one inside the image or the sound; that in the sequence is added there.

    Args:
        patch_width: numbers in a patch, such as channels * size * size of an image.
        d_model: width of the vectors.
        axes: coordinates of a position: 1 (sound) or 2 (images), each with a half of d_model where
            positions are sinusoidal.
        positions: "sinusoidal" (no parameters, any place), "learned" (a table of ``max_positions``
            rows for each axis) or "none".
        max_positions: rows of each learned table; only with ``positions="learned"``.

    Raises:
        ValueError: a size below 1, an unknown kind of positions or number of axes, d_model too
            small for two axes, or a max_positions that is missing or not used.
    """

    def __init__(
        self,
        patch_width: int,
        d_model: int,
        *,
        axes: Axes = 1,
        positions: PositionKind = "sinusoidal",
        max_positions: int | None = None,
    ) -> None:
        super().__init__()
        if axes not in (1, 2):
            raise ValueError(f"axes={axes}: must be 1 or 2")
        for name, size, least in (("patch_width", patch_width, 1), ("d_model", d_model, axes)):
            if size < least:
                raise ValueError(f"{name}={size}: must be at least {least}")
        if positions not in ("learned", "sinusoidal", "none"):
            raise ValueError(f"positions={positions!r}: must be 'learned', 'sinusoidal' or 'none'")
        if (max_positions is not None) != (positions == "learned"):
            raise ValueError(
                f"max_positions={max_positions} with positions={positions!r}:"
                " learned tables need a size, the others take none"
            )
        if max_positions is not None and max_positions < 1:
            raise ValueError(f"max_positions={max_positions}: must be at least 1")
        self.patch_width, self.d_model, self.axes = patch_width, d_model, axes
        self.positions = positions
        self.project = nn.Linear(patch_width, d_model)
        self.pos_embed = nn.ModuleList()
        if max_positions is not None:
            self.pos_embed.extend(nn.Embedding(max_positions, d_model) for _ in range(axes))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw the parameters afresh."""
        share = 1.0 if self.positions == "none" else 0.5
        nn.init.normal_(self.project.weight, std=(share / self.patch_width) ** 0.5)
        nn.init.zeros_(self.project.bias)
        for table in self.pos_embed.parameters():
            nn.init.normal_(table, std=(share / self.axes) ** 0.5)

    def forward(self, patches: Tensor, positions: Tensor | None = None) -> Tensor:
        """patches [..., P, patch_width] and where each lies → [..., P, d_model].

        ``positions`` are whole numbers, [..., P] with one axis and [..., P, 2] (row, column) with
        two. With one axis None means 0 ... P - 1.

        Raises:
            ValueError: positions are missing or have another number of axes, or (on a CPU) one
                has no row in a learned table.
        """
        x = self.project(patches)
        if self.positions == "none":
            return x
        if positions is None:
            if self.axes == 2:
                raise ValueError("positions=None: two axes need [..., P, 2], see image_patches")
            positions = torch.arange(patches.shape[-2], device=patches.device)
        if self.axes == 1:
            positions = positions.unsqueeze(-1)
        elif positions.shape[-1] != 2:
            raise ValueError(f"positions has shape {tuple(positions.shape)}: must end in 2")
        along = positions.unbind(dim=-1)
        if self.positions == "sinusoidal":
            # Sines have a mean square of one half, which is their share.
            half = self.d_model // 2
            widths = [self.d_model] if self.axes == 1 else [self.d_model - half, half]
            waves = [sinusoidal_positions(p, w) for p, w in zip(along, widths, strict=True)]
            return x + torch.cat(waves, dim=-1).to(x.dtype)
        for rows, place in zip(self.pos_embed.parameters(), along, strict=True):
            require_rows(rows.shape[0], place, "positions", "raise max_positions")
            x = x + F.embedding(place, rows)
        return x


def image_patches(image: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """Square patches of an image, row by row, and the row and column of each.

    image [..., channels, height, width] → patches [..., P, channels * size * size], positions
    [P, 2], with P = height / size * width / size.

    Raises:
        ValueError: size does not divide height and width.
    """
    height, width = image.shape[-2:]
    if size < 1 or height % size or width % size:
        raise ValueError(f"size={size}: must divide the image's {height} x {width}; pad or crop it")
    rows, columns = height // size, width // size
    tiles = image.unflatten(-1, (columns, size)).unflatten(-3, (rows, size))
    # [..., channels, rows, size, columns, size] → [..., rows, columns, channels, size, size]
    patches = tiles.movedim((-4, -2), (-5, -4)).flatten(-3).flatten(-3, -2)
    row, column = torch.arange(rows), torch.arange(columns)
    return patches, torch.cartesian_prod(row, column).view(-1, 2).to(image.device)


def audio_patches(signal: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """Pieces of a signal in order, and the number of each.

    signal [..., channels, samples] → patches [..., P, channels * size], positions [P], with P =
    samples / size.

    Raises:
        ValueError: size does not divide the number of samples.
    """
    samples = signal.shape[-1]
    if size < 1 or samples % size:
        raise ValueError(f"size={size}: must divide the signal's {samples} samples; pad or crop it")
    pieces = signal.unflatten(-1, (samples // size, size)).movedim(-2, -3)
    return pieces.flatten(-2), torch.arange(samples // size, device=signal.device)
