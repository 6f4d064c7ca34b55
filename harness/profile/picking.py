"""Which case is meant: one of those planned, or of those that a run has rows of."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from dynbench.harness.case import Case
from dynbench.harness.gate.conditions import case_label
from dynbench.harness.gate.settings import names_case, some
from dynbench.harness.profile.errors import NoSuchCase
from dynbench.harness.schema import COLUMNS


def pick_case(cases: Sequence[Case], name: str | None, where: str) -> Case:
    """The one of ``cases`` whose label matches ``name`` or whose id begins so; all match None.

    ``where`` says in words where the cases are from. Raises NoSuchCase.
    """
    unique = {case.case_id: case for case in cases}
    labels = {id_: label_of(case) for id_, case in unique.items()}
    found = [id_ for id_, label in labels.items() if name is None or names_case(name, id_, label)]
    if len(found) == 1:
        return unique[found[0]]
    if not found:
        what = f"no case {name!r}" if name is not None else "no case"
        raise NoSuchCase(f"{what} in {where}; there are: {_listed(labels, labels)}")
    meant = "" if name is None else f" that {name!r} means"
    raise NoSuchCase(
        f"{len(found)} cases in {where}{meant}: "
        f"{_listed(found, labels)}; name one of them by the beginning of its id"
    )


def label_of(case: Case) -> str:
    """What people call the case, as the gate does."""
    return case_label({**dict.fromkeys(COLUMNS), **case.columns()})


def cases_of(rows: Iterable[Mapping[str, Any]]) -> dict[str, Case]:
    """Cases by id that rows lead back to."""
    found = ((str(row["case_id"]), Case.from_row(row)) for row in rows)
    return {case_id: case for case_id, case in found if case is not None}


def _listed(ids: Iterable[str], labels: Mapping[str, str]) -> str:
    return some([f"{id_[:8]} ({labels[id_]})" for id_ in ids]) or "none"
