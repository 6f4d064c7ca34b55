"""The compression networks: windows, no leak, gradients, independent computations of each."""

from functools import partial

import pytest
import torch
import torch.nn.functional as F

from dynnsiha import (
    AttentionPoolCompress,
    ConvLinearCompress,
    GroupedMLPCompress,
    MeanPoolCompress,
    NSAConfig,
    SingleProjectionCompress,
    TransformerCompress,
)
from dynnsiha.attention import native_sparse_attention
from dynnsiha.attention.summaries import mean_summaries, window_count

from .graphs import edges_into

NETWORKS = {
    "mean": MeanPoolCompress,
    "convolution": ConvLinearCompress,
    "attention pool": AttentionPoolCompress,
    "mlp": GroupedMLPCompress,
    "narrow mlp": partial(GroupedMLPCompress, hidden=3),
    "projection": SingleProjectionCompress,
    "transformer": TransformerCompress,
    "deep transformer": partial(TransformerCompress, layers=2, heads=2),
}
KV_HEADS, WIDTH, BLOCK, STRIDE = 3, 4, 8, 4
every_network = pytest.mark.parametrize("name", NETWORKS)


def network(name, block=BLOCK, stride=STRIDE):
    torch.manual_seed(0)
    made = NETWORKS[name](KV_HEADS, WIDTH, block, stride).double()
    with torch.no_grad():  # not the special values of a new network
        for parameter in made.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return made


def tokens(seq_len=45, batch=2, seed=1):
    gen = torch.Generator().manual_seed(seed)
    return torch.randn(batch, seq_len, KV_HEADS, WIDTH, generator=gen, dtype=torch.float64)


@every_network
@pytest.mark.parametrize(("block", "stride"), [(8, 4), (8, 8), (6, 2), (1, 1)])
@pytest.mark.parametrize("seq_len", [0, 1, 7, 8, 9, 45])
def test_one_summary_for_every_complete_window(name, block, stride, seq_len):
    out = network(name, block, stride)(tokens(seq_len))
    assert out.shape == (2, window_count(seq_len, block, stride), KV_HEADS, WIDTH)
    assert out.isfinite().all()


@every_network
def test_a_window_reads_its_own_tokens_and_its_own_head_alone(name):
    x = tokens().requires_grad_()
    out = network(name)(x)
    for w in range(out.shape[1]):
        for head in range(KV_HEADS):
            (grad,) = torch.autograd.grad(out[:, w, head].square().sum(), x, retain_graph=True)
            inside = torch.zeros_like(grad, dtype=torch.bool)
            inside[:, w * STRIDE : w * STRIDE + BLOCK, head] = True
            assert torch.equal(grad != 0, inside)


@every_network
def test_tokens_behind_a_window_change_no_bit_of_it(name):
    x = tokens()
    made = network(name)
    before = made(x)
    for w in (0, 3, 8):
        other = x.clone()
        other[:, w * STRIDE + BLOCK :] = 7.0
        assert torch.equal(made(other)[:, : w + 1], before[:, : w + 1])


@every_network
def test_every_window_is_compressed_alike(name):
    """Summaries of a whole are those of each window alone: nothing depends on its place."""
    x, made = tokens(), network(name)
    out = made(x)
    for w in range(out.shape[1]):
        alone = made(x[:, w * STRIDE : w * STRIDE + BLOCK])
        torch.testing.assert_close(out[:, w : w + 1], alone)


@every_network
def test_gradients_reach_every_parameter_and_are_right(name):
    made = NETWORKS[name](KV_HEADS, WIDTH, 4, 2).double()
    x = tokens(9, batch=1).requires_grad_()
    made(x).square().sum().backward()
    for parameter_name, parameter in made.named_parameters():
        assert parameter.grad is not None, parameter_name
        assert parameter.grad.abs().sum() > 0, parameter_name
    assert torch.autograd.gradcheck(made, [x.detach().requires_grad_()])


@every_network
def test_the_order_inside_a_window_matters_but_to_the_mean(name):
    x, made = tokens(BLOCK), network(name)
    same = torch.allclose(made(x), made(x.flip(1)))
    assert same == (name == "mean")


def test_the_mean_is_the_cores_own():
    x = tokens()
    assert torch.equal(MeanPoolCompress(KV_HEADS, WIDTH, BLOCK, STRIDE)(x), mean_summaries(x, 8, 4))
    assert not list(MeanPoolCompress(KV_HEADS, WIDTH).parameters())


def test_a_new_attention_pool_is_the_mean_with_positions():
    made = AttentionPoolCompress(KV_HEADS, WIDTH, BLOCK, STRIDE).double()
    expected = mean_summaries(tokens(), BLOCK, STRIDE) + made.positions.mean(0)
    torch.testing.assert_close(made(tokens()), expected)


def windows_of(x, w):
    """Tokens of a window, written out: [B, block, K, D]."""
    return x[:, w * STRIDE : w * STRIDE + BLOCK]


