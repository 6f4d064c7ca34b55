"""What the backend does not serve: one line that names the argument, or blockwise and a warning."""

import warnings
from dataclasses import replace

import pytest
import torch

from dynnsiha import NSAConfig
from dynnsiha.attention import native_sparse_attention

from .cases import DEVICE, EXACT, HYBRID, ON_GPU
from .oracle import BACKEND

CASE = EXACT.at(70)
on_gpu = pytest.mark.skipif(not ON_GPU, reason="needs a CUDA device")
triton_only = pytest.mark.skipif(BACKEND != "triton", reason="limits of the Triton backend")


def operands(case=CASE, dtype=None):
    return [x.to(dtype or case.dtype) for x in case.inputs().operands]


def wrong_lists(value):
    index = torch.full((1, 70, CASE.kv_heads, 2), -1, dtype=torch.int32, device=DEVICE)
    index[..., 0] = value
    return {"block_indices": index}


def refusal(operands, config=CASE.config, backend=BACKEND, **options):
    """The message, which is one line."""
    with pytest.raises((ValueError, TypeError)) as error:
        native_sparse_attention(*operands, config, backend=backend, **options)
    message = str(error.value)
    assert message
    assert "\n" not in message
    return message


def test_mixed_dtypes():
    q, k, v, gates = operands()
    other = torch.float16 if CASE.dtype == torch.bfloat16 else torch.bfloat16
    assert refusal([q, k.to(other), v, gates]).startswith("k: has dtype")
    assert refusal([q, k, v.to(other), gates]).startswith("v: has dtype")


def test_heads_that_do_not_divide():
    q, k, _, gates = operands()
    q = q[:, :, :1].expand(-1, -1, 3, -1)
    k = k[:, :, :1].expand(-1, -1, 2, -1)
    assert "must divide q's 3" in refusal([q, k, k, gates[:, :, :1].expand(-1, -1, 3, -1)])


@pytest.mark.parametrize("value", [1, 2, 10**6, -2])
def test_lists_out_of_range_or_in_the_future(value):
    assert "block_indices: names a block in the future" in refusal(operands(), **wrong_lists(value))


def test_lists_with_a_block_twice():
    twice = torch.zeros(1, 70, CASE.kv_heads, 2, dtype=torch.int32, device=DEVICE)
    assert "block_indices: a query lists a block twice" in refusal(operands(), block_indices=twice)


@triton_only
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_wide_dtypes(dtype):
    message = refusal(operands(dtype=dtype))
    assert message.startswith("q:")
    assert str(dtype) in message


@triton_only
@pytest.mark.parametrize("head_dim", [96, 80, 512])
def test_widths(head_dim):
    message = refusal(operands(replace(CASE, head_dim=head_dim)))
    assert message.startswith("q:")
    assert str(head_dim) in message


@triton_only
def test_large_groups():
    message = refusal(operands(replace(CASE, group=128)))
    assert message.startswith("q:")
    assert "128" in message


@triton_only
def test_scales_that_turn_the_order_of_logits():
    assert refusal(operands(), scale=-0.1).startswith("scale=-0.1")


@triton_only
def test_tensors_on_a_cpu_without_the_interpreter(monkeypatch):
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    message = refusal([x.cpu() for x in operands()])
    assert message.startswith("q:")
    assert "cpu" in message


def test_tensors_of_different_devices():
    q, k, v, gates = operands()
    assert "move them to one device" in refusal([q, k.to("meta"), v.to("meta"), gates])


def attend_automatically(operands, config):
    """The backend that "auto" chose, and the messages of its warnings."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        out, aux = native_sparse_attention(*operands, config, return_aux=True)
        wanted = native_sparse_attention(*operands, config, backend=aux.backend)
    assert torch.equal(out, wanted)
    assert all(issubclass(w.category, UserWarning) for w in caught)
    return aux.backend, [str(w.message) for w in caught]


@on_gpu
@triton_only
@pytest.mark.parametrize("kind", [EXACT, HYBRID], ids=str)
def test_auto_is_triton_on_a_gpu(kind):
    case = kind.at(130)
    assert attend_automatically(operands(case), case.config) == ("triton", [])


@on_gpu
@triton_only
@pytest.mark.parametrize(
    ("case", "dtype", "reason"),
    [
        (replace(CASE, head_dim=96), CASE.dtype, "96"),
        (CASE, torch.float32, "float32"),
        (CASE, torch.float64, "float64"),
    ],
    ids=["D96", "float32", "float64"],
)
def test_auto_falls_back_with_one_warning_that_says_why(case, dtype, reason):
    backend, messages = attend_automatically(operands(case, dtype), case.config)
    assert backend == "blockwise"
    assert len(messages) == 1
    assert reason in messages[0]
    assert "\n" not in messages[0]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_auto_is_blockwise_on_a_cpu_and_says_nothing(dtype, monkeypatch):
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    inputs = [x.cpu() for x in operands(dtype=dtype)]
    assert attend_automatically(inputs, NSAConfig()) == ("blockwise", [])
