"""A table that stays on disk, of which only the rows in use reach the device."""

from __future__ import annotations

import os
import pickle
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dynnsiha.optional import safetensors
from dynnsiha.uncompiled import uncompiled


class MappedTable(nn.Module):
    """Rows of a memory-mapped table: ids [...] → rows [..., width].

    The file is mapped, not read: the system fetches the pages of the rows that are asked for, and
    drops them again when memory is short. Neither ``state_dict()`` nor ``to()`` sees the table; it
    is the file. It does not learn.

    Args:
        path: a file that `write_table` wrote, or a safetensors file.
        num_rows, width: the shape that it must have.
        name: of the table in a safetensors file.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it holds no table of this shape.
        ModuleNotFoundError: safetensors is not installed, and a name is given.
    """

    def __init__(
        self, path: str | os.PathLike[str], num_rows: int, width: int, *, name: str | None = None
    ) -> None:
        super().__init__()
        # Absolute, so that a copy in another working directory finds it.
        self.path, self.name = Path(path).absolute(), name
        self.num_rows, self.width = num_rows, width
        self._rows = self._open()

    def _open(self) -> Tensor:
        rows = self._read() if self.name is None else self._read_named(self.name)
        shape = (self.num_rows, self.width)
        if not isinstance(rows, Tensor) or rows.shape != shape or not rows.is_floating_point():
            held = f"{rows.dtype} {list(rows.shape)}" if isinstance(rows, Tensor) else type(rows)
            raise ValueError(f"{self.path} holds {held}: must be a float table of {list(shape)}")
        return rows

    def _read(self) -> Any:
        self._require_file()
        try:
            return torch.load(self.path, map_location="cpu", mmap=True, weights_only=True)
        except (OSError, RuntimeError, pickle.UnpicklingError) as error:
            raise ValueError(f"{self.path} is no table: write one with write_table") from error

    def _read_named(self, name: str) -> Tensor:
        files = safetensors()
        self._require_file()
        try:
            with files.safe_open(self.path, framework="pt", device="cpu") as file:
                rows: Tensor = file.get_tensor(name)  # mapped: nothing is read yet
        except files.SafetensorError as error:
            raise ValueError(f"{self.path} holds no table {name!r}: {error}") from error
        return rows

    def _require_file(self) -> None:
        if not self.path.is_file():
            raise FileNotFoundError(f"{self.path}: no such file")

    def __getstate__(self) -> dict[str, Any]:
        # A copy maps the same file; without this it would hold the table in memory.
        return {name: value for name, value in self.__dict__.items() if name != "_rows"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._rows = self._open()

    @property
    def rows(self) -> Tensor:
        """The whole table [num_rows, width], on the CPU, of which pages are read as it is used."""
        return self._rows

    def forward(self, ids: Tensor, device: torch.device | None = None) -> Tensor:
        """ids [...] → rows [..., width] on ``device`` (that of ids when None), in the file's dtype.

        Each row travels once, however often its id occurs. Ids on the CPU save a wait for the
        device.
        """
        look_up = uncompiled(self._look_up, "how many rows there are depends on the ids")
        return look_up(ids, device)

    def _look_up(self, ids: Tensor, device: torch.device | None) -> Tensor:
        distinct, places = ids.unique(return_inverse=True)
        rows = self._rows.index_select(0, distinct.cpu())
        device = ids.device if device is None else device
        return F.embedding(places.to(device), rows.to(device))

    def extra_repr(self) -> str:
        return f"{self.num_rows}, {self.width}, {str(self.path)!r}"


def write_table(path: str | os.PathLike[str], rows: Tensor) -> None:
    """Write rows [num_rows, width] as a file for `MappedTable`.

    The file is replaced at once: who has the old one mapped keeps reading the old one.
    """
    path = Path(path)
    unfinished = path.with_name(path.name + ".unfinished")
    torch.save(rows.detach().cpu().clone(), unfinished)
    os.replace(unfinished, path)
