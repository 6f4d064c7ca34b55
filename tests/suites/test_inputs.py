import sysconfig
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from dynbench.harness.subject import Unavailable
from dynbench.suites import inputs as inputs_module
from dynbench.suites.inputs import attention_inputs, layer_inputs, source_text
from dynbench.suites.plan import PlanOptions, plan
from dynbench.suites.shapes import Shape
from dynbench.suites.spec import Spec


def spec_of(provider, suite="attention", **changes):
    options = PlanOptions(
        (50,),
        "cpu",
        suite=suite,
        providers=(provider,),
        passes=("backward",),
        shapes=(Shape("", 4, 2, 8),),
        batch=3,
    )
    return Spec.of(plan(replace(options, **changes))[0])


def test_dense_and_sparse_providers_get_the_same_operands():
    dense, sparse = (attention_inputs(spec_of(name)) for name in ("sdpa", "nsa"))
    for name in ("q", "k", "v", "d_out"):
        assert torch.equal(getattr(dense, name), getattr(sparse, name))
    assert dense.gates is None
    assert sparse.gates.shape == (3, 50, 4, 3)
    assert 0 < sparse.gates.min() <= sparse.gates.max() < 1
    assert len(sparse.leaves) == 4
    assert all(leaf.is_leaf and leaf.requires_grad for leaf in sparse.leaves)


def test_layout_in_memory_changes_no_value():
    spec = spec_of("sdpa")
    plain, heads_first = (attention_inputs(spec, heads_first=h) for h in (False, True))
    assert torch.equal(plain.q, heads_first.q)
    assert plain.q.is_contiguous()
    assert heads_first.q.transpose(1, 2).is_contiguous()
    assert heads_first.q.is_leaf


def test_the_seed_is_what_decides():
    one, same, other = (attention_inputs(spec_of("sdpa", seed=s)).q for s in (1, 1, 2))
    assert torch.equal(one, same)
    assert not torch.equal(one, other)


def test_forward_needs_no_gradients():
    inputs = attention_inputs(spec_of("nsa", passes=("forward",)))
    assert inputs.d_out is None
    assert not any(leaf.requires_grad for leaf in inputs.leaves)


def test_source_text_is_the_standard_librarys():
    text = source_text(20_000, seed=0)
    assert len(text) == 20_000
    starts = set()
    for path in Path(sysconfig.get_paths()["stdlib"]).rglob("*.py"):
        with path.open(encoding="utf-8", errors="replace") as file:
            starts.add(file.read(200))
    assert text[:200] in starts
    assert source_text(500, seed=0) == text[:500]
    assert source_text(500, seed=1) != text[:500]


def test_source_text_begins_anew_rather_than_end(monkeypatch, tmp_path):
    for name, text in (("a", "abc"), ("b", "de")):
        (tmp_path / f"{name}.py").write_text(text)
    monkeypatch.setattr(inputs_module.sysconfig, "get_paths", lambda: {"stdlib": str(tmp_path)})
    assert source_text(12, seed=0) in ("abcdeabcdeab", "deabcdeabcde")


def test_a_python_without_sources_is_named(monkeypatch, tmp_path):
    monkeypatch.setattr(inputs_module.sysconfig, "get_paths", lambda: {"stdlib": str(tmp_path)})
    with pytest.raises(Unavailable, match="no sources here: try --inputs normal"):
        source_text(10)


@pytest.mark.parametrize("inputs", ["text", "normal"])
def test_layer_input_has_unit_variance_and_follows_the_seed(inputs):
    one, same, other = (
        layer_inputs(spec_of("sdpa", "layer", seed=s, inputs=inputs, seq_lens=(700,))).x
        for s in (1, 1, 2)
    )
    assert one.shape == (3, 700, 32)
    assert torch.equal(one, same)
    assert not torch.equal(one, other)
    assert 0.8 < one.std().item() < 1.2
