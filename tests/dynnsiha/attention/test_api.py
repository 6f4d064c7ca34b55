"""The public operator: every wrong input gets one line that names the argument and the fix."""

import pytest
import torch

from dynnsiha import NSAConfig
from dynnsiha.attention import api, native_sparse_attention

from .graphs import edges_into

Q = torch.randn(1, 130, 4, 8)
K = torch.randn(1, 130, 2, 8)
GATES = torch.rand(1, 130, 4, 3)


def call(q=Q, k=K, v=None, gates=GATES, config=None, **options):
    return native_sparse_attention(q, k, k if v is None else v, gates, config, **options)


def lists(value):
    return torch.full((1, 130, 2, 2), -1).index_fill_(3, torch.tensor([0]), value)


@pytest.mark.parametrize(
    ("arguments", "kind", "message"),
    [
        ({"q": Q[0]}, ValueError, "q: must have 4 dimensions"),
        ({"k": K.double()}, TypeError, "k: has dtype torch.float64, q has torch.float32; cast"),
        ({"v": K[:, :100]}, ValueError, "v: has shape [1, 100, 2, 8], k has [1, 130, 2, 8]"),
        ({"k": K[:, :100]}, ValueError, "k: has shape [1, 100, 2, 8]; batch, seq_len and width"),
        ({"k": torch.randn(1, 130, 3, 8)}, ValueError, "k: has 3 heads; their number must divide"),
        ({"gates": GATES[..., :2]}, ValueError, "gates: has shape [1, 130, 4, 2]; must be"),
        ({"backend": "cuda"}, ValueError, "backend='cuda': must be 'auto' or one of"),
        ({"k_cmp": K[:, :2]}, ValueError, "k_cmp and v_cmp: give both or neither"),
        ({"k_cmp": K, "v_cmp": K}, ValueError, "k_cmp: has shape [1, 130, 2, 8]; must be"),
        ({"block_indices": lists(3)}, ValueError, "block_indices: names a block in the future"),
        ({"block_indices": lists(-2)}, ValueError, "block_indices: names a block in the future or"),
        ({"block_indices": torch.zeros(1, 130, 2, 2)}, TypeError, "block_indices: has dtype"),
        (
            {"block_indices": torch.zeros(1, 130, 2, 2, dtype=torch.int32)},
            ValueError,
            "block_indices: a query lists a block twice",
        ),
        ({"block_indices": lists(0)[:, :9]}, ValueError, "block_indices: has shape [1, 9, 2, 2]"),
        (
            {"block_indices": (lists(0), lists(0))},
            ValueError,
            "must be one tensor for query_tile=1",
        ),
        (
            {"block_indices": lists(0), "config": NSAConfig(query_tile=2)},
            ValueError,
            "must be a pair of shared and private lists for query_tile=2",
        ),
        ({"cu_seqlens": torch.tensor([0, 100])}, ValueError, "must rise from 0 to seq_len=130"),
        ({"cu_seqlens": torch.tensor([0, 90, 40, 130])}, ValueError, "cu_seqlens=[0, 90, 40, 130]"),
        (
            {
                "q": Q.repeat(2, 1, 1, 1),
                "k": K.repeat(2, 1, 1, 1),
                "gates": GATES.repeat(2, 1, 1, 1),
                "cu_seqlens": torch.tensor([0, 130]),
            },
            ValueError,
            "cu_seqlens: packed sequences need batch 1, got 2",
        ),
        (
            {"q": Q[:, :0], "k": K[:, :0], "gates": GATES[:, :0]},
            ValueError,
            "q: has shape [1, 0, 4, 8]; every dimension must be at least 1",
        ),
        (
            {"k_cmp": K[:, :2].double(), "v_cmp": K[:, :2].double()},
            TypeError,
            "k_cmp: is torch.float64 on cpu, k is torch.float32 on cpu; make them alike",
        ),
        ({"block_indices": lists(0)[..., :0]}, ValueError, "block_indices: has no slots"),
        ({"block_indices": lists(0) >= 0}, TypeError, "block_indices: has dtype torch.bool"),
        (
            {"block_indices": (lists(0),), "config": NSAConfig(query_tile=2)},
            ValueError,
            "must be a pair of shared and private lists",
        ),
        ({"cu_seqlens": torch.tensor([0.0, 130.0])}, ValueError, "cu_seqlens: is torch.float32"),
        (
            {"cu_seqlens": torch.tensor([0, 65, 130]), "k_cmp": K[:, :3], "v_cmp": K[:, :3]},
            ValueError,
            "k_cmp: length 3 in dimension 1; these sequences need 2",
        ),
        (
            {"cu_seqlens": torch.tensor([0, 130]), "k_cmp": K[0, 0, 0], "v_cmp": K[:, :2]},
            ValueError,
            "k_cmp: has shape [8]; must have 4 dimensions",
        ),
        (
            {"cu_seqlens": torch.tensor([0, 130]), "block_indices": (lists(0),)},
            ValueError,
            "block_indices: must be one tensor for query_tile=1",
        ),
        (
            {
                "cu_seqlens": torch.tensor([0, 130]),
                "block_indices": [lists(0), [0]],
                "config": NSAConfig(query_tile=2),
            },
            ValueError,
            "block_indices: must be a pair of shared and private lists for query_tile=2",
        ),
        (
            {"block_indices": torch.tensor(0)},
            ValueError,
            "block_indices: has shape []; must have 4 dimensions, [batch, queries, heads, slots]",
        ),
        (
            {"cu_seqlens": torch.tensor([0, 130]), "block_indices": torch.tensor([0])},
            ValueError,
            "block_indices: has shape [1]; must have 4 dimensions, [batch, queries, heads, slots]",
        ),
        ({"block_indices": 0}, ValueError, "block_indices: must be one tensor for query_tile=1"),
        (
            {"cu_seqlens": torch.tensor([0, 65, 130]), "block_indices": lists(0)[:, :99]},
            ValueError,
            "block_indices: length 99 in dimension 1; these sequences need 130",
        ),
    ],
)
def test_wrong_input_gets_one_clear_line(arguments, kind, message):
    with pytest.raises(kind) as error:
        call(**arguments)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_defaults_are_the_default_configuration_on_the_fastest_backend():
    out, aux = call(return_aux=True)
    assert aux.backend == "blockwise"
    assert torch.equal(out, call(config=NSAConfig(), backend="blockwise"))
    torch.testing.assert_close(out, call(scale=8**-0.5))
    assert not torch.allclose(out, call(scale=1.0))


