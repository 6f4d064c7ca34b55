"""From a provider's name to the provider."""

from __future__ import annotations

import importlib
from collections.abc import Iterable
from pathlib import Path

from dynbench.suites.catalog import provider_info
from dynbench.suites.providers.base import Provider
from dynbench.suites.providers.user_file import ProviderFileError, load_file
from dynbench.suites.spec import Spec


def load_provider(spec: Spec, provider_files: Iterable[str | Path] = ()) -> Provider:
    """The provider that a case names: a built-in one, or the file whose stem is its name.

    Raises Unavailable or Unsupported where it cannot serve the case, ProviderFileError for a file
    that is missing or broken.
    """
    info = provider_info(spec.provider)
    if info is not None:
        module = importlib.import_module(f"dynbench.suites.providers.{info.name}")
        return module.load(spec, spec.provider.partition(":")[2])
    paths = {Path(path).stem: Path(path) for path in provider_files}
    if spec.provider not in paths:
        raise ProviderFileError(f"no provider file named {spec.provider}.py was given")
    return load_file(paths[spec.provider])
