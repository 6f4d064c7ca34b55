"""HierarchicalEmbedding: the sum, its scale, and positions beyond the table."""

from __future__ import annotations

import math

import pytest
import torch

from dynnsiha.embedding import HierarchicalEmbedding


def _ids(batch: int = 2, seq_len: int = 10) -> tuple[torch.Tensor, torch.Tensor]:
    torch.manual_seed(0)
    return torch.randint(0, 20, (batch, seq_len)), torch.randint(0, 30, (batch, seq_len))


def test_learned_positions_add_three_rows():
    embedding = HierarchicalEmbedding(8, 20, 30, positions="learned", max_positions=10)
    chars, words = _ids()
    x = embedding(chars, words)
    for b in range(2):
        for t in range(10):
            expected = (
                embedding.char_embed.weight[chars[b, t]]
                + embedding.word_embed.weight[words[b, t]]
                + embedding.pos_embed.weight[t]
            )
            torch.testing.assert_close(x[b, t], expected)


def test_sinusoidal_positions_equal_the_formula():
    embedding = HierarchicalEmbedding(6, 20, 30)
    chars, words = _ids()
    added = embedding(chars, words) - embedding.char_embed(chars) - embedding.word_embed(words)
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


@pytest.mark.parametrize("options", [{}, {"positions": "none"}, {"positions": "learned"}])
def test_output_has_unit_variance(options):
    if options.get("positions") == "learned":
        options = options | {"max_positions": 400}
    torch.manual_seed(0)
    embedding = HierarchicalEmbedding(64, 200, 200, **options)
    ids = torch.randint(0, 200, (4, 400)), torch.randint(0, 200, (4, 400))
    assert float(embedding(*ids).detach().square().mean()) == pytest.approx(1.0, abs=0.05)


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


def test_state_dict_round_trip():
    source, target = (HierarchicalEmbedding(8, 20, 30) for _ in range(2))
    target.load_state_dict(source.state_dict())
    assert torch.equal(source(*_ids()), target(*_ids()))
