"""Suites of whole models build the model that a provider's name promises."""

import pytest
import torch

from dynbench.harness.case import Case
from dynbench.harness.subject import Unsupported
from dynbench.suites.models import build_model, model_config
from dynbench.suites.settings import sparse_settings
from dynbench.suites.spec import Spec

WORK = {"batch": 1, "seq_len": 64, "q_heads": 2, "kv_heads": 1, "head_dim": 8, "model_dim": 32}


def spec_of(provider: str, **work) -> Spec:
    workload = WORK | {"layers": 2, "inputs": "text", "seed": 3} | work
    sparse = provider in ("nsa", "dynnsiha")
    settings = sparse_settings(provider, 2, 1, top_n=6, window=32, query_tile=16, private_blocks=1)
    case = Case(
        *("generation", provider, "decode", "cpu", "float32", "wall"),
        workload=workload,
        settings=settings if sparse else {"lists": "dense"},
    )
    return Spec.of(case)


@pytest.mark.parametrize(
    ("provider", "parts"),
    {
        "sdpa": {"attention": "dense", "form": "blocks", "nsa": None},
        "nsa": {"attention": "nsa"},
        "dynsiha": {"attention": "dynsiha"},
        "dynnsiha": {"attention": "dynnsiha"},
        "flat": {"form": "flat", "attention": "dynsiha"},
        "recursive": {"form": "recursive", "attention": "dynsiha"},
    }.items(),
)
def test_a_provider_is_its_model(provider, parts):
    spec = spec_of(provider)
    config = model_config(spec, 50, **({"experts": 4} if "form" in parts else {}))
    assert {name: getattr(config, name) for name in parts} == parts
    if spec.config is not None:
        assert config.nsa == spec.config
    model = build_model(spec, config)
    ids = torch.randint(50, (1, 64))
    with torch.no_grad():
        assert model(ids, ids).shape == (1, 64, 256)
        again = build_model(spec, config)
        assert all(map(torch.equal, model.parameters(), again.parameters()))


def test_what_has_no_model_says_which_have():
    with pytest.raises(Unsupported, match="flex has no language model: use sdpa, nsa"):
        model_config(spec_of("flex"), 50)


def test_a_providers_variant_is_no_model():
    with pytest.raises(Unsupported, match="sdpa:flash: a model takes torch's own choice, use sdpa"):
        model_config(spec_of("sdpa:flash"), 50)


def test_sizes_that_a_model_cannot_have_are_named():
    config = model_config(spec_of("sdpa", head_dim=7), 50)
    with pytest.raises(Unsupported, match="head_dim=7"):
        build_model(spec_of("sdpa", head_dim=7), config)
    with pytest.raises(Unsupported, match="layers=0"):
        model_config(spec_of("sdpa", layers=0), 50)
