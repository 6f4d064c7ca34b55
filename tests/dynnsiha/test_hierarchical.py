"""HierarchicalEmbedding: the sum, its scale, and positions beyond the table."""

from __future__ import annotations

import math

import pytest
import torch
from torch.utils.checkpoint import checkpoint

from dynnsiha.embedding import HierarchicalEmbedding


def _ids(batch: int = 2, seq_len: int = 10) -> tuple[torch.Tensor, torch.Tensor]:
    torch.manual_seed(0)
    return torch.randint(0, 20, (batch, seq_len)), torch.randint(0, 30, (batch, seq_len))


def test_learned_positions_add_three_rows_and_the_bias():
    embedding = HierarchicalEmbedding(8, 20, 30, positions="learned", max_positions=10)
    chars, words = _ids()
    x = embedding(chars, words)
    for b in range(2):
        for t in range(10):
            expected = (
                embedding.char_embed.weight[chars[b, t]]
                + embedding.word_embed.weight[words[b, t]]
                + embedding.pos_embed.weight[t]
                + embedding.bias
            )
            torch.testing.assert_close(x[b, t], expected)


def test_sinusoidal_positions_equal_the_formula():
    embedding = HierarchicalEmbedding(6, 20, 30)
    chars, words = _ids()
    rows = embedding.char_embed(chars) + embedding.word_embed(words)
    added = embedding(chars, words) - rows - embedding.bias
    for t in range(10):
        angles = [t * 10_000 ** (-i / 3) for i in range(3)]
        waves = [math.sin(a) for a in angles] + [math.cos(a) for a in angles]
        expected = torch.tensor(waves) * math.sqrt(2 / 3)
        torch.testing.assert_close(added[0, t], expected, atol=1e-5, rtol=1e-5)


def test_none_adds_no_positions():
    embedding = HierarchicalEmbedding(6, 20, 30, positions="none")
    same = torch.ones(1, 5, dtype=torch.long)
    x = embedding(same, same)
    assert torch.equal(x[:, 0], x[:, 4])
    with_positions = HierarchicalEmbedding(6, 20, 30)(same, same)
    assert not torch.equal(with_positions[:, 0], with_positions[:, 4])


@pytest.mark.parametrize("rms", [1.0, 0.15])
@pytest.mark.parametrize("options", [{}, {"positions": "none"}, {"positions": "learned"}])
def test_scale_at_initialisation(options, rms):
    if options.get("positions") == "learned":
        options = options | {"max_positions": 400}
    torch.manual_seed(0)
    embedding = HierarchicalEmbedding(256, 200, 200, rms=rms, **options)
    ids = torch.randint(0, 200, (4, 400)), torch.randint(0, 200, (4, 400))
    assert float(embedding(*ids).detach().square().mean().sqrt()) == pytest.approx(rms, rel=0.05)
    char, word = embedding.char_embed.weight.std(), embedding.word_embed.weight.std()
    assert float(word / char) == pytest.approx(0.1, rel=0.05)
    assert float(embedding.bias.std() / char) == pytest.approx(1, rel=0.15)


def test_given_positions_continue_a_text():
    embedding = HierarchicalEmbedding(8, 20, 30)
    chars, words = _ids()
    whole = embedding(chars, words)
    part = embedding(chars[:, 6:], words[:, 6:], torch.arange(6, 10))
    assert torch.equal(whole[:, 6:], part)
    per_sequence = torch.stack((torch.arange(6, 10), torch.arange(4)))
    mixed = embedding(chars[:, 6:], words[:, 6:], per_sequence)
    assert torch.equal(mixed[0], part[0])
    assert not torch.equal(mixed[1], part[1])


def test_gradients_reach_the_rows_in_use_and_no_other():
    embedding = HierarchicalEmbedding(8, 20, 30, positions="learned", max_positions=12)
    chars, words = _ids()
    embedding(chars, words).square().sum().backward()
    for table, used in (
        (embedding.char_embed, chars.unique()),
        (embedding.word_embed, words.unique()),
        (embedding.pos_embed, torch.arange(10)),
    ):
        touched = table.weight.grad.abs().sum(dim=-1).nonzero().flatten()
        assert torch.equal(touched, used)


@pytest.mark.parametrize("positions", ["none", "sinusoidal"])
def test_a_character_and_its_word_change_their_own_token_alone(positions):
    embedding = HierarchicalEmbedding(8, 20, 30, positions=positions)
    chars, words = _ids()
    before = embedding(chars, words)
    other_char, other_word = chars.clone(), words.clone()
    other_char[1, 4] = (chars[1, 4] + 1) % 20
    other_word[0, 7] = (words[0, 7] + 1) % 30
    for ids, place in (((other_char, words), [1, 4]), ((chars, other_word), [0, 7])):
        changed = (embedding(*ids) != before).any(dim=-1)
        assert changed.nonzero().tolist() == [place]


def test_positions_beyond_the_table_name_the_fix():
    embedding = HierarchicalEmbedding(8, 20, 30, positions="learned", max_positions=9)
    with pytest.raises(ValueError, match=r"positions has 9: the table has 9 rows.*max_positions"):
        embedding(*_ids())
    assert HierarchicalEmbedding(8, 20, 30)(*_ids(1, 3000)).shape == (1, 3000, 8)


