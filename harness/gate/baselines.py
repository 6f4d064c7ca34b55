"""Named baselines: rows of some runs under one name, and the slow-downs accepted against them.

::

    <root>/<name>/rows.parquet     rows of all the runs saved, one for each case and run
    <root>/<name>/baseline.json    when, from which runs, which commit; accepted slow-downs
    <root>/default                 the name that a gate compares with where none is given
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any

from dynbench.harness.gate.errors import InvalidData, NothingToCompare, SettingsError
from dynbench.harness.gate.verdicts import CaseVerdict, Verdict
from dynbench.harness.rowfiles import Row, replace_file, write_parquet
from dynbench.harness.schema import Status
from dynbench.harness.store import PARQUET_FILE, check_output_root, read_rows

FACTS_FILE = "baseline.json"
DEFAULT_FILE = "default"

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")


@dataclass(frozen=True)
class Baseline:
    """A saved baseline, or rows that serve as one (``facts`` empty then)."""

    name: str
    path: Path
    facts: dict[str, Any]

    @property
    def accepted(self) -> list[dict[str, Any]]:
        """Slow-downs that do not block: case_id, reason, until, up_to."""
        return list(self.facts.get("accepted", ()))


def save(root: Path, name: str, rows: Sequence[Row], sources: Sequence[str]) -> Baseline:
    """Save the ok rows (and the failed ones, which tell what never worked) under ``name``.

    A baseline of that name is replaced, and what was accepted against it forgotten: its rows are
    slow already. Raises SettingsError for a name that is none, NothingToCompare for rows without
    an ok one.
    """
    if not _NAME.fullmatch(name) or name == DEFAULT_FILE:
        raise SettingsError(f"baseline {name!r}: use letters, digits, dots and dashes")
    if not any(row["status"] == Status.OK for row in rows):
        raise NothingToCompare(f"baseline {name}: no row is ok; save a run that has some")
    folder = check_output_root(root) / name
    folder.mkdir(parents=True, exist_ok=True)
    facts = {
        "name": name,
        "saved_at": datetime.now(UTC).isoformat(timespec="seconds"),
        "sources": list(sources),
        "runs": len({row["run_id"] for row in rows}),
        "cases": len({row["case_id"] for row in rows}),
        "commits": sorted({row["git_commit"] for row in rows if row["git_commit"]}),
        "devices": sorted({str(row["gpu_name"] or row["cpu_name"]) for row in rows}),
        "accepted": [],
    }
    write_parquet(rows, folder / PARQUET_FILE)
    _write_facts(folder, facts)
    return Baseline(name, folder, facts)


def listed(root: Path) -> list[Baseline]:
    """All saved baselines, by name."""
    return [
        Baseline(path.parent.name, path.parent, _read_facts(path.parent))
        for path in sorted(root.glob(f"*/{FACTS_FILE}"))
    ]


def default_name(root: Path) -> str | None:
    """The promoted baseline's name; None where none was promoted."""
    try:
        return (root / DEFAULT_FILE).read_text(encoding="utf-8").strip() or None
    except OSError:
        return None


def promote(root: Path, name: str) -> Baseline:
    """Make ``name`` what a gate compares with by default. Raises NothingToCompare if unknown."""
    found = _saved(root, name)
    path = root / DEFAULT_FILE
    replace_file(path, lambda temporary: temporary.write_text(f"{name}\n", encoding="utf-8"))
    return found


def find(root: Path, name: str | None, others: Iterable[Path] = ()) -> Baseline:
    """The baseline of that name under ``root`` (the promoted one for None), or rows at that path.

    ``others`` are further folders that ``name`` may lie in (runs). Raises NothingToCompare.
    """
    chosen = name or default_name(root)
    if chosen is None:
        raise NothingToCompare(
            f"no baseline: none is promoted in {root}; name one with --baseline, or make one with "
            "dynbench baseline save NAME RUN"
        )
    if (root / chosen / FACTS_FILE).is_file():
        return _saved(root, chosen)
    for path in (Path(chosen), *(folder / chosen for folder in others)):
        if path.exists():
            facts = _read_facts(path) if (path / FACTS_FILE).is_file() else {}
            return Baseline(chosen, path, facts)
    raise NothingToCompare(
        f"no baseline {chosen!r}: it is no run and no path either, and {_what_there_is(root)}"
    )


