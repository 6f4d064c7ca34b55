import pytest
import torch
import torch.nn.functional as F

from dynbench.suites import rows as rows_module
from dynbench.suites.rows import Slice, cut, dense_rows, key_reference, row_reference
from dynnsiha.attention import NSAConfig, native_sparse_attention


def operands(q_heads=4, kv_heads=2, seq_len=40, batch=2):
    torch.manual_seed(0)
    q = torch.randn(batch, seq_len, q_heads, 8, dtype=torch.float64)
    k, v = (torch.randn(batch, seq_len, kv_heads, 8, dtype=torch.float64) for _ in "kv")
    return q, k, v, torch.rand(batch, seq_len, q_heads, 3, dtype=torch.float64)


def whole(q, k, v):
    heads_first = [x.transpose(1, 2) for x in (q, k, v)]
    return F.scaled_dot_product_attention(*heads_first, is_causal=True, enable_gqa=True).transpose(
        1, 2
    )


def test_dense_rows_are_rows_of_dense_attention():
    q, k, v, _ = operands()
    chosen = torch.tensor([0, 3, 17, 39])
    torch.testing.assert_close(dense_rows(q, k, v, chosen), whole(q, k, v)[:, chosen])


def test_gradients_of_all_rows_are_those_of_autograd(monkeypatch):
    monkeypatch.setitem(rows_module.CHUNK_ELEMENTS, "cpu", 300)  # several chunks
    q, k, v, _ = operands()
    d_out = torch.randn_like(q)
    leaves = [x.clone().requires_grad_() for x in (q, k, v)]
    dq, dk, dv = torch.autograd.grad(whole(*leaves), leaves, d_out)
    part = cut(q, k, v, None, None, None, 1, 1)
    found = row_reference(part, d_out[1:, :, 2:], torch.arange(40), torch.float64)
    torch.testing.assert_close(found["dq"], dq[1:, :, 2:])
    torch.testing.assert_close(found["dk"], dk[1:, :, 1:])
    torch.testing.assert_close(found["dv"], dv[1:, :, 1:])


def test_gradients_of_keys_need_their_queries_alone():
    q, k, v, _ = operands(q_heads=2, kv_heads=1, batch=1)
    d_out = torch.randn_like(q)
    part = Slice(q, k, v)
    every = row_reference(part, d_out, torch.arange(40), torch.float64)
    keys = torch.tensor([25, 30, 39])
    found = key_reference(part, d_out, keys, 25, torch.float64)
    torch.testing.assert_close(found["dk"], every["dk"][:, keys])
    torch.testing.assert_close(found["dv"], every["dv"][:, keys])


@pytest.mark.parametrize("tile", [1, 4])
def test_a_sparse_slice_follows_its_lists(tile):
    q, k, v, gates = operands()
    config = NSAConfig(8, 8, 8, top_n=4, window=5, query_tile=tile, private_blocks=1)
    o, aux = native_sparse_attention(q, k, v, gates, config, backend="reference", return_aux=True)
    part = cut(q, k, v, gates, config, aux.block_indices, 1, 1)
    chosen = torch.tensor([0, 8, 21, 39])
    torch.testing.assert_close(part.attend(chosen), o[1:, chosen, 2:])
