"""What kernels can read, told by shapes and strides alone: the tensors here have no memory."""

import pytest
import torch

from dynnsiha.triton_device import kernels_operand


def heads_first(tokens, heads, width, batch=1):
    """[batch, tokens, heads, width] whose heads lie a whole sequence apart."""
    shape = (batch, heads, tokens, width)
    return torch.empty(shape, dtype=torch.float16, device="meta").transpose(1, 2)


@pytest.mark.parametrize("tokens", [1 << 18, (1 << 18) + 5])
def test_heads_whose_offset_has_more_than_32_bits_are_copied(tokens):
    x = heads_first(tokens, 65, 128)
    assert 64 * x.stride(2) >= 2**31
    assert kernels_operand(x).is_contiguous()
    assert kernels_operand(x[0]).is_contiguous()


def test_heads_within_32_bits_are_read_where_they_lie():
    for x in (heads_first(1 << 18, 64, 128), heads_first(1 << 18, 32, 128, batch=4)):
        assert 2**29 < (x.shape[2] - 1) * x.stride(2) < 2**31
        assert kernels_operand(x) is x
    whole = torch.empty(1 << 18, 65, 128, device="meta")  # more than 2^31 numbers, heads together
    assert kernels_operand(whole) is whole
    assert kernels_operand(whole[:, 32:40]).stride() == whole.stride()
    lone = heads_first(1 << 25, 1, 128)  # one head is at no distance
    assert kernels_operand(lone) is lone


def test_tokens_of_a_tile_that_lie_far_apart_are_copied():
    wide = torch.empty(130, (1 << 24) + (1 << 18), device="meta")[:, None, :64]
    assert 127 * wide.stride(0) >= 2**31
    assert kernels_operand(wide).is_contiguous()
    few = wide[:100]
    assert kernels_operand(few) is few


def test_the_last_dimension_becomes_dense():
    x = torch.zeros(5, 8, 3).transpose(1, 2)
    assert kernels_operand(x).is_contiguous()
    assert torch.equal(kernels_operand(x), x)
