import sys
import types

import pytest
import torch
from torch.nn.attention.flex_attention import flex_attention

from dynbench.harness.subject import Unavailable, Unsupported
from dynbench.suites.plan import PlanOptions, plan
from dynbench.suites.providers import flash
from dynbench.suites.providers.flex import causal_block_mask
from dynbench.suites.providers.loading import load_provider
from dynbench.suites.providers.user_file import ProviderFileError, load_file
from dynbench.suites.rows import dense_rows
from dynbench.suites.shapes import Shape
from dynbench.suites.spec import Spec


def spec_of(provider, **changes):
    options = {"shapes": (Shape("", 4, 2, 16),), "passes": ("forward",)} | changes
    return Spec.of(plan(PlanOptions((64,), "cpu", providers=(provider,), **options))[0])


@pytest.mark.parametrize("variant", ["cudnn", "efficient"])
def test_kernels_that_a_cpu_lacks_are_unsupported_with_torchs_reason(variant):
    with pytest.raises(Unsupported, match=f"sdpa:{variant} on cpu: .*backend") as error:
        load_provider(spec_of(f"sdpa:{variant}"))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("variant", ["", ":flash", ":math"])
def test_sdpa_serves_grouped_heads(variant):
    provider = load_provider(spec_of(f"sdpa{variant}"))
    q, k, v = (torch.randn(2, 70, heads, 16) for heads in (4, 2, 2))
    o = provider.attention(q, k, v)
    torch.testing.assert_close(o, dense_rows(q, k, v, torch.arange(70)))


def test_dynsiha_says_that_it_is_dense_here():
    assert "dense attention by torch" in load_provider(spec_of("dynsiha")).version


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
@pytest.mark.parametrize("seq_len", [1, 127, 128, 129, 500])
def test_the_block_mask_of_flex_is_causal(seq_len):
    q, k, v = (torch.randn(1, 2, seq_len, 8) for _ in "qkv")
    mask = causal_block_mask(seq_len, torch.device("cpu"))
    rows = torch.arange(seq_len)
    wanted = dense_rows(*(x.transpose(1, 2) for x in (q, k, v)), rows).transpose(1, 2)
    torch.testing.assert_close(flex_attention(q, k, v, block_mask=mask), wanted)
    dense_blocks = mask.to_dense()[0, 0].bool()
    assert torch.equal(dense_blocks, torch.ones_like(dense_blocks).tril())


def fake_module(monkeypatch, name, function):
    module = types.ModuleType(name)
    if function is not None:
        module.flash_attn_func = function
    monkeypatch.setitem(sys.modules, name, module)


@pytest.mark.parametrize(
    ("capability", "present", "number"),
    [
        (9, {"flash_attn.cute", "flash_attn_interface", "flash_attn"}, 4),
        (9, {"flash_attn_interface", "flash_attn"}, 3),
        (9, {"flash_attn"}, 2),
        (8, {"flash_attn.cute", "flash_attn_interface", "flash_attn"}, 2),
        (10, {"flash_attn_interface", "flash_attn"}, 2),
    ],
)
def test_the_newest_flash_attention_that_serves_the_gpu_is_taken(
    monkeypatch, capability, present, number
):
    for generation in flash.GENERATIONS:
        function = torch.relu if generation.module in present else None
        fake_module(monkeypatch, generation.module, function)
    found, _ = flash._import(capability)
    assert found[0].number == number


def test_without_any_flash_attention_the_reasons_are_named(monkeypatch):
    for generation in flash.GENERATIONS:
        monkeypatch.setitem(sys.modules, generation.module, None)
    found, missing = flash._import(9)
    assert found is None
    assert all(f"FlashAttention {n}: " in missing for n in (4, 3, 2))
    assert "\n" not in missing


def test_flash_attention_3_is_for_hopper_alone(monkeypatch):
    fake_module(monkeypatch, "flash_attn_interface", lambda: None)
    for name in ("flash_attn.cute", "flash_attn"):
        monkeypatch.setitem(sys.modules, name, None)
    found, missing = flash._import(10)
    assert found is None
    assert "FlashAttention 3 does not serve compute capability 10" in missing


def test_flash_needs_a_gpu():
    with pytest.raises(Unavailable, match="flash needs a CUDA device"):
        load_provider(spec_of("flash"))


def write(tmp_path, text):
    path = tmp_path / "mine.py"
    path.write_text(text)
    return path


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "import no_such_package\ndef attention(): ...",
            r"mine\.py line 1: ModuleNotFoundError: No",
        ),
        ("def attention(): ...\nraise ValueError('a\\nb')", r"mine\.py line 2: ValueError: a$"),
        ("attention = 3", r"mine\.py: attention is not a function"),
        ("x = 3", r"mine\.py has no function attention"),
        ("from math import *", r"mine\.py: attention is not a function"),
    ],
)
def test_a_broken_file_is_one_line(tmp_path, text, message):
    with pytest.raises(ProviderFileError, match=message) as error:
        load_file(write(tmp_path, text))
    assert "\n" not in str(error.value)


def test_a_file_may_import_its_neighbours_and_define_dataclasses(tmp_path):
    (tmp_path / "my_helper_module.py").write_text("def double(x): return 2 * x")
    text = (
        "from __future__ import annotations\nfrom dataclasses import dataclass\n"
        "from my_helper_module import double\n@dataclass\nclass A:\n    x: int\n"
        "def attention(q, k, v): return double(q), A(1)"
    )
    provider = load_file(write(tmp_path, text))
    assert provider.attention(2, None, None) == 4
    assert provider.version.startswith("mine.py sha256:")
    assert not provider.sparse


def test_the_version_follows_the_files_content(tmp_path):
    one = load_file(write(tmp_path, "def attention(q, k, v): return q")).version
    other = load_file(write(tmp_path, "def attention(q, k, v): return k")).version
    assert one != other
