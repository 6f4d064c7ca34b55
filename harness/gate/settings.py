"""What a gate goes by: thresholds, rounds and limits, and the TOML file that sets them."""

from __future__ import annotations

import dataclasses
import difflib
import fnmatch
import json
import tomllib
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dynbench.harness.gate.errors import SettingsError
from dynbench.harness.schema import MAX_OTHER_CPU_SHARE


@dataclass(frozen=True)
class Override:
    """Other limits for the cases whose label matches ``case`` (shell wildcards) or whose id begins
    with it; None leaves the limit as it is."""

    case: str
    threshold: float | None = None
    floor_us: float | None = None


@dataclass(frozen=True)
class Settings:
    """Everything that decides a verdict.

    Attributes:
        threshold: slow-down that blocks, as a share of the baseline (0.03 is 3 %).
        floor_us: smallest difference that counts, in microseconds.
        confidence: of each one-sided bound, and of all cases together (Holm).
        margin, power: a slow-down of threshold + margin is to be found with this probability;
            the number of rounds follows from it and from the noise of the first rounds.
        min_rounds, max_rounds: fewest and most rounds; a round is four processes.
        retest: whether flagged cases are measured again before they block.
        quick: few samples in each process (noise lies between processes, not within).
        timeout_s: limit of one case in one process.
        assumed_noise: standard deviation between processes of a latency's logarithm, believed where
            each side has one process only.
        max_throttled_share: share of a row's samples that may be throttled.
        tolerated_throttling: reasons of throttling that do not count.
        max_other_cpu_share: share of the host's CPUs that others may use while a CPU is measured.
        strict: whether ambiguous verdicts block.
        run: options of ``dynbench run`` that say what is measured where no baseline does.
        override: other limits for some cases; the last match counts.
    """

    threshold: float = 0.03
    floor_us: float = 1.0
    confidence: float = 0.95
    margin: float = 0.02
    power: float = 0.95
    min_rounds: int = 4
    max_rounds: int = 16
    retest: bool = True
    quick: bool = True
    timeout_s: float = 600.0
    assumed_noise: float = 0.05
    max_throttled_share: float = 0.1
    tolerated_throttling: tuple[str, ...] = ("sw_power_cap",)
    max_other_cpu_share: float = MAX_OTHER_CPU_SHARE
    strict: bool = False
    run: Mapping[str, Any] = field(default_factory=dict)
    override: tuple[Override, ...] = ()

    def __post_init__(self) -> None:
        for name, (low, high) in _RANGES.items():
            _check_range(name, getattr(self, name), low, high)
        for override in self.override:
            for name in ("threshold", "floor_us"):
                value = getattr(override, name)
                if value is not None:
                    _check_range(f"override {override.case!r}: {name}", value, *_RANGES[name])
        if self.max_rounds < self.min_rounds:
            raise SettingsError(
                f"max_rounds = {self.max_rounds}: must be at least min_rounds = {self.min_rounds}"
            )

    def limits(self, case_id: str, label: str) -> tuple[float, float]:
        """Threshold and floor (in microseconds) of one case."""
        threshold, floor_us = self.threshold, self.floor_us
        for override in self.override:
            if names_case(override.case, case_id, label):
                threshold = threshold if override.threshold is None else override.threshold
                floor_us = floor_us if override.floor_us is None else override.floor_us
        return threshold, floor_us


_RANGES: dict[str, tuple[float, float]] = {
    "threshold": (0.0, 10.0),
    "floor_us": (0.0, 1e9),
    "confidence": (0.5, 0.9999),
    "margin": (0.001, 10.0),
    "power": (0.5, 0.9999),
    "min_rounds": (2, 1000),
    "max_rounds": (2, 1000),
    "timeout_s": (0.1, 1e6),
    "assumed_noise": (1e-4, 1.0),
    "max_throttled_share": (0.0, 1.0),
    "max_other_cpu_share": (0.0, 1.0),
}
_LEAST_PREFIX = 4
_SHOWN = 12


def names_case(pattern: str, case_id: str, label: str) -> bool:
    """Whether a pattern means this case: wildcards on the label, or the beginning of its id."""
    if len(pattern) >= _LEAST_PREFIX and case_id.startswith(pattern):
        return True
    return fnmatch.fnmatchcase(label, pattern)


