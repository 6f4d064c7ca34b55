"""A case: one piece of work, done in one way, measured in one pass."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

Value = str | int | float

WORKLOAD_COLUMNS = (
    "batch",
    "seq_len",
    "q_heads",
    "kv_heads",
    "head_dim",
    "model_dim",
    "layers",
    "task",
    "train_steps",
    "inputs",
    "seed",
)
SETTING_COLUMNS = (
    "backend",
    "lists",
    "branches",
    "block_size",
    "compress_block",
    "compress_stride",
    "top_n",
    "init_blocks",
    "local_blocks",
    "window",
    "query_tile",
    "private_blocks",
    "target_sparsity",
    "variant",
)


@dataclass(frozen=True)
class Case:
    """What one row measures.

    ``workload`` says what is computed (keys from WORKLOAD_COLUMNS) and ``settings`` how it is done
    (keys from SETTING_COLUMNS); an absent key is a null column. Two cases with the same workload,
    pass and dtype are comparable across providers (``workload_id``); ``case_id`` adds provider,
    settings and timer. Both ids hash canonical JSON, so they are the same on every machine and do
    not depend on the order of keys.
    """

    suite: str
    provider: str
    pass_: str
    device: str
    dtype: str
    timer: str
    workload: Mapping[str, Value] = field(default_factory=dict)
    settings: Mapping[str, Value] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for given, known in ((self.workload, WORKLOAD_COLUMNS), (self.settings, SETTING_COLUMNS)):
            unknown = sorted(set(given) - set(known))
            if unknown:
                raise KeyError(f"a case has no parameter {', '.join(unknown)}")

    @property
    def workload_id(self) -> str:
        """Hash of the work alone: suite, pass, device kind, dtype and workload parameters."""
        return _digest([self.suite, self.pass_, self.device, self.dtype, dict(self.workload)])

    @property
    def case_id(self) -> str:
        """Hash of the work and of how it is done."""
        return _digest([self.workload_id, self.provider, self.timer, dict(self.settings)])

    @property
    def label(self) -> str:
        """A short name for progress bars and messages: ``attention/nsa forward T=8192``."""
        return f"{self.suite}/{self.provider} {self.pass_} T={self.workload.get('seq_len', '?')}"

    def columns(self) -> dict[str, Any]:
        """The columns of the row that follow from the case alone."""
        return {
            "case_id": self.case_id,
            "workload_id": self.workload_id,
            "suite": self.suite,
            "provider": self.provider,
            "pass": self.pass_,
            "device": self.device,
            "dtype": self.dtype,
            "timer": self.timer,
            **self.workload,
            **self.settings,
        }

    def to_json(self) -> dict[str, Any]:
        """A plain dictionary that ``from_json`` turns back into an equal case."""
        return {
            "suite": self.suite,
            "provider": self.provider,
            "pass_": self.pass_,
            "device": self.device,
            "dtype": self.dtype,
            "timer": self.timer,
            "workload": dict(self.workload),
            "settings": dict(self.settings),
        }

    @classmethod
    def from_row(cls, row: Mapping[str, Any]) -> Case | None:
        """The case that a row measured; None where its columns do not lead back to its id.

        A measured row also tells the backend that ran, which its case need not have named.
        """
        workload, settings = (
            {name: row[name] for name in names if row[name] is not None}
            for names in (WORKLOAD_COLUMNS, SETTING_COLUMNS)
        )
        names = ("suite", "provider", "pass", "device", "dtype", "timer")
        suite, provider, pass_, device, dtype, timer = (row[name] for name in names)
        case = cls(suite, provider, pass_, device, dtype, timer, workload, settings)
        unmeasured = {name: value for name, value in settings.items() if name != "backend"}
        for found in (case, replace(case, settings=unmeasured)):
            if found.case_id == row["case_id"]:
                return found
        return None

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Case:
        """The case that ``to_json`` described."""
        return cls(**data)


def _digest(parts: list[Any]) -> str:
    text = json.dumps(parts, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:16]