def read(baseline: Baseline) -> list[Row]:
    """Its rows. Raises InvalidData where any of them cannot be read."""
    rows, problems = read_rows([baseline.path])
    if problems:
        raise InvalidData(f"baseline {baseline.name}: {problems[0]}")
    return rows


def accept(baseline: Baseline, verdict: CaseVerdict, reason: str, until: date) -> dict[str, Any]:
    """Record in the baseline that this slow-down is wanted, and return the entry.

    It covers the case until that day, and slow-downs up to the bound that was measured: one more
    on top is not covered. Raises SettingsError for rows that are no saved baseline.
    """
    if not baseline.facts:
        raise SettingsError(
            f"--accept: {baseline.path} is no saved baseline; make one of it with "
            "dynbench baseline save NAME RUN"
        )
    entry = {
        "case_id": verdict.case_id,
        "label": verdict.label,
        "reason": reason,
        "until": until.isoformat(),
        "up_to": verdict.high,
    }
    facts = _read_facts(baseline.path)
    others = [e for e in facts.get("accepted", ()) if e["case_id"] != verdict.case_id]
    _write_facts(baseline.path, {**facts, "accepted": [*others, entry]})
    return entry


def apply_accepted(
    verdicts: Iterable[CaseVerdict], entries: Iterable[dict[str, Any]], today: date
) -> list[CaseVerdict]:
    """The verdicts, with what an entry covers no longer blocking."""
    by_case = {entry["case_id"]: entry for entry in entries}
    return [_under(verdict, by_case.get(verdict.case_id), today) for verdict in verdicts]


def _under(verdict: CaseVerdict, entry: dict[str, Any] | None, today: date) -> CaseVerdict:
    if entry is None or not verdict.blocks:
        return verdict
    if date.fromisoformat(entry["until"]) < today:
        note = f"was accepted until {entry['until']} ({entry['reason']})"
        return replace(verdict, notes=(*verdict.notes, note))
    up_to = entry["up_to"]
    measured = verdict.verdict == Verdict.REGRESSED and verdict.low is not None
    if measured and (up_to is None or verdict.low > up_to):
        bound = "a failure" if up_to is None else f"a slow-down of up to {100 * up_to:.1f} %"
        note = f"only {bound} is accepted ({entry['reason']})"
        return replace(verdict, notes=(*verdict.notes, note))
    if not measured and up_to is not None:
        return verdict
    note = f"accepted until {entry['until']}: {entry['reason']}"
    return replace(verdict, blocks=False, accepted=entry, notes=(*verdict.notes, note))


def _saved(root: Path, name: str) -> Baseline:
    if not (root / name / FACTS_FILE).is_file():
        raise NothingToCompare(f"no baseline {name!r}: {_what_there_is(root)}")
    return Baseline(name, root / name, _read_facts(root / name))


def _what_there_is(root: Path) -> str:
    names = [baseline.name for baseline in listed(root)]
    if not names:
        return f"{root} has none; make one with dynbench baseline save NAME RUN"
    return f"{root} has {', '.join(names)}"


def _read_facts(folder: Path) -> dict[str, Any]:
    path = folder / FACTS_FILE
    try:
        facts = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, OSError) as error:
        raise InvalidData(f"{path}: not readable as JSON ({error})") from error
    if not isinstance(facts, dict):
        raise InvalidData(f"{path}: not a JSON object; save the baseline again")
    return facts


def _write_facts(folder: Path, facts: dict[str, Any]) -> None:
    text = json.dumps(facts, indent=2) + "\n"
    replace_file(
        folder / FACTS_FILE, lambda temporary: temporary.write_text(text, encoding="utf-8")
    )
