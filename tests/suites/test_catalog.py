import importlib
import subprocess
import sys

import pytest

from dynbench.suites.catalog import (
    PROVIDERS,
    default_providers,
    provider_info,
    provider_names,
    resolve_providers,
    resolve_suite,
)
from dynbench.suites.shapes import UsageError


def test_metadata_modules_import_nothing_heavy():
    code = (
        "import sys, dynbench.suites.catalog, dynbench.suites.shapes, dynbench.suites.plan,"
        "dynbench.suites.work, dynbench.suites.own;"
        "print(sorted({'torch', 'numpy', 'pandas'} & set(sys.modules)))"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "[]"


@pytest.mark.parametrize("name", list(PROVIDERS))
def test_every_provider_has_a_module_with_a_loader(name):
    assert callable(importlib.import_module(f"dynbench.suites.providers.{name}").load)


def test_variants_are_names():
    assert "sdpa:cudnn" in provider_names()
    assert provider_info("sdpa:cudnn") is PROVIDERS["sdpa"]
    assert provider_info("my_kernel") is None


def test_names_resolve_in_order_without_duplicates():
    names = resolve_providers("nsa, sdpa:math,nsa,mine", "attention", "cpu", ("mine",))
    assert names == ("nsa", "sdpa:math", "mine")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("dynnsha", "attention", "cpu"), "unknown provider 'dynnsha': did you mean 'dynnsiha'"),
        (("sdpa:cudn", "attention", "cpu"), "did you mean 'sdpa:cudnn'"),
        (("sdpa:quick", "attention", "cpu"), "unknown provider"),
        ((" , ", "attention", "cpu"), "no provider given"),
        (("sdpa", "atention", "cpu"), "unknown suite 'atention': did you mean 'attention'"),
        (("sdpa", "attention", "gpu"), "unknown device 'gpu'"),
    ],
)
def test_bad_names_get_one_clear_line(arguments, message):
    with pytest.raises(UsageError, match=message) as error:
        resolve_providers(*arguments)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_defaults_resolve_and_hold_the_baseline(device):
    names = default_providers(device)
    assert resolve_providers(",".join(names), "attention", device) == names
    assert "sdpa" in names
    assert all("attention" in PROVIDERS[name.partition(":")[0]].suites for name in names)
    forms = {"dynsiha", "dynnsiha", "nsa", "dimension", "flat", "recursive", "transformer"}
    assert forms <= set(default_providers(device, "layer"))
    assert default_providers(device, "layer")[: len(names)] == names


def test_unknown_suite_lists_what_there_is():
    with pytest.raises(UsageError, match="choose from attention, layer"):
        resolve_suite("xyzzy")