def test_ids_without_a_row_name_the_table():
    embedding = HierarchicalEmbedding(8, 20, 30)
    chars, words = _ids()
    with pytest.raises(ValueError, match=r"word_ids has 30: the table has 30 rows.*num_ids"):
        embedding(chars, torch.full_like(words, 30))
    with pytest.raises(ValueError, match="char_ids has -1: the table has 20 rows"):
        embedding(torch.full_like(chars, -1), words)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"positions": "rotary"}, "positions='rotary': must be"),
        ({"rms": 0.0}, "rms=0.0: must be above 0"),
        ({"positions": "learned"}, "max_positions=None with positions='learned'"),
        ({"max_positions": 8}, "max_positions=8 with positions='sinusoidal'"),
        ({"positions": "learned", "max_positions": 0}, "max_positions=0: must be at least 1"),
        ({"word_vocab": 0}, "word_vocab=0: must be at least 1"),
    ],
)
def test_bad_arguments_name_the_fix(arguments, message):
    with pytest.raises(ValueError, match=message):
        HierarchicalEmbedding(**{"d_model": 8, "char_vocab": 20, "word_vocab": 30} | arguments)


def test_shapes_must_agree():
    chars, words = _ids()
    with pytest.raises(ValueError, match=r"word_ids has shape \(2, 9\)"):
        HierarchicalEmbedding(8, 20, 30)(chars, words[:, :9])


def _marked(every: int = 3) -> torch.Tensor:
    is_patch = torch.zeros(2, 10, dtype=torch.bool)
    is_patch[0, ::every] = True
    is_patch[1, 5:8] = True
    return is_patch


@pytest.mark.parametrize("positions", ["none", "sinusoidal"])
def test_patches_stand_in_place_of_characters(positions):
    embedding = HierarchicalEmbedding(8, 20, 30, positions=positions)
    chars, words = _ids()
    is_patch = _marked()
    patches = torch.randn(7, 8)
    x = embedding(chars, words, patches=patches, is_patch=is_patch)
    plain = embedding(chars, words)
    assert torch.equal(x[~is_patch], plain[~is_patch])
    share = 2 if positions == "none" else 3
    reading_order = [(b, t) for b in range(2) for t in range(10) if is_patch[b, t]]
    for patch, (b, t) in zip(patches, reading_order, strict=True):
        expected = plain[b, t] - embedding.char_embed.weight[chars[b, t]] + patch / share**0.5
        torch.testing.assert_close(x[b, t], expected)
    shaped = embedding(
        chars[1:], words[1:], patches=patches[4:].view(1, 3, 8), is_patch=is_patch[1:]
    )
    assert torch.equal(shaped, x[1:])


def test_patches_keep_unit_variance_and_learn():
    torch.manual_seed(0)
    embedding = HierarchicalEmbedding(1024, 200, 200)
    ids = torch.randint(0, 200, (4, 400)), torch.randint(0, 200, (4, 400))
    is_patch = torch.rand(4, 400) < 0.5
    patches = torch.randn(int(is_patch.sum()), 1024, requires_grad=True)
    x = embedding(*ids, patches=patches, is_patch=is_patch)
    assert float(x[is_patch].detach().square().mean()) == pytest.approx(1.0, abs=0.05)
    x.sum().backward()
    torch.testing.assert_close(patches.grad, torch.full_like(patches, 3**-0.5))
    counts = torch.bincount(ids[0][~is_patch], minlength=200).float()
    torch.testing.assert_close(embedding.char_embed.weight.grad[:, 0], counts)


def test_a_patch_reaches_no_other_token():
    embedding = HierarchicalEmbedding(8, 20, 30)
    chars, words = _ids()
    is_patch = _marked()
    patches = torch.randn(7, 8)
    other = patches.clone()
    other[2] += 1  # the third patch of the first text, at token 6
    before, after = (
        embedding(chars, words, patches=p, is_patch=is_patch) for p in (patches, other)
    )
    assert (before != after).any(dim=-1).nonzero().tolist() == [[0, 6]]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"patches": torch.zeros(7, 8)}, r"is_patch=None: patches and is_patch come together"),
        ({"is_patch": _marked()}, r"patches=None: patches and is_patch come together"),
        ({"patches": torch.zeros(6, 8), "is_patch": _marked()}, r"patches: 6 given, .* marks 7"),
        ({"patches": torch.zeros(8, 8), "is_patch": _marked()}, r"patches: 8 given, .* marks 7"),
        ({"patches": torch.zeros(7, 6), "is_patch": _marked()}, r"patches are 6 wide: must be d_m"),
        (
            {"patches": torch.zeros(7, 8), "is_patch": _marked()[:1]},
            r"is_patch has shape \(1, 10\)",
        ),
    ],
)
def test_patches_that_do_not_fit_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        HierarchicalEmbedding(8, 20, 30)(*_ids(), **options)


@pytest.mark.parametrize("options", [{}, {"positions": "learned", "max_positions": 10}])
def test_compiled_in_one_graph_checkpointed_and_in_low_precision(options):
    embedding = HierarchicalEmbedding(8, 20, 30, **options)
    compiled = torch.compile(embedding, backend="aot_eager", fullgraph=True)
    inputs = {"patches": torch.randn(7, 8), "is_patch": _marked()}
    x = embedding(*_ids(), **inputs)
    torch.testing.assert_close(compiled(*_ids(), **inputs), x)
    assert torch.equal(checkpoint(embedding, *_ids(), use_reentrant=False, **inputs), x)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(embedding(*_ids(), **inputs), x)
    for dtype, tolerance in ((torch.float64, 1e-6), (torch.bfloat16, 0.05)):
        other = embedding.to(dtype)(*_ids(), **inputs)
        assert other.dtype == dtype
        torch.testing.assert_close(other.float(), x, atol=tolerance, rtol=tolerance)


def test_state_dict_round_trip():
    source, target = (HierarchicalEmbedding(8, 20, 30) for _ in range(2))
    target.load_state_dict(source.state_dict())
    assert torch.equal(source(*_ids()), target(*_ids()))
