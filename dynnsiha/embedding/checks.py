"""Checks of ids and positions before a lookup."""

from __future__ import annotations

import torch
from torch import Tensor


def can_read_values(tensor: Tensor) -> bool:
    """Whether its values may be read back here: on a CPU, outside of a traced graph.

    Elsewhere reading would stall the accelerator, whose own lookup reports bad values anyway, or
    cut the graph in two.
    """
    return tensor.device.type == "cpu" and not torch.compiler.is_compiling()


def require_rows(num_rows: int, ids: Tensor, name: str, fix: str) -> None:
    """See that a table of ``num_rows`` has a row for each of ``ids``, where they can be read.

    Raises:
        ValueError: it has not; the message names the argument, the id and the fix.
    """
    if ids.numel() == 0 or not can_read_values(ids):
        return
    lowest, highest = (int(end) for end in ids.aminmax())
    if lowest < 0 or highest >= num_rows:
        worst = lowest if lowest < 0 else highest
        raise ValueError(f"{name} has {worst}: the table has {num_rows} rows, from 0; {fix}")
