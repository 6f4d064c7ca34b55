"""Tokens at t and later change nothing before t, not one bit."""

import pytest
import torch

from dynnsiha import DynNSIHAConfig, DynNSIHALanguageModel, WordSegmenter, character_ids
from dynnsiha.attention import native_sparse_attention

from .cases import DEVICE, EXACT, HYBRID, ON_GPU, PAPER
from .oracle import BACKEND, lists_of

LENGTH = 333 if ON_GPU else 150
CUTS = (1, 31, 63, 64, 65, 127, 129, 191, 300) if ON_GPU else (63, 64, 129)


def attend(operands, config):
    with torch.no_grad():
        return native_sparse_attention(*operands, config, backend=BACKEND, return_aux=True)


@pytest.mark.parametrize("kind", [EXACT, PAPER, HYBRID], ids=str)
def test_of_outputs_lists_and_lse(kind):
    case = kind.at(LENGTH)
    operands = case.inputs().operands
    before, aux = attend(operands, case.config)
    for cut in CUTS:
        changed = [x.clone() for x in operands]
        for x, other in zip(changed, case.inputs(seed=9).operands, strict=True):
            x[:, cut:] = other[:, cut:]
        after, other_aux = attend(changed, case.config)
        assert torch.equal(before[:, :cut], after[:, :cut]), f"outputs before {cut}"
        assert torch.equal(aux.lse[:, :cut], other_aux.lse[:, :cut]), f"lse before {cut}"
        tiles = (-(-cut // case.config.query_tile), cut)
        for mine, theirs, rows in zip(lists_of(aux), lists_of(other_aux), tiles, strict=False):
            assert torch.equal(mine[:, :rows], theirs[:, :rows]), f"lists before {cut}"
        assert not torch.equal(before[:, cut:], after[:, cut:])


@pytest.mark.parametrize("kind", [EXACT, HYBRID], ids=str)
def test_of_gradients(kind):
    """A loss on outputs before t has no gradient at t and later."""
    case = kind.at(LENGTH)
    inputs = case.inputs()
    leaves = [x.requires_grad_() for x in inputs.operands]
    out = native_sparse_attention(*leaves, case.config, backend=BACKEND)
    cut = LENGTH - 70
    grad = inputs.grad.clone()
    grad[:, cut:] = 0.0
    for name, x in zip("qkvg", torch.autograd.grad(out, leaves, grad), strict=True):
        assert not x[:, cut:].any(), name
        assert x[:, :cut].any(), name


@pytest.mark.parametrize("kind", [EXACT, HYBRID], ids=str)
def test_of_a_whole_model_with_words(kind, library_source):
    """Embedding of characters and words, synthesis, attention, feed-forward, logits."""
    torch.manual_seed(0)
    segmenter = WordSegmenter.build([library_source], max_words=300, hash_buckets=64)
    config = DynNSIHAConfig(
        char_vocab=256,
        word_vocab=segmenter.num_ids,
        d_model=64,
        layers=2,
        heads=kind.q_heads,
        kv_heads=kind.kv_heads,
        head_dim=kind.head_dim,
        nsa=kind.config,
        backend=BACKEND,
    )
    model = DynNSIHALanguageModel(config).to(DEVICE, kind.dtype)
    text = library_source[2000 : 2000 + 150]

    def logits(text):
        with torch.no_grad():
            ids = character_ids(text, 256), segmenter.segment(text)
            return model(*(x[None].to(DEVICE) for x in ids))

    before = logits(text)
    for cut in (70, 129):
        after = logits(text[:cut] + "#" + text[cut + 1 :])
        assert torch.equal(before[:, :cut], after[:, :cut])
        assert not torch.equal(before[:, cut:], after[:, cut:])
