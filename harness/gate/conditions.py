"""Which rows may be compared, and which of them can be trusted."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from dynbench.harness.gate.settings import Settings
from dynbench.harness.nvml import THROTTLE_BITS
from dynbench.harness.schema import Status, disturbance
from dynbench.harness.sweep import format_length

Row = Mapping[str, Any]

_SLOWING = frozenset(THROTTLE_BITS.values())

_GPU_CONDITIONS = (
    "gpu_name",
    "gpu_power_limit_w",
    "driver_version",
    "torch_version",
    "triton_version",
    "timer",
    "rest",  # a card that rests runs at another clock than one under load
)
_CPU_CONDITIONS = ("cpu_name", "cpu_threads", "torch_version", "timer")


@dataclass(frozen=True)
class Reading:
    """One row of a comparison: the process it is from, and the round, where there are rounds."""

    row: Row
    round: int | None = None

    @property
    def latency_ms(self) -> float:
        """Median of the row's samples."""
        return float(self.row["latency_ms"])


@dataclass
class Pairing:
    """All readings of one case, by side, in the order they were taken."""

    case_id: str
    baseline: list[Reading] = field(default_factory=list)
    candidate: list[Reading] = field(default_factory=list)

    @property
    def any_row(self) -> Row:
        """A row that describes the case."""
        return (self.candidate or self.baseline)[0].row

    @property
    def label(self) -> str:
        """What people call the case."""
        return case_label(self.any_row)


def pair(
    baseline: Iterable[Reading],
    candidate: Iterable[Reading],
    settings: Settings,
    *,
    across: bool = False,
) -> list[Pairing]:
    """Readings by case, in the order of the baseline's, then of the candidate's own.

    Where a side has rows of one case under several conditions (two GPUs in one dataset), those
    that meet the conditions of the candidate's newest row count, if there are any; ``across``
    leaves them all in. A skipped row knows too little to be the one, where there are others.
    """
    pairings: dict[str, Pairing] = {}
    for side, readings in (("baseline", baseline), ("candidate", candidate)):
        for reading in readings:
            case_id = str(reading.row["case_id"])
            pairing = pairings.setdefault(case_id, Pairing(case_id))
            getattr(pairing, side).append(reading)
    if not across:
        for pairing in pairings.values():
            if pairing.baseline and pairing.candidate:
                taken = [r for r in pairing.candidate if r.row["status"] != Status.SKIPPED]
                wanted = conditions((taken or pairing.candidate)[-1].row)
                pairing.candidate = _under(pairing.candidate, wanted)
                pairing.baseline = _under(pairing.baseline, wanted) or pairing.baseline
    return list(pairings.values())


def _under(readings: Sequence[Reading], wanted: Mapping[str, Any]) -> list[Reading]:
    return [reading for reading in readings if conditions(reading.row) == wanted]


def conditions(row: Row) -> dict[str, Any]:
    """What must be equal in two rows for their times to be compared, beside the case."""
    names = _GPU_CONDITIONS if row["device"] == "cuda" else _CPU_CONDITIONS
    found = {name: row[name] for name in names}
    if found.get("gpu_power_limit_w") is not None:
        found["gpu_power_limit_w"] = round(found["gpu_power_limit_w"])
    if found.get("driver_version") is not None:
        found["driver_version"] = str(found["driver_version"]).partition(".")[0]
    if "rest" in found and row["status"] == Status.OK:
        found["rest"] = found["rest"] or 0.0  # older rows do not say that there was none
    return found


def difference(baseline: Row, candidate: Row) -> str:
    """The first condition that differs, in words; empty where none does.

    A row whose worker could not even start knows little: what it does not know differs from
    nothing.
    """
    ours, theirs = conditions(candidate), conditions(baseline)
    started = candidate["status"] == Status.OK
    for name in {**theirs, **ours}:
        if ours.get(name) != theirs.get(name) and (started or ours.get(name) is not None):
            return f"{name} is {ours.get(name)!r}, the baseline has {theirs.get(name)!r}"
    return ""


def throttled(row: Row, settings: Settings) -> str:
    """Why the row's clock cannot be trusted; empty where it can.

    A row does not say which samples a reason slowed down: where a tolerated one is among the
    reasons, samples count that it alone may have slowed down.
    """
    count, samples = row["throttled_samples"], row["sample_count"]
    reasons = set(row["throttle_reasons"] or ()) & _SLOWING
    tolerated = sorted(reasons & set(settings.tolerated_throttling))
    slowing = sorted(reasons - set(settings.tolerated_throttling))
    if not count or not samples or not slowing:
        return ""
    if count <= settings.max_throttled_share * samples:
        return ""
    told = ", ".join(slowing)
    if tolerated:
        told += f"; some perhaps for {', '.join(tolerated)} alone, which is tolerated"
    return f"{count} of {samples} samples throttled ({told})"


def disturbed(row: Row, settings: Settings) -> str:
    """What else ran on the device while the row was taken; empty where nothing is known to have."""
    return disturbance(row, settings.max_other_cpu_share)


def case_label(row: Row) -> str:
    """A case in one line: ``attention/dynnsiha forward T=8k 1/1/64 float32 top_n=16 R=16 m=2``."""
    length = row["seq_len"]
    parts = [
        f"{row['suite']}/{row['provider']} {row['pass']}",
        f"T={format_length(int(length))}" if length is not None else "",
    ]
    heads = [row[name] for name in ("q_heads", "kv_heads", "head_dim")]
    if None not in heads:
        parts.append("/".join(map(str, heads)))
    if (row["batch"] or 1) > 1:
        parts.append(f"B={row['batch']}")
    parts.append(str(row["dtype"]))
    for column, short in {"top_n": "top_n", "query_tile": "R", "private_blocks": "m"}.items():
        if row[column] is not None:
            parts.append(f"{short}={row[column]}")
    if row["branches"]:
        parts.append(str(row["branches"]).replace(",", "+"))
    if row["task"]:
        parts += [str(row["task"]), f"seed={row['seed']}", row["variant"] or ""]
    return " ".join(part for part in parts if part)