def test_convolution_written_out():
    made, x = network("convolution"), tokens()
    kernel = made.convolution.weight.unflatten(0, (KV_HEADS, WIDTH))  # [K, out, in, block]
    bias = made.convolution.bias.unflatten(0, (KV_HEADS, WIDTH))
    for w, summary in enumerate(made(x).unbind(1)):
        positioned = windows_of(x, w) + made.positions
        hidden = F.silu(torch.einsum("bwki,koiw->bko", positioned, kernel) + bias)
        expected = torch.einsum("bki,kij->bkj", hidden, made.weight) + made.bias
        torch.testing.assert_close(summary, expected)


def test_pool_mlp_and_projection_written_out():
    x = tokens()
    for name in ("attention pool", "mlp", "projection"):
        made = network(name)
        for w, summary in enumerate(made(x).unbind(1)):
            for head in range(KV_HEADS):
                rows = windows_of(x, w)[:, :, head] + made.positions[:, head]
                flat = rows.flatten(1)
                if name == "attention pool":
                    weight = (rows @ made.query[head] / WIDTH**0.5).softmax(1)
                    expected = (weight[..., None] * rows).sum(1)
                elif name == "mlp":
                    hidden = F.silu(flat @ made.inner[head] + made.inner_bias[head])
                    expected = hidden @ made.outer[head] + made.outer_bias[head]
                else:
                    expected = flat @ made.weight[head] + made.bias[head]
                torch.testing.assert_close(summary[:, head], expected)


@every_network
def test_packed_sequences_equal_each_alone(name):
    made, x = network(name), tokens(45, batch=1)
    bounds = torch.tensor([0, 20, 20, 23, 45])
    packed = made(x, bounds)
    alone = [made(x[:, begin:end]) for begin, end in ((0, 20), (20, 23), (23, 45))]
    assert torch.equal(packed, torch.cat(alone, 1))
    with pytest.raises(ValueError, match="must rise from 0 to seq_len=45"):
        made(x, torch.tensor([0, 20]))


def test_packed_sequences_are_cut_once():
    """Each slice would have a gradient as long as all sequences together, most of it zeros."""
    x = tokens(45, batch=1).requires_grad_()
    packed = network("projection")(x, torch.tensor([0, 20, 20, 23, 45]))
    assert edges_into(x, packed) == 1


@pytest.mark.parametrize("backend", ["reference", "blockwise", "flex"])
def test_packed_summaries_fit_the_core(backend):
    config = NSAConfig(block_size=8, compress_block=8, compress_stride=4, window=9, top_n=4)
    k = tokens(45, batch=1)
    q, gates = k.repeat_interleave(2, 2), torch.full((1, 45, 6, 3), 0.5, dtype=k.dtype)
    bounds = torch.tensor([0, 20, 45])
    keys, values = network("mlp"), network("transformer")
    with torch.no_grad():
        packed = native_sparse_attention(
            *(q, k, k, gates, config),
            backend=backend,
            cu_seqlens=bounds,
            k_cmp=keys(k, bounds),
            v_cmp=values(k, bounds),
        )
        for begin, end in ((0, 20), (20, 45)):
            at = slice(begin, end)
            part = k[:, at]
            alone = native_sparse_attention(
                *(q[:, at], part, part, gates[:, at], config),
                backend="reference",
                k_cmp=keys(part),
                v_cmp=values(part),
            )
            torch.testing.assert_close(packed[:, at], alone)


@every_network
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_summaries_keep_the_dtype(name, dtype):
    made = network(name)
    exact = made(tokens())
    out = made.to(dtype)(tokens().to(dtype))
    assert out.dtype == dtype
    torch.testing.assert_close(out.double(), exact, rtol=0.1, atol=0.1)
    with torch.autocast("cpu", torch.bfloat16):
        assert made.float()(tokens().to(torch.bfloat16)).dtype == torch.bfloat16


@every_network
@pytest.mark.parametrize(
    ("narrow", "wide"),
    [(torch.bfloat16, torch.float32), (torch.float32, torch.float64)],
    ids=["bf16", "fp32"],
)
def test_tokens_of_a_narrower_dtype_are_summarised_in_that_of_the_network(name, narrow, wide):
    """As a cache of less precision than the layer has; the summaries are rounded once."""
    made, x = network(name).to(wide), tokens().to(narrow)
    out = made(x)
    assert out.dtype == narrow
    torch.testing.assert_close(out, made(x.to(wide)).to(narrow))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: MeanPoolCompress(0, 4), "kv_heads=0: must be at least 1"),
        (lambda: ConvLinearCompress(1, 4, 8, 3), "compress_stride=3: must be a divisor of"),
        (lambda: GroupedMLPCompress(1, 4, hidden=0), "hidden=0: must be at least 1"),
        (lambda: TransformerCompress(1, 4, layers=0), "layers=0: must be at least 1"),
        (lambda: TransformerCompress(1, 4, heads=3), "heads=3: must be a divisor of head_dim=4"),
        (
            lambda: MeanPoolCompress(2, 4)(torch.zeros(1, 9, 3, 4)),
            "x: has shape [1, 9, 3, 4]; must be [batch, seq_len, 2, 4]",
        ),
    ],
)
def test_wrong_arguments_get_one_line(make, message):
    with pytest.raises(ValueError) as error:  # noqa: PT011 - the message is compared below
        make()
    assert message in str(error.value)
    assert "\n" not in str(error.value)