def read_settings(path: Path) -> Settings:
    """The settings in a TOML file, defaults where it says nothing.

    Raises SettingsError for a file that cannot be read, an unknown key (naming the nearest) and a
    value of the wrong type or out of range.
    """
    try:
        values = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise SettingsError(f"--config {path}: {error.strerror}") from None
    except ValueError as error:  # no TOML, or no UTF-8
        raise SettingsError(f"--config {path}: {error}") from None
    try:
        return parse_settings(values)
    except SettingsError as error:
        raise SettingsError(f"--config {path}: {error}") from None


def parse_settings(values: Mapping[str, Any]) -> Settings:
    """Settings from the values of a TOML file. Raises SettingsError."""
    known = _kinds(Settings)
    _check_keys(values, known, "")
    given = {name: _typed(name, value, known[name]) for name, value in values.items()}
    if "override" in given:
        given["override"] = tuple(_override(entry) for entry in given["override"])
    return Settings(**given)


def dump_settings(settings: Settings) -> str:
    """The settings as TOML that ``parse_settings`` reads back as equal settings."""
    values = dataclasses.asdict(settings)
    tables = {"run": values.pop("run")}
    overrides = values.pop("override")
    lines = [f"{name} = {_toml(value)}" for name, value in values.items()]
    for name, table in tables.items():
        if table:
            lines += ["", f"[{name}]", *(f"{_toml(k)} = {_toml(v)}" for k, v in table.items())]
    for entry in overrides:
        told = {name: value for name, value in entry.items() if value is not None}
        lines += ["", "[[override]]", *(f"{name} = {_toml(value)}" for name, value in told.items())]
    return "\n".join(lines) + "\n"


def nearest(word: str, known: Collection[str]) -> str:
    """``did you mean 'x'?`` with the nearest known word, or what there is."""
    close = difflib.get_close_matches(word, known, 1)
    return f"did you mean {close[0]!r}?" if close else f"known: {some(sorted(known))}"


def some(names: Sequence[str]) -> str:
    """The first of the names, as many as a line takes, and how many more there are."""
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + more


def _override(values: Mapping[str, Any]) -> Override:
    known = _kinds(Override)
    _check_keys(values, known, "override: ")
    if "case" not in values:
        raise SettingsError('override: has no case; name one, such as case = "attention/nsa*"')
    return Override(**{name: _typed(name, value, known[name]) for name, value in values.items()})


def _kinds(of: type[Any]) -> dict[str, str]:
    return {f.name: str(f.type).removesuffix(" | None") for f in dataclasses.fields(of)}


def _check_keys(values: Mapping[str, Any], known: Collection[str], where: str) -> None:
    for name in values:
        if name not in known:
            raise SettingsError(f"{where}unknown key {name!r}: {nearest(name, known)}")


def _typed(name: str, value: Any, kind: str) -> Any:
    """The value in the type of its field, or SettingsError."""
    if kind == "float" and isinstance(value, (int, float)) and not isinstance(value, bool):
        return float(value)
    if kind == "int" and isinstance(value, int) and not isinstance(value, bool):
        return value
    if (kind == "bool" and isinstance(value, bool)) or (kind == "str" and isinstance(value, str)):
        return value
    if kind == "tuple[str, ...]" and _is_list_of(value, str):
        return tuple(value)
    if kind == "tuple[Override, ...]" and _is_list_of(value, dict):
        return value
    if kind.startswith("Mapping") and isinstance(value, dict):
        return value
    raise SettingsError(f"{name} = {value!r}: must be {_KIND_NAMES.get(kind, 'a table')}")


_KIND_NAMES = {
    "float": "a number",
    "int": "a whole number",
    "bool": "true or false",
    "str": "text",
    "tuple[str, ...]": "a list of texts",
    "tuple[Override, ...]": "a list of tables ([[override]])",
}


def _is_list_of(value: Any, kind: type) -> bool:
    return isinstance(value, list) and all(isinstance(item, kind) for item in value)


def _check_range(name: str, value: float, low: float, high: float) -> None:
    if not low <= value <= high:
        raise SettingsError(f"{name} = {value:g}: must lie between {low:g} and {high:g}")


def _toml(value: Any) -> str:
    """A plain value in TOML: a JSON text is one, but for the character that JSON leaves bare."""
    if isinstance(value, (list, tuple)):
        return f"[{', '.join(_toml(item) for item in value)}]"
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
