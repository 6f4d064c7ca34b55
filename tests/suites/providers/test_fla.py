import importlib.util
import json
import os
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from dynbench.harness.subject import Unavailable, Unsupported
from dynbench.suites.attention import AttentionCall
from dynbench.suites.catalog import PROVIDERS
from dynbench.suites.plan import PlanOptions, plan
from dynbench.suites.prepare import prepare
from dynbench.suites.providers import fla
from dynbench.suites.providers.base import Provider
from dynbench.suites.providers.loading import load_provider
from dynbench.suites.shapes import Shape
from dynbench.suites.spec import Spec
from dynnsiha.attention import native_sparse_attention

WIDE = Shape("", 32, 2, 64)
BOTH = ("compressed", "selected")


def case_of(provider="fla", seq_len=256, **changes):
    options = {"shapes": (WIDE,), "passes": ("forward",)} | changes
    (case,) = plan(PlanOptions((seq_len,), "cpu", providers=(provider,), **options))
    return case


def test_the_case_is_what_it_computes():
    settings = case_of(query_tiles=(16,), private_blocks=(2,)).settings
    assert (settings["branches"], settings["window"]) == ("compressed,selected", 0)
    assert (settings["lists"], settings["query_tile"], settings["private_blocks"]) == (
        "exact",
        1,
        0,
    )
    assert (settings["compress_block"], settings["compress_stride"]) == (64, 64)
    assert PROVIDERS["fla"].branches == fla.BRANCHES


def test_our_core_can_be_asked_for_the_same_work():
    ours = case_of("dynnsiha", query_tiles=(1,), branches=BOTH)
    assert ours.settings == case_of().settings
    assert ours.workload_id == case_of().workload_id


def test_it_needs_a_gpu():
    with pytest.raises(Unavailable, match="fla needs a CUDA device: use dynnsiha on a CPU"):
        load_provider(Spec.of(case_of()))


def test_without_the_package_the_way_to_it_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "fla", None)
    with pytest.raises(Unavailable, match=r"no fla-core \(.*\): pip install 'dynbench\[peers\]'"):
        fla.import_fla(torch.device("cpu"))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({}, ""),
        ({"shapes": (Shape("", 16, 1, 16),)}, ""),
        ({"shapes": (Shape("", 64, 1, 128),), "top_n": 32}, ""),
        ({"shapes": (Shape("", 32, 4, 64),)}, "8 query heads share .* from 16 on: try --shape"),
        ({"shapes": (Shape("", 48, 2, 64),)}, "24 query heads share"),
        ({"shapes": (Shape("", 16, 1, 192),)}, "head_dim=192: it takes 16 to 128"),
        ({"shapes": (Shape("", 16, 1, 8),)}, "head_dim=8: it takes 16 to 128"),
        ({"top_n": 12}, "top_n=12: .*powers of two up to 32: try --top-n 16"),
        ({"top_n": 64}, "top_n=64"),
        ({"branches": ("selected",)}, "use --branches compressed,selected, or leave it out"),
        ({"branches": ("compressed", "selected", "sliding")}, "branches compressed and selected"),
    ],
)
def test_what_it_does_not_serve_is_said_in_one_line(changes, words):
    found = fla.unserved(Spec.of(case_of(**changes)), 128)
    assert "\n" not in found
    assert re.search(words, found) if words else found == ""


def test_other_lists_and_windows_are_not_served():
    spec = Spec.of(case_of())
    for field in ({"query_tile": 16}, {"compress_stride": 32}, {"local_blocks": 1}, {"top_p": 0.9}):
        other = replace(spec, config=replace(spec.config, **field))
        assert "exact lists" in fla.unserved(other, 128), field


def test_it_has_no_layer():
    with pytest.raises(Unsupported, match="fla has no part in suite layer: use --suite attention"):
        prepare(case_of(suite="layer"))


def tight_lipped(*, honest: bool) -> Provider:
    """Our core as a provider that returns o alone and tells its lists (or others) when asked."""

    def attention(q, k, v, gates, config):
        return native_sparse_attention(q, k, v, gates, config)

    def lists(q, k, v, gates, config):
        _, aux = native_sparse_attention(q, k, v, gates, config, return_aux=True)
        return aux.block_indices if honest else aux.block_indices.flip(1)

    return Provider("tight-lipped 1", attention, sparse=True, lists=lists)


@pytest.mark.parametrize("pass_", ["forward", "forward_backward"])
def test_lists_that_are_told_when_asked_are_checked(pass_):
    case = case_of("dynnsiha", 400, query_tiles=(1,), branches=BOTH, top_n=4, passes=(pass_,))
    call = AttentionCall(Spec.of(case), tight_lipped(honest=True))
    outputs = call.forward() if pass_ == "forward" else call.forward_backward()
    found = call.check(outputs)
    assert found.passed, found
    assert found.rms_error < 1e-5
    assert ", lists" in found.checked
    assert "; branches compressed and selected alone" in found.checked
    assert "unknown" not in found.checked
    facts = call.facts()
    assert facts["mean_blocks"] <= 4
    assert 0 < facts["attended_share"] < 1


def test_lists_that_are_not_the_ones_used_fail():
    case = case_of("dynnsiha", 400, query_tiles=(1,), branches=BOTH, top_n=4)
    call = AttentionCall(Spec.of(case), tight_lipped(honest=False))
    assert not call.check(call.forward()).passed


@pytest.mark.skipif(importlib.util.find_spec("fla") is None, reason="fla-core is not installed")
def test_flas_own_kernels_compute_what_the_reference_does():
    script = Path(__file__).with_name("interpreted_fla.py")
    done = subprocess.run(
        [sys.executable, "-W", "ignore", str(script)],
        env=os.environ | {"TRITON_INTERPRET": "1", "CUDA_VISIBLE_DEVICES": ""},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert not found["problem"]
    assert set(found["errors"]) == {"o", "dq", "dk", "dv", "dgates"}
    assert max(found["errors"].values()) < 1e-5
