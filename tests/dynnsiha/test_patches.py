"""Patches: what is cut from an image or a signal, and where each patch lies."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from dynnsiha.embedding import (
    HierarchicalEmbedding,
    PatchEmbedding,
    audio_patches,
    image_patches,
)

VARIANTS = [
    {"axes": axes, "positions": positions}
    | ({"max_positions": 40} if positions == "learned" else {})
    for axes in (1, 2)
    for positions in ("sinusoidal", "learned", "none")
]
every_variant = pytest.mark.parametrize("options", VARIANTS)


def _embedding(d_model: int = 10, patch_width: int = 6, **options) -> PatchEmbedding:
    torch.manual_seed(0)
    return PatchEmbedding(patch_width, d_model, **options)


def _input(axes: int, batch: int = 2, count: int = 7) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    patches = torch.randn(batch, count, 6, generator=generator)
    shape = (batch, count) if axes == 1 else (batch, count, 2)
    return patches, torch.randint(0, 40, shape, generator=generator)


def test_image_patches_equal_slices():
    image = torch.arange(2 * 3 * 6 * 9).view(2, 3, 6, 9)
    patches, positions = image_patches(image, 3)
    assert patches.shape == (2, 6, 27)
    for p in range(6):
        row, column = positions[p].tolist()
        assert (row, column) == divmod(p, 3)
        cut = image[:, :, 3 * row : 3 * row + 3, 3 * column : 3 * column + 3]
        assert torch.equal(patches[:, p], cut.flatten(1))
    assert torch.equal(image_patches(image[0], 3)[0], patches[0])


def test_audio_patches_equal_slices():
    signal = torch.arange(2 * 2 * 12).view(2, 2, 12)
    patches, positions = audio_patches(signal, 4)
    assert patches.shape == (2, 3, 8)
    assert positions.tolist() == [0, 1, 2]
    for p in range(3):
        assert torch.equal(patches[:, p], signal[:, :, 4 * p : 4 * p + 4].flatten(1))


def _waves(position: int, width: int) -> list[float]:
    half = math.ceil(width / 2)
    angles = [position * 10_000 ** (-i / half) for i in range(half)]
    return [*map(math.sin, angles), *map(math.cos, angles)][:width]


@every_variant
def test_output_equals_the_formula_patch_by_patch(options):
    embedding = _embedding(**options)
    patches, positions = _input(options["axes"])
    torch.nn.init.normal_(embedding.project.bias)
    x = embedding(patches, positions).detach()
    for b in range(2):
        for p in range(7):
            expected = embedding.project.weight @ patches[b, p] + embedding.project.bias
            place = positions[b, p].view(-1).tolist()
            if options["positions"] == "learned":
                for table, at in zip(embedding.pos_embed, place, strict=True):
                    expected = expected + table.weight[at]
            elif options["positions"] == "sinusoidal":
                waves = [wave for at in place for wave in _waves(at, 10 // len(place))]
                expected = expected + torch.tensor(waves)
            torch.testing.assert_close(x[b, p], expected.detach(), atol=1e-5, rtol=1e-5)


@every_variant
def test_output_has_unit_variance(options):
    embedding = _embedding(1024, **options)
    patches, positions = _input(options["axes"], batch=8, count=400)
    x = embedding(patches, positions).detach()
    assert float(x.square().mean()) == pytest.approx(1.0, abs=0.08)


@pytest.mark.parametrize("d_model", [2, 3, 9])
@pytest.mark.parametrize("axes", [1, 2])
def test_odd_widths_hold_every_axis(d_model, axes):
    embedding = _embedding(d_model, axes=axes)
    patches, positions = _input(axes)
    x = embedding(patches, positions)
    assert x.shape == (2, 7, d_model)
    moved = positions.clone()
    moved[..., -1] += 1
    assert not torch.equal(embedding(patches, moved), x)


def test_positions_of_a_signal_count_by_themselves():
    embedding = _embedding()
    patches, _ = _input(1)
    assert torch.equal(embedding(patches), embedding(patches, torch.arange(7)))


def test_row_and_column_are_told_apart():
    embedding = _embedding(axes=2)
    patches, positions = _input(2)
    assert not torch.allclose(embedding(patches, positions), embedding(patches, positions.flip(-1)))


@every_variant
def test_gradients_reach_every_parameter(options):
    embedding = _embedding(**options)
    patches, positions = _input(options["axes"])
    embedding(patches.requires_grad_(), positions).square().sum().backward()
    for name, parameter in embedding.named_parameters():
        assert parameter.grad.abs().sum() > 0, name
    assert patches.grad.isfinite().all()


@every_variant
def test_precisions_compilation_checkpointing_and_state(options):
    embedding, other = _embedding(**options), PatchEmbedding(6, 10, **options)
    inputs = _input(options["axes"])
    x = embedding(*inputs)
    assert not torch.equal(other(*inputs), x)
    other.load_state_dict(embedding.state_dict())
    assert torch.equal(other(*inputs), x)
    compiled = torch.compile(embedding, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(*inputs), x)
    assert torch.equal(checkpoint(embedding, *inputs, use_reentrant=False), x)
    with torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(embedding(*inputs).float(), x, atol=0.05, rtol=0.05)
    double = other.double()(inputs[0].double(), inputs[1])
    assert double.dtype == torch.float64
    torch.testing.assert_close(double, x.double(), atol=1e-5, rtol=1e-5)


def test_an_image_with_its_caption_enters_in_one_sequence():
    torch.manual_seed(0)
    patches, positions = image_patches(torch.randn(2, 1, 4, 6), 2)
    vectors = PatchEmbedding(4, 8, axes=2)(patches, positions)
    embedding = HierarchicalEmbedding(8, 20, 30)
    chars, words = torch.randint(0, 20, (2, 10)), torch.randint(0, 30, (2, 10))
    is_patch = (torch.arange(10) < 6).expand(2, 10)
    x = embedding(chars, words, patches=vectors, is_patch=is_patch)
    text = embedding(chars[:, 6:], words[:, 6:], torch.arange(6, 10))
    assert torch.equal(x[:, 6:], text)
    guides = embedding(chars, words) - embedding.char_embed(chars)
    torch.testing.assert_close(x[:, :6], (guides + _in_place_of_characters(vectors))[:, :6])


def _in_place_of_characters(vectors: Tensor) -> Tensor:
    """Patch vectors [B, P, d] at a third of the variance, followed by zeros up to ten tokens."""
    padded = torch.zeros(vectors.shape[0], 10, vectors.shape[-1])
    padded[:, : vectors.shape[1]] = vectors / math.sqrt(3)
    return padded


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: PatchEmbedding(0, 8), r"patch_width=0: must be at least 1"),
        (lambda: PatchEmbedding(4, 1, axes=2), r"d_model=1: must be at least 2"),
        (lambda: PatchEmbedding(4, 8, axes=3), r"axes=3: must be 1 or 2"),
        (lambda: PatchEmbedding(4, 8, positions="rotary"), r"positions='rotary': must be"),
        (lambda: PatchEmbedding(4, 8, positions="learned"), r"max_positions=None with positions"),
        (lambda: PatchEmbedding(4, 8, max_positions=3), r"max_positions=3 with positions='sinus"),
        (
            lambda: PatchEmbedding(4, 8, positions="learned", max_positions=0),
            r"max_positions=0: must be at least 1",
        ),
        (lambda: image_patches(torch.zeros(1, 4, 6), 3), r"size=3: must divide the image's 4 x 6"),
        (lambda: image_patches(torch.zeros(1, 4, 6), 0), r"size=0: must divide"),
        (lambda: audio_patches(torch.zeros(1, 7), 2), r"size=2: must divide the signal's 7"),
        (lambda: _embedding(axes=2)(_input(2)[0]), r"positions=None: two axes need"),
        (lambda: _embedding(axes=2)(*_input(1)), r"positions has shape \(2, 7\): must end in 2"),
        (
            lambda: _embedding(positions="learned", max_positions=6)(_input(1)[0]),
            r"positions has 6: the table has 6 rows, from 0; raise max_positions",
        ),
    ],
)
def test_bad_arguments_name_the_fix(make, message):
    with pytest.raises(ValueError, match=message):
        make()
