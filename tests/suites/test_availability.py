from __future__ import annotations

import pytest

from dynbench.suites import availability as module
from dynbench.suites.availability import availability, optional_packages
from dynbench.suites.catalog import provider_names
from dynbench.suites.providers import loading


def test_every_provider_answers():
    found = {answer.name: answer for answer in availability("cpu")}
    assert list(found) == provider_names()
    assert found["sdpa"].version.startswith("torch ")
    assert not found["dynnsiha"].problem
    assert "CUDA" in found["flash"].problem
    assert all(bool(answer.version) != bool(answer.problem) for answer in found.values())


def test_a_broken_package_hides_no_other_provider(monkeypatch):
    load = loading.load_provider

    def broken(spec, *more):
        if spec.provider == "nsa":
            raise OSError("libcuda.so.1: cannot open")
        return load(spec, *more)

    monkeypatch.setattr(loading, "load_provider", broken)
    found = {answer.name: answer for answer in availability("cpu")}
    assert found["nsa"].problem == "broken: OSError: libcuda.so.1: cannot open"
    assert found["sdpa"].version


@pytest.mark.parametrize(("name", "there"), [("pytest", True), ("no-such-package", False)])
def test_optional_packages_say_how_to_get_them(name, there, monkeypatch):
    monkeypatch.setattr(module, "_OPTIONAL", {name: ("a purpose", "quality")})
    (answer,) = optional_packages()
    assert bool(answer.version) == there
    assert there or "pip install 'dynbench[quality]'" in answer.problem
