"""Character ids: code points, cut off at the size of the table."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor


def character_ids(text: str, char_vocab: int) -> Tensor:
    """Id of every character of ``text``, int64 [len(text)]: its code point, below ``char_vocab``.

    Characters from code point ``char_vocab - 1`` on share that last id. 256 covers Latin-1, 65 536
    the common Chinese characters.

    Raises:
        ValueError: char_vocab is below 2.
    """
    if char_vocab < 2:
        raise ValueError(f"char_vocab={char_vocab}: must be at least 2")
    points = np.frombuffer(text.encode("utf-32-le", "surrogatepass"), dtype="<u4")
    return torch.from_numpy(np.minimum(points, char_vocab - 1).astype(np.int64))
