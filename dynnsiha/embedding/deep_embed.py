"""DeepEmbed: a feed-forward layer with a learned vector for every token id."""

from __future__ import annotations

import os
from typing import Literal

import torch
from torch import Tensor, nn

from dynnsiha.embedding.checks import require_rows
from dynnsiha.embedding.mapped_table import MappedTable, write_table

DeepEmbedForm = Literal["1x", "4x"]

_EXPANSION = 4


class DeepEmbed(nn.Module):
    """Squared-ReLU feed-forward whose features a table scales, token by token (RWKV-8).

        k(t) = x(t) + mix (x(t - 1) - x(t))                      [B, T, d], the token shift
        "1x": y = (relu(k W_k)² W_v) * E[id]                     E [V, d]
        "4x": y = (relu(k W_k)² * E[id]) W_v                     E [V, 4d]

    E starts as ones: the layer is then the plain feed-forward layer. Each layer of a model has a
    table of its own, large and hardly used: one row a token. So it may stay on disk, see
    `map_table`; then device memory does not depend on V, and the output keeps its bits.

    An id must be known at its own token: a character's, or that of the last completed word.

    Args:
        d_model: d; the hidden width is 4d.
        vocab: V, ids in use.
        form: "1x" scales the output, "4x" the hidden features (more parameters, lower loss).
        table_file: map this file, written by `write_table`, in place of a table of ones in memory.

    Raises:
        ValueError: a size below 1, an unknown form, or a file that holds another table.
        FileNotFoundError: no such table_file.
    """

    table: nn.Embedding | MappedTable

    def __init__(
        self,
        d_model: int,
        vocab: int,
        *,
        form: DeepEmbedForm = "4x",
        table_file: str | os.PathLike[str] | None = None,
    ) -> None:
        super().__init__()
        for name, size in (("d_model", d_model), ("vocab", vocab)):
            if size < 1:
                raise ValueError(f"{name}={size}: must be at least 1")
        if form not in ("1x", "4x"):
            raise ValueError(f"form={form!r}: must be '1x' or '4x'")
        self.d_model, self.vocab = d_model, vocab
        self.form: DeepEmbedForm = form
        self.mix = nn.Parameter(torch.empty(d_model))
        self.key = nn.Linear(d_model, _EXPANSION * d_model, bias=False)
        self.value = nn.Linear(_EXPANSION * d_model, d_model, bias=False)
        if table_file is None:
            self.table = nn.Embedding(vocab, self.table_width)
        else:
            self.table = MappedTable(table_file, vocab, self.table_width)
        self.reset_parameters()

    @property
    def table_width(self) -> int:
        """Numbers in a row of E: d or 4d."""
        return self.d_model * (1 if self.form == "1x" else _EXPANSION)

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Draw the parameters afresh; a table in memory becomes ones, one on disk stays."""
        # From a feature that sees its own token alone to one that sees almost only the last one.
        self.mix.copy_(torch.arange(self.d_model) / self.d_model)
        self.key.reset_parameters()
        self.value.reset_parameters()
        if isinstance(self.table, nn.Embedding):
            nn.init.ones_(self.table.weight)

    def write_table(self, path: str | os.PathLike[str]) -> None:
        """Write the table in memory to a file, in its own dtype.

        Raises:
            ValueError: the table is on disk already.
        """
        if isinstance(self.table, MappedTable):
            raise ValueError(f"the table is already the file {self.table.path}; copy that")
        write_table(path, self.table.weight)

    def map_table(self, path: str | os.PathLike[str], *, name: str | None = None) -> None:
        """Read the table from this file from now on, and free the one in memory.

        The file is one of `write_table`, or a safetensors file with a tensor of this ``name``. The
        table then no longer learns, and is not in ``state_dict()``: keep the file beside it.

        Raises:
            ValueError, FileNotFoundError, ModuleNotFoundError: as `MappedTable`.
        """
        self.table = MappedTable(path, self.vocab, self.table_width, name=name)

    def forward(self, x: Tensor, ids: Tensor, previous: Tensor | None = None) -> Tensor:
        """x [B, T, d] and ids [B, T] → y [B, T, d].

        ``previous`` [B, d] is the x of the token before the first, for a text that continues:
        x[:, -1] of the part before. None stands for zeros, the beginning of a text.

        Raises:
            ValueError: the shapes do not fit, or (on a CPU) an id has no row.
        """
        if x.dim() != 3 or ids.shape != x.shape[:2]:
            raise ValueError(
                f"ids has shape {tuple(ids.shape)}: must be [batch, seq_len] of x {tuple(x.shape)}"
            )
        require_rows(self.vocab, ids, "ids", "raise vocab")
        k = x + (_shifted(x, previous) - x) * self.mix
        hidden = torch.relu(self.key(k)).square()
        rows = self._rows(ids, hidden)
        if self.form == "1x":
            return self.value(hidden) * rows
        return self.value(hidden * rows)

    def _rows(self, ids: Tensor, like: Tensor) -> Tensor:
        """Rows of the ids, [B, T, table_width], with the dtype and on the device of ``like``."""
        if isinstance(self.table, MappedTable):
            return self.table(ids, like.device).to(like.dtype)
        return self.table(ids.to(like.device)).to(like.dtype)

    def extra_repr(self) -> str:
        return f"{self.d_model}, {self.vocab}, form={self.form!r}"


def _shifted(x: Tensor, previous: Tensor | None) -> Tensor:
    """x [B, T, d] one token later: row t holds x(t - 1), row 0 ``previous`` [B, d] or zeros."""
    if previous is None:
        first = x.new_zeros(x.shape[0], 1, x.shape[2])
    elif previous.shape == (x.shape[0], x.shape[2]):
        first = previous.unsqueeze(1).to(x.dtype)
    else:
        raise ValueError(
            f"previous has shape {tuple(previous.shape)}: must be (batch, d_model),"
            f" {(x.shape[0], x.shape[2])}"
        )
    return torch.cat((first, x), dim=1)[:, :-1]
