"""Variants: one change has one text, and what cannot be meant is refused in one line."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dynbench.suites.quality.variants import (
    KNOBS,
    canonical_variant,
    variant_problem,
    variant_values,
)
from dynbench.suites.shapes import UsageError


def values_of(name):
    knob = KNOBS[name]
    numbers = st.floats(1e-6, 100).map(repr)
    return st.sampled_from(knob.values) if knob.values else numbers


VARIANTS = st.dictionaries(st.sampled_from(sorted(set(KNOBS) - {"sars_sign"})), st.none()).flatmap(
    lambda names: st.fixed_dictionaries({name: values_of(name) for name in names})
)


@given(VARIANTS, st.randoms())
def test_order_and_spelling_do_not_matter(variant, random):
    parts = [f" {name} = {value} " for name, value in variant.items()]
    text = canonical_variant(",".join(parts) or "none")
    random.shuffle(parts)
    assert canonical_variant(",".join(parts) or "none") == text
    assert canonical_variant(text or "none") == text
    held = variant_values(text)
    assert set(held) == set(KNOBS)
    for name, knob in KNOBS.items():
        wanted = variant.get(name, knob.default)
        assert held[name] == wanted if knob.values else float(held[name]) == float(wanted)
    names = [part.split("=")[0] for part in text.split(",") if part]
    assert names == sorted(names)


@pytest.mark.parametrize(
    ("text", "canonical"),
    [
        ("none", ""),
        ("kl=0", ""),
        ("compression=mean,synthesis=sbl", ""),
        ("lr=2e-3", ""),
        ("lr=0.0100,kl=1.0", "kl=1,lr=0.01"),
        ("sars_sign=minus,sars=1e-1", "sars=0.1,sars_sign=minus"),
        ("sars=0.10,sars_sign=plus", "sars=0.1"),
    ],
)
def test_what_changes_nothing_is_not_said(text, canonical):
    assert canonical_variant(text) == canonical


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "'' is no name=value"),
        ("kl", "'kl' is no name=value"),
        ("kl=", "is no name=value"),
        ("kl=0.1,,lr=1", "'' is no name=value"),
        ("compresion=conv", "unknown name 'compresion': did you mean 'compression'"),
        ("compression=convv", "unknown value of compression 'convv': did you mean 'conv'"),
        ("kl=a", "kl=a must be a number at least 0"),
        ("kl=-1", "kl=-1 must be a number at least 0"),
        ("kl=nan", "must be a number"),
        ("kl=inf", "must be a number"),
        ("lr=0", "lr=0 must be a number above 0"),
        ("kl=1,kl=2", "kl is there twice"),
        ("sars_sign=minus", "sars_sign needs a weight"),
        ("sars=0,sars_sign=minus", "sars_sign needs a weight"),
    ],
)
def test_what_cannot_be_meant_is_one_line(text, message):
    with pytest.raises(UsageError) as refusal:
        canonical_variant(text)
    assert message in str(refusal.value)
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize(
    ("variant", "provider", "problem"),
    [
        ("", "sdpa", ""),
        ("compression=conv", "nsa", ""),
        ("compression=conv", "sdpa", "sdpa has no compression to change: compression is of nsa"),
        ("synthesis=linear", "nsa", "nsa has no synthesis"),
        ("router=capr", "flat", ""),
        ("router=capr", "dynnsiha", "dynnsiha has no router"),
        ("form=flat,router=capr", "dynnsiha", ""),
        ("lr=0.1,word_embedding=off", "sliding", ""),
        ("form=flat,routing=cosine", "dynnsiha", "routing is of sparse Bayesian layers, and"),
        ("init=notes,synthesis=linear", "dynnsiha", "init is of sparse Bayesian layers, and"),
        ("init=notes,synthesis=values", "dynnsiha", ""),
        ("feed_forward=moie,init=notes,synthesis=linear", "dynnsiha", ""),
    ],
)
def test_a_provider_without_the_part_says_who_has_it(variant, provider, problem):
    found = variant_problem(variant, provider)
    assert problem in found
    assert bool(found) == bool(problem)