def test_an_automatic_tile_is_resolved_from_the_heads():
    guided = call(config=NSAConfig(query_tile="auto", private_blocks=2), return_aux=True)[1]
    shared, private = guided.block_indices
    assert shared.shape == (1, -(-130 // 32), 2, 14)
    assert private.shape == (1, 130, 2, 2)


@pytest.mark.parametrize("backend", ["reference", "blockwise"])
def test_packed_sequences_are_cut_from_each_operand_once(backend):
    """Each slice would have a gradient as long as all sequences together, most of it zeros."""
    ends = torch.tensor([0, 5, 5, 75, 76, 130])
    leaves = [x.clone().requires_grad_() for x in (Q, K, K, GATES, K[:, :1], K[:, 1:2])]
    q, k, v, gates, k_cmp, v_cmp = leaves
    out = call(q, k, v, gates, backend=backend, cu_seqlens=ends, k_cmp=k_cmp, v_cmp=v_cmp)
    assert [edges_into(leaf, out) for leaf in leaves] == [1] * 6


def test_checks_leave_nothing_to_autograd(monkeypatch):
    seen = []

    def recorded(k_cmp, v_cmp, k, config):
        seen.append((k.shape[1], k.grad_fn))

    monkeypatch.setattr(api, "check_summaries", recorded)
    k = K.clone().requires_grad_()
    call(k=k, cu_seqlens=torch.tensor([0, 60, 130]))
    assert seen == [(60, None), (70, None)]
