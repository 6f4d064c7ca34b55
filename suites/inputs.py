"""Inputs of a case: drawn from a seed, or read from real text. The same for every provider."""

from __future__ import annotations

import functools
import itertools
import random
import sysconfig
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from dynbench.harness.subject import Unavailable
from dynbench.suites import vocabulary
from dynbench.suites.spec import Spec
from dynnsiha.embedding import HierarchicalEmbedding, WordSegmenter, character_ids

CHAR_VOCAB = vocabulary.CHAR_VOCAB


@dataclass
class AttentionInputs:
    """Operands of one attention call.

    Attributes:
        q: [B, T, H, D]; k, v: [B, T, K, D].
        gates: [B, T, H, 3] in (0, 1), compressed, selected, sliding; None for dense attention.
        d_out: gradient of o, [B, T, H, D]; None for the forward pass.
    """

    q: Tensor
    k: Tensor
    v: Tensor
    gates: Tensor | None
    d_out: Tensor | None

    @property
    def leaves(self) -> tuple[Tensor, ...]:
        """What is differentiated: q, k, v and the gates if there are any."""
        return (self.q, self.k, self.v) + (() if self.gates is None else (self.gates,))


def attention_inputs(spec: Spec, *, heads_first: bool = False) -> AttentionInputs:
    """Independent normal q, k, v and gradient; gates are the sigmoid of a normal.

    Each operand has its own generator, so that dense and sparse providers see the same q, k, v.
    ``heads_first`` lays q, k, v and the gradient out in memory as [B, H, T, D], which is what
    torch's kernels like best; their shape stays [B, T, H, D].
    """
    q_shape = (spec.batch, spec.seq_len, spec.q_heads, spec.head_dim)
    kv_shape = (spec.batch, spec.seq_len, spec.kv_heads, spec.head_dim)

    def operand(index: int, shape: tuple[int, ...], leaf: bool) -> Tensor:
        tensor = _normal(spec, index, shape)
        if heads_first:
            tensor = tensor.transpose(1, 2).contiguous().transpose(1, 2)
        return tensor.requires_grad_(leaf and spec.differentiated)

    gates = None
    if spec.config is not None:
        gates = _normal(spec, 3, (*q_shape[:3], 3)).sigmoid_().requires_grad_(spec.differentiated)
    return AttentionInputs(
        q=operand(0, q_shape, True),
        k=operand(1, kv_shape, True),
        v=operand(2, kv_shape, True),
        gates=gates,
        d_out=operand(4, q_shape, False) if spec.differentiated else None,
    )


@dataclass
class LayerInputs:
    """Input x [B, T, d] of a layer, and the gradient of its output (None for the forward pass)."""

    x: Tensor
    d_out: Tensor | None


def layer_inputs(spec: Spec) -> LayerInputs:
    """x from real text through the hierarchical embedding, or normal; both of unit variance."""
    shape = (spec.batch, spec.seq_len, spec.model_dim)
    x = _normal(spec, 0, shape) if spec.inputs == "normal" else _embedded_text(spec)
    return LayerInputs(
        x=x.requires_grad_(spec.differentiated),
        d_out=_normal(spec, 4, shape) if spec.differentiated else None,
    )


def source_text(characters: int, seed: int = 0) -> str:
    """That many characters of the Python standard library's own source files.

    Files in the order of their paths, starting at one that the seed picks; the text begins anew if
    it is too short. Raises Unavailable where Python came without its sources.
    """
    files = _source_files(sysconfig.get_paths()["stdlib"])
    if not files:
        raise Unavailable("Python's library has no sources here: try --inputs normal")
    start = random.Random(seed).randrange(len(files))
    parts: list[str] = []
    missing = characters
    for path in itertools.islice(itertools.cycle(files), start, None):
        parts.append(path.read_text(encoding="utf-8", errors="replace"))
        missing -= len(parts[-1])
        if missing <= 0:
            break
    return "".join(parts)[:characters]


@functools.cache
def _source_files(root: str) -> tuple[Path, ...]:
    """Source files that are not empty, without tests and what users installed."""
    skipped = {"site-packages", "dist-packages", "test", "tests", "__pycache__", "lib2to3"}
    return tuple(
        path
        for path in sorted(Path(root).rglob("*.py"))
        if not skipped & set(path.relative_to(root).parts) and path.stat().st_size
    )


def _embedded_text(spec: Spec) -> Tensor:
    text = source_text(spec.batch * spec.seq_len, spec.seed)
    segmenter = WordSegmenter.build([text], alignment="completed")
    rows = [text[i * spec.seq_len : (i + 1) * spec.seq_len] for i in range(spec.batch)]
    char_ids = torch.stack([character_ids(row, CHAR_VOCAB) for row in rows])
    word_ids = torch.stack([segmenter.segment(row) for row in rows])
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(spec.seed)
        # No position in the embedding: the layers turn q and k by it.
        embedding = HierarchicalEmbedding(
            spec.model_dim, CHAR_VOCAB, segmenter.num_ids, positions="none"
        )
        embedding = embedding.to(spec.dtype).to(spec.device)
        return embedding(char_ids.to(spec.device), word_ids.to(spec.device))


def _normal(spec: Spec, index: int, shape: tuple[int, ...]) -> Tensor:
    generator = torch.Generator(spec.device).manual_seed(1009 * spec.seed + index)
    return torch.randn(shape, generator=generator, device=spec.device, dtype=spec.dtype)
