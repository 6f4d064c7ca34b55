"""PTX, NVIDIA's portable assembly: its instructions counted by kind."""

from __future__ import annotations

import re
from collections import Counter

INSTRUCTIONS = {
    "mma_sync": r"mma\.sync",
    "wgmma": r"wgmma\.mma_async",
    "tcgen05": r"tcgen05\.mma",
    "tensor_memory_copy": r"tcgen05\.(?:ld|st|cp)",
    "bulk_copy": r"cp\.(?:reduce\.)?async\.bulk(?:\.tensor|\.shared|\.global)",
    "async_copy": r"cp\.async\.c[ag]",
    "block_barrier": r"(?:bar|barrier)\.(?:cta\.)?(?:sync|arrive|red)",
    "memory_barrier": r"mbarrier\.(?:try_wait|test_wait|arrive)",
    "global_load": r"ld\.(?:\w+\.)*global",
    "global_store": r"st\.(?:\w+\.)*global",
    "shared_load": r"(?:ld\.(?:\w+\.)*shared|ldmatrix)",
    "shared_store": r"(?:st\.(?:\w+\.)*shared|stmatrix)",
    "atomic": r"(?:atom|red)\.(?:\w+\.)*(?:global|shared)",
    "shuffle": r"shfl\.sync",
    "exponential": r"ex2\.",
    "conversion": r"cvt\.",
}
"""Kinds of PTX instructions and what they begin with."""

_INSTRUCTION = re.compile(r"(?<![\w.$%])[a-z]\w*\.[\w.:]+")


def count_instructions(ptx: str) -> dict[str, int]:
    """Instructions of PTX by kind (``INSTRUCTIONS``), comments left out."""
    found = Counter(_INSTRUCTION.findall(re.sub(r"//[^\n]*", "", ptx)))
    return {
        kind: sum(count for name, count in found.items() if re.match(begin, name))
        for kind, begin in INSTRUCTIONS.items()
    }
